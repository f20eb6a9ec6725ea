"""Fleets: K GANs of one shape that are trained as one network, each as if it were alone (to float rounding).

A fleet is a ``TrainState`` whose samples are those of all members in turn, (B · K, …): sample b of member k is row
b · K + k. Losses per sample stay what they are; ``reduce`` takes one weighted mean per member, (K,), and
``within_batch`` keeps the members apart in losses that compare images.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdgan_compress.accel.optimizers import FleetAdam
from kdgan_compress.accel.stacking import (
    PerSample,
    StackedBatchNorm2d,
    stack_networks,
    stack_weights,
    to_grouped,
    to_samples,
    unstack_weights,
)
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan
from kdgan_compress.gans.objective import Outputs, Weight

Settings = TypeVar("Settings")


class FleetState(TrainState):
    """K models as one, created from the states they are in.

    Args:
        members: ``TrainState`` of one shape, after ``begin_stage`` if the fleet is to be trained.

    Attributes:
        members: The models.
        stacked: The stacked networks by name.
        sample_weights: (B, K) each member's weights of its B samples, columns summing to 1; 0 for padding.

    Raises:
        KdganError: The members differ in something they must agree in, or cannot be stacked.
    """

    def __init__(self, members: Sequence[TrainState]) -> None:
        first = members[0]
        _check_members(members)
        self.members = list(members)
        num_members = len(members)
        self.stacked = stack_gan([member.gan for member in members])
        generator, discriminator = self.stacked["generator"], self.stacked.get("discriminator")
        gan = Gan(
            generator,
            first.gan.taps,
            None if discriminator is None else PerSample(discriminator, num_members),
            first.gan.is_batch_independent,
        )
        objective = stack_settings([member.objective for member in members], gan.device)
        make_optimizer = functools.partial(FleetAdam, num_members=num_members)
        super().__init__(gan, first.betas, first.ema_decay, objective, make_optimizer)
        self.sample_weights = torch.ones(1, num_members, device=gan.device)
        self._batch_norms = [
            module
            for network in self.stacked.values()
            for module in network.modules()
            if isinstance(module, StackedBatchNorm2d)
        ]
        self.begin_stage(list(first.optimizers))
        for name, optimizer in self.optimizers.items():
            assert isinstance(optimizer, FleetAdam)
            optimizer.stack([member.optimizers[name] for member in members])
        if self._ema is not None:
            self._ema.load_state_dict(stack_weights([member.ema_generator for member in members]))
        self._num_averaged = torch.tensor(
            [member.num_averaged for member in members], dtype=torch.float64, device=gan.device
        )

    @property
    def num_members(self) -> int:
        """K."""
        return len(self.members)

    @property
    def steps_synchronized(self) -> bool:
        """Whether all members have made the same number of steps."""
        return all(isinstance(o, FleetAdam) and o.steps_synchronized for o in self.optimizers.values())

    def set_sample_weights(self, sample_weights: Tensor, is_padded: bool, in_place: bool = False) -> None:
        """Set the weights of the next step's samples, (B, K); in place for a captured step, which reads one tensor."""
        if in_place and self.sample_weights.shape == sample_weights.shape:
            self.sample_weights.copy_(sample_weights)
        else:
            self.sample_weights = sample_weights.clone() if in_place else sample_weights
        for layer in self._batch_norms:
            layer.sample_weights = sample_weights if is_padded else None

    def set_learning_rates(self, learning_rates: Sequence[float] | Tensor) -> None:
        """Set each member's learning rate of the next step; a tensor (K,) is not read on the host."""
        for optimizer in self.optimizers.values():
            assert isinstance(optimizer, FleetAdam)
            optimizer.learning_rates = learning_rates

    def forward(self, images: Tensor) -> Outputs:
        """Run all generators once on the members' images in turn, (B · K, C, S, S)."""
        outputs = super().forward(to_grouped(images, self.num_members))
        return {name: to_samples(output, self.num_members) for name, output in outputs.items()}

    def reduce(self, per_sample: Tensor) -> Tensor:
        """Each member's weighted mean (K,) of one value per sample (B · K,)."""
        return (per_sample.view(-1, self.num_members) * self.sample_weights).sum(0)

    def within_batch(self, loss: Callable[..., Tensor], *features: Tensor) -> Tensor:
        """See ``TrainState.within_batch``; compares each member's images with its own only, and padding with nothing.

        Args:
            loss: Also takes the sample weights (B,) of one member.
            features: (B · K, ...) each.
        """
        by_member = [feature.unflatten(0, (-1, self.num_members)) for feature in features]
        per_sample: Tensor = torch.vmap(loss, in_dims=1, out_dims=1)(*by_member, self.sample_weights)
        return per_sample.flatten()

    def update(self, network: str, loss: Tensor, retain_graph: bool = False) -> None:
        """See ``TrainState.update``; the loss is one value per member (K,), and their gradients do not mix."""
        if loss.shape != (self.num_members,):
            raise KdganError(
                "In a fleet an objective needs one loss per member",
                f"got shape {tuple(loss.shape)} for {self.num_members} members",
                "Let it take means by state.reduce only, or train these one after the other (--fleet 1)",
            )
        super().update(network, loss.sum(), retain_graph)

    @torch.no_grad()
    def update_ema(self) -> None:
        """See ``TrainState.update_ema``; members that started at different times have different decays."""
        counts = set() if self._num_averaged.is_cuda else set(self._num_averaged.tolist())
        if len(counts) == 1:
            (count,) = counts
            torch._foreach_lerp_(*self._ema_params, 1 - min(self.ema_decay, count / (count + 10)))
        else:
            decay = (self._num_averaged / (self._num_averaged + 10)).clamp(max=self.ema_decay)
            weights = (1 - decay).to(self._ema_params[0][0].dtype)[:, None]
            for average, current in zip(*self._ema_params, strict=True):
                average.view(self.num_members, -1).lerp_(current.view(self.num_members, -1), weights)
        for average, current in self._ema_buffers:
            average.copy_(current)
        self._num_averaged += 1

    def write_back(self, marked: Sequence[bool]) -> None:
        """Bring the marked members to where the fleet is."""
        members = [member if mark else None for member, mark in zip(self.members, marked, strict=True)]
        networks = self.stacked | ({} if self._ema is None else {"ema": self._ema})
        for name, network in networks.items():
            unstack_weights(network, [None if m is None else m.networks()[name] for m in members])
        for name, optimizer in self.optimizers.items():
            assert isinstance(optimizer, FleetAdam)
            optimizer.unstack([None if m is None else m.optimizers[name] for m in members])
        for member, count in zip(members, self._num_averaged.tolist(), strict=True):
            if member is not None:
                member.num_averaged = int(count)


def stack_gan(gans: Sequence[Gan]) -> dict[str, nn.Module]:
    """The stacked networks of GANs of one shape, by name."""
    names = [gan.networks().keys() for gan in gans]
    if any(other != names[0] for other in names):
        raise KdganError(
            "Members of a fleet differ in their networks",
            "some have a discriminator and some have none",
            "Train them one after the other (--fleet 1)",
        )
    return {name: stack_networks([gan.networks()[name] for gan in gans]) for name in names[0]}


def stack_weight(weights: Sequence[float], device: torch.device) -> Weight:
    """The members' weights as one: the number that all have, or a tensor (K,)."""
    return weights[0] if len(set(weights)) == 1 else torch.tensor(weights, device=device)


def stack_settings(settings: Sequence[Settings], device: torch.device) -> Settings:
    """The members' settings as one: numbers in which they differ become tensors (K,).

    Args:
        settings: K dataclasses of one class, such as an objective.
        device: Device of the tensors.

    Raises:
        KdganError: They differ in something that is not a number.
    """
    first: Any = settings[0]
    if all(other == first for other in settings):
        return settings[0]
    if not dataclasses.is_dataclass(first) or len({type(other) for other in settings}) > 1:
        kinds = ", ".join(sorted({type(other).__name__ for other in settings}))
        raise KdganError("Settings that differ in a fleet need one dataclass", f"got {kinds}", "Train these alone")
    stacked = object.__new__(type(first))
    for field in dataclasses.fields(first):
        values = [getattr(other, field.name) for other in settings]
        is_number = all(isinstance(value, float | int) and not isinstance(value, bool) for value in values)
        if not is_number and any(value != values[0] for value in values):
            raise KdganError(
                f"Members of a fleet differ in {field.name}",
                f"got {', '.join(sorted({str(value) for value in values}))}",
                "Train those that differ in it one after the other",
            )
        object.__setattr__(stacked, field.name, stack_weight(values, device) if is_number else values[0])
    return stacked  # type: ignore[return-value]


def _check_members(members: Sequence[TrainState]) -> None:
    if any(member.connectors is not None and list(member.connectors.parameters()) for member in members):
        raise KdganError(
            "Members of a fleet need their teacher's shapes", "found connectors", "Train them one after the other"
        )
    for name, values in (
        ("betas", [member.betas for member in members]),
        ("ema_decay", [member.ema_decay for member in members]),
        ("kind of objective", [type(member.objective).__name__ for member in members]),
    ):
        if len(set(values)) > 1:
            raise KdganError(
                f"Members of a fleet differ in {name}",
                f"got {', '.join(sorted(map(str, set(values))))}",
                "Train those that differ in it one after the other",
            )
