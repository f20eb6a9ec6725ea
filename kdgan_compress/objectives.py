"""Which losses update which network in which order, a family at a time, and the distillation loss K_l.

An objective turns one batch into a row of updates. It is a generator: what stands after a ``yield`` runs when the
optimiser has made the step, so the order of the lines is the order of the algorithm.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.losses import Reduction, discriminator_cross_entropy, l1, l2

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Update:
    """One optimiser step of one network.

    Attributes:
        network: Whose optimiser steps.
        loss: What is minimised, a scalar; None where the network has no loss of its own in this set.
        terms: The loss's unweighted parts by their names in Table I, for the log.
        outputs: The tapped outputs behind a generator's loss; where they are given, K_l can be added.
    """

    network: Literal["generator", "discriminator"]
    loss: Tensor | None
    terms: Outputs
    outputs: Outputs | None = None


class Objective(Protocol):
    """How a family trains on a batch."""

    def updates(
        self,
        forward: Callable[[Tensor], Outputs],
        discriminator: nn.Module | None,
        images: Tensor,
        weight_g: float,
        weight_d: float,
    ) -> Iterator[Update]:
        """Updates for one batch.

        Args:
            forward: Runs the generator once and gives its tapped outputs.
            discriminator: Returns (f(x), logit); None where there is none.
            images: (B, C, S, S) in [−1, 1].
            weight_g: Coefficient of L_g (α or μ); at 0 the generator is still run, for K_l.
            weight_d: Coefficient of L_d (β or ν); at 0 the discriminator is not moved.
        """
        ...


@dataclass(frozen=True)
class GanomalyObjective:
    """GANomaly's step: the generator on L_g (Eq. 6), then the discriminator on L_d, both of one forward pass.

    L_g = w_con S_con + w_enc S_enc + w_adv S_adv. A family without z2 has no S_enc. D's gradient is no part of the
    generator's update, and f(x) is a constant in it.
    """

    w_con: float = 10.0
    w_enc: float = 1.0
    w_adv: float = 1.0
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        _check_weights(w_con=self.w_con, w_enc=self.w_enc, w_adv=self.w_adv)

    def updates(
        self,
        forward: Callable[[Tensor], Outputs],
        discriminator: nn.Module | None,
        images: Tensor,
        weight_g: float,
        weight_d: float,
    ) -> Iterator[Update]:
        """See ``Objective.updates``."""
        outputs = forward(images)
        if weight_g == 0 and weight_d == 0:
            yield Update("generator", None, {}, outputs)
            return
        if discriminator is None:
            raise KdganError(
                "A GAN that trains on its own losses must have a discriminator",
                "found none",
                "Give the Gan one, or distil by structure 1 (K_l alone)",
            )
        features, logit = discriminator(images)

        loss, terms = None, {}
        if weight_g > 0:
            features_hat, _ = discriminator(outputs["x_hat"])
            terms = {
                "s_con": l1(images, outputs["x_hat"], self.reduction),
                "s_adv": l2(features.detach(), features_hat, self.reduction),
            }
            loss = self.w_con * terms["s_con"] + self.w_adv * terms["s_adv"]
            if "z2" in outputs:
                terms["s_enc"] = l2(outputs["z1"], outputs["z2"], self.reduction)
                loss = loss + self.w_enc * terms["s_enc"]
            loss = weight_g * loss
        yield Update("generator", loss, terms, outputs)

        if weight_d > 0:
            _, logit_hat = discriminator(outputs["x_hat"].detach())
            cross_entropy = discriminator_cross_entropy(logit, logit_hat)
            yield Update("discriminator", weight_d * cross_entropy, {"s_ce": cross_entropy})


@dataclass(frozen=True)
class Distillation:
    """K_l = w1 K_1 + wx K_x + w2 K_2 (Eq. 7): how far the student's z1, x̂ and z2 are from the teacher's.

    The paper weighs norms 1, 1, 1; with means, latents that count five times the image did best (docs/results.md).
    """

    w1: float = 50.0
    wx: float = 10.0
    w2: float = 50.0
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        _check_weights(w1=self.w1, wx=self.wx, w2=self.w2)

    def loss(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum and its unweighted terms ``k1``, ``kx``, ``k2``, of the taps that both networks have.

        Args:
            student: Tapped outputs, after connectors where shapes differ.
            teacher: The teacher's for the same images; no gradient goes there.

        Raises:
            KdganError: The two have no tap in common, or shapes differ.
        """
        terms: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        for tap, name, weight, distance in (
            ("z1", "k1", self.w1, l2),
            ("x_hat", "kx", self.wx, l1),
            ("z2", "k2", self.w2, l2),
        ):
            if tap in student and tap in teacher:
                terms[name] = distance(student[tap], teacher[tap].detach(), self.reduction)
                weighted.append(weight * terms[name])
        if not terms:
            raise KdganError(
                "Teacher and student must have a tap of z1, x_hat or z2 in common",
                f"got {sorted(teacher)} and {sorted(student)}",
                "Name the taps of both by these names",
            )
        return torch.stack(weighted).sum(), terms


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise KdganError("A loss's weight must be a finite number ≥ 0", f"got {name} = {weight:g}", "Mend it")
