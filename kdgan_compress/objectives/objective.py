"""What an objective is: it turns one batch into a row of updates, as a generator.

What stands after a ``yield`` runs when the optimiser has made the step, so the order of the lines is the order of the
algorithm.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """What an objective has to work with.

    Attributes:
        images: (B, C, S, S) in [−1, 1].
        gan: The networks.
        forward: Runs the generator once and gives its tapped outputs.
        weight_g: Coefficient of L_g (α or μ), ≥ 0.
        weight_d: Coefficient of L_d (β or ν); at 0 the discriminator is not moved.
        distils: Whether K_l is to be added; exactly one update must then carry the generator's outputs.
        step: Number of the batch in its stage, from 0.
    """

    images: Tensor
    gan: Gan
    forward: Callable[[Tensor], Outputs]
    weight_g: float
    weight_d: float
    distils: bool
    step: int

    @property
    def has_own_losses(self) -> bool:
        """Whether anything but K_l trains this GAN."""
        return self.weight_g > 0 or self.weight_d > 0


@dataclass(frozen=True)
class Update:
    """One optimiser step of one network.

    Attributes:
        network: Whose optimiser steps.
        loss: What is minimised, a scalar; None where the network has no loss of its own in this update.
        terms: The loss's unweighted parts by name, for the log.
        outputs: The generator's tapped outputs, where K_l is to be added to this update.
    """

    network: Literal["generator", "discriminator"]
    loss: Tensor | None
    terms: Outputs
    outputs: Outputs | None = None


class Objective(Protocol):
    """How a family trains on a batch."""

    def updates(self, batch: Batch) -> Iterator[Update]:
        """The batch's updates, first one first."""
        ...


def check_weights(**weights: float) -> None:
    """Check that every weight is a finite number ≥ 0.

    Raises:
        KdganError: Naming the first that is not.
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise KdganError("A loss's weight must be a finite number ≥ 0", f"got {name} = {weight:g}", "Mend it")
