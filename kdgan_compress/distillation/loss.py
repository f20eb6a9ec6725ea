"""The distillation loss K_l of P-KDGAN."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.objective import Outputs, check_weights, is_used
from kdgan_compress.losses import Reduction, l1, l2


@dataclass(frozen=True)
class Distillation:
    """K_l = w1 K_1 + wx K_x + w2 K_2 (Eq. 7): how far the student's z1, x̂ and z2 are from the teacher's.

    The paper weighs norms 1, 1, 1; with means, latents that count five times the image did best (docs/results.md).

    Attributes:
        w1: Weight of K_1.
        wx: Weight of K_x.
        w2: Weight of K_2.
        reduction: Of all three.
        re_encode: Take z1 of its own x̂ for the z2 of a GAN that has no second encoder; otherwise such a GAN has no K_2.
    """

    w1: float = 50.0
    wx: float = 10.0
    w2: float = 50.0
    reduction: Reduction = "mean"
    re_encode: bool = False

    def __post_init__(self) -> None:
        check_weights(w1=self.w1, wx=self.wx, w2=self.w2)

    def loss(
        self, student: Outputs, teacher: Outputs, shares: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum and its unweighted terms ``k1``, ``kx``, ``k2``, of the taps that both networks have.

        Args:
            student: Tapped outputs, after connectors where shapes differ.
            teacher: The teacher's for the same images; no gradient goes there.
            shares: In a fleet, how much each image counts for each member (B, K).

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
                terms[name] = distance(student[tap], teacher[tap].detach(), self.reduction, shares)
                weighted.append(weight * terms[name])
        if not terms:
            raise KdganError(
                "Teacher and student must have a tap of z1, x_hat or z2 in common",
                f"got {sorted(teacher)} and {sorted(student)}",
                "Name the taps of both by these names",
            )
        return torch.stack(weighted).sum(0), terms

    @property
    def encodes_again(self) -> bool:
        """Whether a missing z2 is made from x̂."""
        return self.re_encode and is_used(self.w2)

    def with_z2(self, outputs: Outputs, forward: Callable[[Tensor], Outputs]) -> Outputs:
        """Tapped outputs, with z1 of x̂ for a missing z2 where ``re_encode`` asks for it.

        Args:
            outputs: Of one pass.
            forward: Runs the same generator once and gives its tapped outputs.
        """
        if not self.encodes_again or "z2" in outputs:
            return outputs
        return {**outputs, "z2": forward(outputs["x_hat"])["z1"]}
