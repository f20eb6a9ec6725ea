"""What an objective is: how a GAN trains on one batch, from the forward pass to the optimiser steps."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.gan import Gan

Outputs = Mapping[str, Tensor]
"""Features of one forward pass by name, each (B, ...)."""

Weight = float | Tensor
"""A coefficient. Where several models train together and differ in it, one value per model, (K,)."""

DistillationTerm = Callable[[Outputs], Tensor]
"""Computes λ K_l from the generator's outputs; an objective adds it to its generator loss."""


class GanState(Protocol):
    """What an objective reads and calls (``distillation.train_state.TrainState``)."""

    @property
    def gan(self) -> Gan:
        """The networks."""
        ...

    def forward(self, images: Tensor) -> Outputs:
        """Run the generator once on images (B, C, S, S) and return its features."""
        ...

    def reduce(self, per_sample: Tensor) -> Tensor:
        """The loss that is minimised: the mean of one value per sample (B,)."""
        ...

    def update(self, network: str, loss: Tensor, retain_graph: bool = False) -> None:
        """One optimiser step of ``"generator"`` or ``"discriminator"`` on a reduced loss."""
        ...


class Objective(Protocol):
    """A family's losses and the order of its updates."""

    def train_step(
        self,
        state: GanState,
        images: Tensor,
        weight_g: Weight,
        weight_d: Weight,
        step: int = 0,
        k_l: DistillationTerm | None = None,
    ) -> dict[str, Tensor]:
        """Train on one batch: forward pass, losses, update of the generator, update of the discriminator.

        Args:
            state: The GAN that is trained.
            images: (B, C, S, S) in [−1, 1].
            weight_g: Coefficient of L_g (α or μ), ≥ 0.
            weight_d: Coefficient of L_d (β or ν), ≥ 0; at 0 the discriminator is not updated.
            step: Index of the batch in its stage, from 0.
            k_l: λ K_l, added to the loss of the batch's first generator update; None where nothing is distilled.

        Returns:
            The unweighted, reduced losses by name, in the order in which they were computed.
        """
        ...


def is_nonzero(weight: Weight) -> bool:
    """Whether a coefficient is above 0; one per model is, since coefficients that differ cannot all be 0."""
    return isinstance(weight, Tensor) or weight > 0


def check_weights(**weights: float) -> None:
    """Check that every weight is a finite number ≥ 0.

    Raises:
        KdganError: Names the first that is not.
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise KdganError(
                "The weight of a loss is out of range", f"got {name} = {weight:g}", "Set it to a finite number ≥ 0"
            )
