"""A GAN together with what its training carries along: objective, optimisers, averaged weights, connectors."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdgan_compress.accel.fleet_adam import Adam
from kdgan_compress.accel.stacking import stack_gans, stack_weights, unstack_weights
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, eval_mode
from kdgan_compress.gans.ganomaly_objective import GanomalyObjective
from kdgan_compress.gans.objective import Objective, Outputs, merge_settings


class TrainState:
    """A GAN that can be trained, saved in the middle and continued; or a fleet of them, made by ``stack``.

    Args:
        gan: The networks; they are trained in place.
        betas: Adam's β1, β2.
        ema_decay: d of the generator's exponential moving average, whose decay at step t is min(d, t/(t + 10)):
            the early average forgets the random start. 0: no averaging.
        objective: The GAN's own losses; None for GANomaly's.
    """

    def __init__(
        self,
        gan: Gan,
        betas: tuple[float, float] = (0.5, 0.99),
        ema_decay: float = 0.99,
        objective: Objective | None = None,
    ) -> None:
        self.gan = gan
        self.objective = objective or GanomalyObjective()
        self.connectors: nn.Module | None = None
        self._betas = betas
        self._decay = ema_decay
        self._average: nn.Module | None = None
        self._averaged: list[list[Tensor]] = [[], []]
        self._copied: list[list[Tensor]] = [[], []]
        self._num_averaged = torch.zeros(gan.num_members, dtype=torch.float64)
        self._optimizers: dict[str, Adam] = {}

    @property
    def ema_generator(self) -> nn.Module:
        """The generator that is scored and saved: the averaged one, once there is one."""
        return self.gan.generator if self._average is None else self._average

    def begin_stage(self, networks: Sequence[str]) -> None:
        """Start anew what a stage owns: an optimiser for each network it moves, and the average."""
        modules = self.gan.networks()
        self._optimizers = {}
        for name in networks:
            parameters = list(modules[name].train().parameters())
            if name == "generator" and self.connectors is not None:
                parameters += self.connectors.parameters()
            self._optimizers[name] = Adam(parameters, self._betas, self.gan.num_members)
        if "generator" in networks and self._decay > 0:
            self._average = copy.deepcopy(self.gan.generator).eval().requires_grad_(False)
            pair = self._average, self.gan.generator
            self._averaged = [list(network.parameters()) for network in pair]
            self._copied = [list(network.buffers()) for network in pair]
            self._num_averaged = torch.zeros(self.gan.num_members, dtype=torch.float64, device=self.gan.device)

    def step(
        self, network: str, loss: Tensor, learning_rates: float | Sequence[float] | Tensor, keeps_graph: bool = False
    ) -> None:
        """Move one network, and only it, one Adam step down ``loss``.

        Args:
            network: ``"generator"`` or ``"discriminator"``.
            loss: A scalar; in a fleet (K,).
            learning_rates: One, or one for each member; in a captured step a tensor (K,).
            keeps_graph: Whether another step goes back through the same graph.
        """
        optimizer = self._optimizers[network]
        for parameter in optimizer.parameters:
            parameter.grad = None
        loss.sum().backward(inputs=optimizer.parameters, retain_graph=keeps_graph)
        optimizer.step([learning_rates] if isinstance(learning_rates, float) else learning_rates)
        if network == "generator" and self._average is not None:
            self._move_average()

    def connect(self, outputs: Outputs) -> Outputs:
        """Tapped outputs in the teacher's shapes."""
        connected: Outputs = outputs if self.connectors is None else self.connectors(outputs)
        return connected

    @property
    def is_capturable(self) -> bool:
        """Whether a step reads nothing on the host that changes from step to step, and images that fill up a batch
        touch no other.
        """
        in_step = all(optimizer.in_step for optimizer in self._optimizers.values())
        return in_step and self.gan.is_batch_independent and bool(getattr(self.objective, "is_capturable", False))

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(bool(p.isfinite().all()) for network in self.gan.networks().values() for p in network.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to go on from here; tensors and plain numbers only."""
        return {
            "networks": {name: network.state_dict() for name, network in self._networks().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "num_averaged": self._num_averaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, after ``begin_stage`` of the same stage."""
        if "average" not in state["networks"]:
            self._average = None
        networks = self._networks()
        for name, saved in state["networks"].items():
            assert name in networks, f"{name} was saved but this stage has none"
            networks[name].load_state_dict(saved)
        for name, saved in state["optimizers"].items():
            self._optimizers[name].load_state_dict(saved)
        self._num_averaged.copy_(state["num_averaged"])

    @classmethod
    def stack(cls, members: Sequence["TrainState"]) -> "TrainState":
        """One learner that trains all of these at once, from where they are; a single one is returned as it is.

        Raises:
            KdganError: They differ in shape, averaging or betas, or have connectors.
        """
        first = members[0]
        if len(members) == 1:
            return first
        if any(member.connectors is not None and len(list(member.connectors.parameters())) for member in members):
            raise KdganError(
                "Members of a fleet must have their teacher's shapes", "found connectors", "Train them one by one"
            )
        for name, values in (
            ("betas", [member._betas for member in members]),
            ("ema_decay", [member._decay for member in members]),
            ("kind of objective", [type(member.objective).__name__ for member in members]),
        ):
            if len(set(values)) > 1:
                raise KdganError(
                    f"Members of a fleet must agree in {name}",
                    f"got {', '.join(sorted(map(str, set(values))))}",
                    "Train those that differ in it one after the other",
                )
        objective = merge_settings([member.objective for member in members], first.gan.device)
        fleet = cls(stack_gans([member.gan for member in members]), first._betas, first._decay, objective)
        fleet.begin_stage(list(first._optimizers))
        for name, optimizer in fleet._optimizers.items():
            optimizer.stack([member._optimizers[name] for member in members])
        if fleet._average is not None:
            fleet._average.load_state_dict(stack_weights([member.ema_generator for member in members]))
        fleet._num_averaged = torch.cat([member._num_averaged for member in members])
        return fleet

    def split(self, members: Sequence["TrainState | None"]) -> None:
        """Bring the learners that were stacked to where this one is; None passes one over."""
        if members == [self]:
            return
        for name, network in self._networks().items():
            unstack_weights(network, [None if member is None else member._networks()[name] for member in members])
        for name, optimizer in self._optimizers.items():
            optimizer.split([None if member is None else member._optimizers[name] for member in members])
        for member, number in zip(members, self._num_averaged.chunk(len(members)), strict=True):
            if member is not None:
                member._num_averaged.copy_(number)

    def _networks(self) -> dict[str, nn.Module]:
        """Everything with weights that there is at present."""
        extra = {"average": self._average, "connectors": self.connectors}
        return self.gan.networks() | {name: network for name, network in extra.items() if network is not None}

    def _move_average(self) -> None:
        ours, theirs = self._averaged
        numbers = set() if self._num_averaged.is_cuda else set(self._num_averaged.tolist())
        with torch.no_grad():
            if len(numbers) == 1:
                (number,) = numbers
                torch._foreach_lerp_(ours, theirs, 1 - min(self._decay, number / (number + 10)))
            else:
                shares = 1 - (self._num_averaged / (self._num_averaged + 10)).clamp(max=self._decay)
                by_member = shares.to(ours[0].dtype)[:, None]
                for own, current in zip(ours, theirs, strict=True):
                    own.view(len(shares), -1).lerp_(current.view(len(shares), -1), by_member)
            for buffer, current in zip(*self._copied, strict=True):
                buffer.copy_(current)
            self._num_averaged += 1


@contextmanager
def frozen(gan: Gan) -> Iterator[None]:
    """Hold a GAN still: no gradient reaches it and no buffer moves (batch norm uses its running statistics)."""
    networks = gan.networks().values()
    required = [(parameter, parameter.requires_grad) for network in networks for parameter in network.parameters()]
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(eval_mode(network))
            network.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, flag in required:
                parameter.requires_grad_(flag)
