"""What an objective is: it turns one batch into a row of updates, as a generator.

What stands after a ``yield`` runs when the optimiser has made the step, so the order of the lines is the order of the
algorithm.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan

Outputs = Mapping[str, Tensor]
Weight = float | Tensor
"""A coefficient; in a fleet whose members differ in it, one a member (K,)."""

Settings = TypeVar("Settings")


@dataclass(frozen=True, eq=False)
class Batch:
    """What an objective has to work with.

    Attributes:
        images: (B, C, S, S) in [−1, 1]; in a fleet of K (B, K · C, S, S).
        gan: The networks.
        forward: Runs the generator once and gives its tapped outputs.
        weight_g: Coefficient of L_g (α or μ), ≥ 0.
        weight_d: Coefficient of L_d (β or ν); at 0 the discriminator is not moved.
        distils: Whether K_l is to be added; exactly one update must then carry the generator's outputs.
        step: Number of the batch in its stage, from 0.
        shares: In a fleet, how much each image counts for each member (B, K); losses are then (K,).
    """

    images: Tensor
    gan: Gan
    forward: Callable[[Tensor], Outputs]
    weight_g: Weight
    weight_d: Weight
    distils: bool
    step: int
    shares: Tensor | None = None

    @property
    def has_own_losses(self) -> bool:
        """Whether anything but K_l trains this GAN."""
        return is_used(self.weight_g) or is_used(self.weight_d)


@dataclass(frozen=True)
class Update:
    """One optimiser step of one network.

    Attributes:
        network: Whose optimiser steps.
        loss: What is minimised, a scalar or, in a fleet, (K,); None where the network has no loss of its own in this
            update.
        terms: The loss's unweighted parts by name, for the log.
        outputs: The generator's tapped outputs, where K_l is to be added to this update.
        keeps_graph: Whether a later update of the batch goes back through the same graph.
    """

    network: Literal["generator", "discriminator"]
    loss: Tensor | None
    terms: Outputs
    outputs: Outputs | None = None
    keeps_graph: bool = False


class Objective(Protocol):
    """How a family trains on a batch."""

    def updates(self, batch: Batch) -> Iterator[Update]:
        """The batch's updates, first one first."""
        ...


def is_used(weight: Weight) -> bool:
    """Whether a weight is above 0, for one member at least."""
    return isinstance(weight, Tensor) or weight > 0  # weights that differ can't all be 0


def together(weights: Sequence[float], device: torch.device | str = "cpu") -> Weight:
    """The members' weights as one: the number that all have, or (K,) on the device."""
    return weights[0] if len(set(weights)) == 1 else torch.tensor(weights, device=device)


def merge_settings(settings: Sequence[Settings], device: torch.device | str = "cpu") -> Settings:
    """The members' settings as those of their fleet: an objective's weights, say, ``together``.

    Args:
        settings: K dataclasses of one class.
        device: Of numbers that differ.

    Raises:
        KdganError: They differ in something that is no number.
    """
    first: Any = settings[0]
    if all(own == first for own in settings):
        return settings[0]
    if not dataclasses.is_dataclass(first):
        raise KdganError(
            "Settings that differ in a fleet must be dataclasses", f"got {type(first).__name__}", "Train these alone"
        )
    merged: Any = copy.copy(first)
    for field in dataclasses.fields(first):
        values = [getattr(own, field.name) for own in settings]
        if len(set(values)) > 1 and any(
            isinstance(value, bool) or not isinstance(value, float | int) for value in values
        ):
            raise KdganError(
                f"Members of a fleet must agree in {field.name}",
                f"got {', '.join(sorted(map(str, set(values))))}",
                "Train those that differ in it one after the other",
            )
        object.__setattr__(merged, field.name, together(values, device))
    return merged  # type: ignore[no-any-return]


def check_weights(**weights: float) -> None:
    """Check that every weight is a finite number ≥ 0.

    Raises:
        KdganError: Naming the first that is not.
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise KdganError("A loss's weight must be a finite number ≥ 0", f"got {name} = {weight:g}", "Mend it")
