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
        places = [place for place, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if len(places) == len(self.parameters):
            self._all_steps += 1
        else:
            torch._foreach_add_([self._steps[place] for place in places], 1)
        if isinstance(rates, Tensor):
            self._step_by_moves(places, rates)
        elif not self.in_step:
            self._step_by_member(places, rates)
        elif len(set(rates)) == 1:
            self._fused(self.parameters, places, rates[0])
        else:
            like = self.parameters[0]
            self._step_by_moves(places, torch.tensor(rates, dtype=like.dtype, device=like.device))

    def _step_by_member(self, places: Sequence[int], rates: Sequence[float]) -> None:
        """A pass a member."""
        gradients = [self.parameters[place].grad for place in places]
        tensors = (
            gradients,
            *([own[place] for place in places] for own in (self.parameters, self._means, self._squares, self._steps)),
        )
        for rate, *lists in zip(rates, *(self._by_member(own) for own in tensors), strict=True):
            gradients, parameters, means, squares, steps = lists
            _fused_adam(parameters, gradients, means, squares, steps, rate, self._betas)

    def _step_by_moves(self, places: Sequence[int], rates: Tensor) -> None:
        """One pass for all members at rate 1 from nothing; what came out moves each member by its rate."""
        self._moves = self._moves or [torch.zeros_like(parameter) for parameter in self.parameters]
        moves = [self._moves[place] for place in places]
        torch._foreach_zero_(moves)
        self._fused(self._moves, places, 1.0)
        parameters = [self.parameters[place].view(self.num_members, -1) for place in places]
        factors = rates.to(moves[0].dtype)[:, None]
        torch._foreach_addcmul_(parameters, [own.view(self.num_members, -1) for own in moves], [factors] * len(moves))

    def _fused(self, targets: Sequence[Tensor], places: Sequence[int], rate: float) -> None:
        """One pass for all members, which are in step, at one rate."""
        gradients = [self.parameters[place].grad for place in places]
        lists = ([own[place] for place in places] for own in (targets, self._means, self._squares, self._first_steps))
        parameters, means, squares, steps = lists
        _fused_adam(parameters, gradients, means, squares, steps, rate, self._betas)

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


def _fused_adam(
    parameters: list[Tensor],
    gradients: list[Any],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    rate: float,
    betas: tuple[float, float],
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
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=EPSILON,
        amsgrad=False,
        maximize=False,
    )
