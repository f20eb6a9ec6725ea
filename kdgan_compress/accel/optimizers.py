"""Adam in one fused pass: for one network, and for a fleet with a learning rate and a step count per member.

``torch.optim.Adam(fused=True)`` sorts its tensors by device and dtype at each step, which takes several times as long
as the update of a small network. It has one learning rate per parameter group, so a fleet, whose members decay over
their own numbers of steps, would need one group and one pass per member (docs/performance.md).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-8
STATE = ("exp_avg", "exp_avg_sq", "step")
STEP_DTYPE = torch.float32  # the fused kernel takes no other


class FusedAdam(torch.optim.Adam):
    """``torch.optim.Adam`` (Kingma & Ba, 2015) without weight decay, by torch's fused kernel; its state is Adam's.

    Args:
        params: Parameters of one network, on one device and of one dtype.
        lr: Learning rate; ``param_groups[0]["lr"]`` changes it.
        betas: β1, β2.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.0, betas: tuple[float, float] = (0.5, 0.99)
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=EPS, fused=True)
        self._params: list[nn.Parameter] = self.param_groups[0]["params"]
        self._steps = torch.zeros(len(self._params), dtype=STEP_DTYPE, device=self._params[0].device)
        for parameter, step in zip(self._params, self._steps, strict=True):
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": step, **zeros}
        self._lists = [[self.state[parameter][name] for parameter in self._params] for name in STATE]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove all gradients."""
        for parameter in self._params:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        gradients = [parameter.grad for parameter in self._params]
        lists: list[list[Any]] = [self._params, gradients, *self._lists]
        if all(gradient is not None for gradient in gradients):
            self._steps += 1
        else:
            lists = [[row[i] for i, gradient in enumerate(gradients) if gradient is not None] for row in lists]
            torch._foreach_add_(lists[-1], 1)
        _fused_adam(*lists, lr=self.param_groups[0]["lr"], betas=self.param_groups[0]["betas"])

    step.hooked = True  # type: ignore[attr-defined]  # torch's profiling wrapper takes as long as a small update

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a ``state_dict()`` of this class or of ``torch.optim.Adam``."""
        for index, parameter in enumerate(self._params):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[parameter][name].copy_(value)


class FleetAdam(torch.optim.Optimizer):
    """Adam for K networks that are stacked along the first axis of every parameter.

    Args:
        params: Parameters of the stacked network.
        lr: Learning rate of every member until ``learning_rates`` is set.
        betas: β1, β2.
        num_members: K.

    Attributes:
        learning_rates: One per member. As a tensor (K,) on the parameters' device they are not read on the host, so the
            step can be captured as a CUDA graph.
        steps_synchronized: Whether all members have made the same number of steps.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.0,
        betas: tuple[float, float] = (0.5, 0.99),
        *,
        num_members: int,
    ) -> None:
        super().__init__(params, {"betas": betas})
        self.num_members = num_members
        self.learning_rates: Sequence[float] | Tensor = [lr] * num_members
        self.steps_synchronized = True
        self._params: list[nn.Parameter] = self.param_groups[0]["params"]
        shape, device = (len(self._params), num_members), self._params[0].device
        self._all_steps = torch.zeros(shape, dtype=STEP_DTYPE, device=device)
        for parameter, steps in zip(self._params, self._all_steps, strict=True):
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = {"step": steps, **zeros}
        self._lists = [[self.state[parameter][name] for parameter in self._params] for name in STATE]
        self._first_steps = [steps[:1] for steps in self._lists[2]]
        self._updates: list[Tensor] = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove all gradients."""
        for parameter in self._params:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, each member at its learning rate."""
        indices = [index for index, parameter in enumerate(self._params) if parameter.grad is not None]
        if len(indices) == len(self._params):
            self._all_steps += 1
        else:
            torch._foreach_add_([self._lists[2][index] for index in indices], 1)
        rates = self.learning_rates
        if isinstance(rates, Tensor):
            self._step_unit_lr_then_scale(indices, rates)
        elif not self.steps_synchronized:
            self._step_per_member(indices, rates)
        elif len(set(rates)) == 1:
            self._step_together(self._params, indices, rates[0])
        else:
            like = self._params[0]
            self._step_unit_lr_then_scale(indices, torch.tensor(rates, dtype=like.dtype, device=like.device))

    step.hooked = True  # type: ignore[attr-defined]  # see FusedAdam

    def _step_together(self, targets: Sequence[Tensor], indices: Sequence[int], lr: float) -> None:
        """One pass for all members, which have synchronized steps, at one learning rate."""
        averages, squares, _ = self._lists
        _fused_adam(
            [targets[index] for index in indices],
            [self._params[index].grad for index in indices],
            [averages[index] for index in indices],
            [squares[index] for index in indices],
            [self._first_steps[index] for index in indices],
            lr=lr,
            betas=self.param_groups[0]["betas"],
        )

    def _step_unit_lr_then_scale(self, indices: Sequence[int], rates: Tensor) -> None:
        """Run Adam with learning rate 1 on zeros to get the update, then scale it by each member's learning rate."""
        self._updates = self._updates or [torch.zeros_like(parameter) for parameter in self._params]
        updates = [self._updates[index] for index in indices]
        torch._foreach_zero_(updates)
        self._step_together(self._updates, indices, 1.0)
        parameters = [self._params[index].view(self.num_members, -1) for index in indices]
        factors = rates.to(updates[0].dtype)[:, None]
        rows = [update.view(self.num_members, -1) for update in updates]
        torch._foreach_addcmul_(parameters, rows, [factors] * len(rows))

    def _step_per_member(self, indices: Sequence[int], rates: Sequence[float]) -> None:
        """One pass per member, where their step counts differ."""
        gradients = [parameter.grad for parameter in self._params]
        lists: list[Any] = [self._params, gradients, *self._lists]
        chosen = [[row[index].chunk(self.num_members) for index in indices] for row in lists]
        for member, lr in enumerate(rates):
            rows = [[chunks[member] for chunks in row] for row in chosen]
            _fused_adam(*rows, lr=lr, betas=self.param_groups[0]["betas"])

    def stack(self, members: Sequence[torch.optim.Optimizer]) -> None:
        """Continue from the members' optimisers, which have Adam's state."""
        per_member = [_state_lists(member) for member in members]
        for name, rows in zip(STATE, self._lists, strict=True):
            for index, row in enumerate(rows):
                row.copy_(torch.cat([_per_member_shape(lists[name][index], name) for lists in per_member]))
        self.steps_synchronized = all(bool((steps == steps[0]).all()) for steps in self._lists[2])

    def unstack(self, members: Sequence[torch.optim.Optimizer | None]) -> None:
        """Bring the members' optimisers to where this one is; None is skipped."""
        for member, optimizer in enumerate(members):
            if optimizer is None:
                continue
            for rows, targets in zip(self._lists, _state_lists(optimizer).values(), strict=True):
                for row, target in zip(rows, targets, strict=True):
                    target.copy_(row.chunk(self.num_members)[member].view(target.shape))


def _state_lists(optimizer: torch.optim.Optimizer) -> dict[str, list[Tensor]]:
    """Adam's state tensors in the order of the parameters; created where no step was made yet."""
    parameters = optimizer.param_groups[0]["params"]
    is_fused = optimizer.param_groups[0].get("fused")
    for parameter in parameters:
        if not optimizer.state[parameter]:
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            step = torch.zeros((), dtype=STEP_DTYPE if is_fused else None, device=parameter.device)
            optimizer.state[parameter] = {"step": step, **zeros}
    return {name: [optimizer.state[parameter][name] for parameter in parameters] for name in STATE}


def _per_member_shape(value: Tensor, name: str) -> Tensor:
    return value.reshape(1) if name == "step" else value


def _fused_adam(
    parameters: Sequence[Tensor],
    gradients: Sequence[Any],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
) -> None:
    """Torch's fused kernel, called without the wrapper that sorts its tensors."""
    torch._fused_adam_(
        list(parameters),
        list(gradients),
        list(exp_avgs),
        list(exp_avg_sqs),
        [],
        list(steps),
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=EPS,
        amsgrad=False,
        maximize=False,
    )
