"""Adam for one network or a fleet's: one fused pass, a learning rate and a step count for each member.

torch's optimiser has one rate for all parameters of a group, so the members of a fleet, each of which falls to 0 over
its own number of steps, would need a group each: ten to thirty passes instead of one (docs/performance.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-8


class Adam:
    """Adam (Kingma & Ba, 2015) as torch's, without weight decay.

    Args:
        parameters: Of one network; in a fleet each has the members along its first axis.
        betas: β1, β2.
        num_members: K.

    Attributes:
        in_step: Whether all members have made the same number of steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], betas: tuple[float, float], num_members: int = 1) -> None:
        self.parameters = list(parameters)
        self.num_members = num_members
        self._betas = betas
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._all_steps = torch.zeros(len(self.parameters), num_members, device=self.parameters[0].device)
        self._steps = list(self._all_steps)
        self._first_steps = [steps[:1] for steps in self._steps]
        self._moves: list[Tensor] = []
        self.in_step = True

    @torch.no_grad()
    def step(self, rates: Sequence[float] | Tensor) -> None:
        """Move every parameter that has a ``grad``, each member at its own rate.

        Rates as a tensor (K,) on the parameters' device are not read on the host: such a step can be captured.
        """
        moved = [place for place, parameter in enumerate(self.parameters) if parameter.grad is not None]
        parameters, means, squares, steps, first_steps = (
            [tensors[place] for place in moved]
            for tensors in (self.parameters, self._means, self._squares, self._steps, self._first_steps)
        )
        gradients = [parameter.grad for parameter in parameters]
        if len(moved) == len(self.parameters):
            self._all_steps += 1
        else:
            torch._foreach_add_(steps, 1)
        if isinstance(rates, Tensor) or (self.in_step and len(set(rates)) > 1):
            self._moves = self._moves or [torch.zeros_like(parameter) for parameter in self.parameters]
            moves = [self._moves[place] for place in moved]
            torch._foreach_zero_(moves)
            self._fused(moves, gradients, means, squares, first_steps, 1.0)
            factors = torch.as_tensor(rates, dtype=moves[0].dtype, device=moves[0].device)[:, None]
            targets, moves = ([tensor.view(self.num_members, -1) for tensor in own] for own in (parameters, moves))
            torch._foreach_addcmul_(targets, moves, [factors] * len(moves))
        elif not self.in_step:
            lists = [self._by_member(tensors) for tensors in (parameters, gradients, means, squares, steps)]
            for member, rate in enumerate(rates):
                own = [tensors[member] for tensors in lists]
                self._fused(own[0], own[1], own[2], own[3], own[4], rate)
        else:
            self._fused(parameters, gradients, means, squares, first_steps, rates[0])

    def state_dict(self) -> dict[str, Any]:
        """Moments and step counts: tensors only."""
        return {"means": list(self._means), "squares": list(self._squares), "steps": list(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        for name, own in self.state_dict().items():
            for tensor, saved in zip(own, state[name], strict=True):
                tensor.copy_(saved)
        self.in_step = all(bool((steps == steps[0]).all()) for steps in self._steps)

    def stack(self, members: Sequence["Adam"]) -> None:
        """Go on from where the members' own optimisers are."""
        states = [member.state_dict() for member in members]
        self.load_state_dict(
            {name: [torch.cat(own) for own in zip(*(s[name] for s in states), strict=True)] for name in states[0]}
        )

    def split(self, members: Sequence["Adam | None"]) -> None:
        """Bring the members' own optimisers to where this one is; None passes one over."""
        parts = {name: self._by_member(tensors) for name, tensors in self.state_dict().items()}
        for place, member in enumerate(members):
            if member is not None:
                member.load_state_dict({name: columns[place] for name, columns in parts.items()})

    def _by_member(self, tensors: Sequence[Any]) -> list[list[Tensor]]:
        return [list(own) for own in zip(*(tensor.chunk(self.num_members) for tensor in tensors), strict=True)]

    def _fused(
        self,
        parameters: list[Any],
        gradients: list[Any],
        means: list[Any],
        squares: list[Any],
        steps: list[Any],
        rate: float,
    ) -> None:
        """Torch's kernel; its wrapper sorts tensors by device and type at each step, which takes longer than a step."""
        torch._fused_adam_(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=rate,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )
