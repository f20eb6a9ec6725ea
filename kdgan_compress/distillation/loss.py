"""The distillation loss K_l of P-KDGAN (Eq. 7, 8), over z1, x̂ and z2 and any further terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from kdgan_compress.distillation.terms import TERM_LOSSES, Term, WithinBatch
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan
from kdgan_compress.gans.objective import Outputs, Weight, check_weights, is_nonzero
from kdgan_compress.losses import Distance, l1, l2
from kdgan_compress.losses.distances import check_same_shape

if TYPE_CHECKING:
    from jaxtyping import Float


PAPERS_TAPS = ("z1", "x_hat", "z2")
"""Compared value by value in Eq. 7, whatever the further terms are."""


@dataclass(frozen=True)
class DistillationLoss:
    """K_l = w1 K_1 + wx K_x + w2 K_2 (Eq. 7), the residual term w_r K_r, and any further terms.

    The paper's weights are 1, 1, 1 with norms; with means, latents weighted five times the image did best
    (docs/notes/results.md). K_r = ‖(z1 − z2) − (ẑ1 − ẑ2)‖₂, with hats for the student, is not in the paper: the score
    is made of z1 − z2, in which the student's errors of z1 and z2 can add up or cancel out.

    Attributes:
        w1: Weight of K_1, the distance of z1.
        wx: Weight of K_x, the distance of x̂.
        w2: Weight of K_2, the distance of z2.
        distance: ``"mean"`` or ``"norm"`` for all terms (``losses.distances``).
        re_encode: Use z1 of x̂ as the z2 of a GAN that has no second encoder; otherwise such a GAN has no K_2.
        terms: Further terms.
        w_r: Weight of K_r, the distance of z1 − z2; above 0, teacher and student both need a z2.
    """

    w1: float = 50.0
    wx: float = 10.0
    w2: float = 50.0
    distance: Distance = "mean"
    re_encode: bool = False
    terms: tuple[Term, ...] = ()
    w_r: float = 0.0

    def __post_init__(self) -> None:
        check_weights(w1=self.w1, wx=self.wx, w2=self.w2, w_r=self.w_r)

    def __call__(
        self, student: Outputs, teacher: Outputs, within_batch: WithinBatch | None = None
    ) -> Iterator[tuple[str, Weight, Float[Tensor, " B"]]]:
        """Each term's name, weight and value per sample, of the taps that both networks have.

        Args:
            student: The student's features, after its connectors.
            teacher: The teacher's features of the same images; no gradient reaches it.
            within_batch: Computes the losses that compare images of a batch; None if all images are one model's.

        Raises:
            KdganError: The two have no tap in common, a feature does not fit its loss, or K_r has a weight and one has
                no z2.
        """
        common = student.keys() & teacher.keys()
        terms = [term for term in self._papers_terms() if term[1] in common]
        further = [term for term in self.terms if common.issuperset(term.taps)]
        if not terms and not further:
            raise KdganError(
                "Teacher and student need a tap of z1, x_hat or z2 in common",
                f"got {sorted(teacher)} and {sorted(student)}",
                "Name the taps of both by these names",
            )
        for name, tap, weight, distance in terms:
            yield name, weight, distance(student[tap], teacher[tap].detach(), self.distance)
        for term in further:
            yield term.name, term.weight, term.per_sample(student, teacher, self.distance, within_batch or _one_model)
        if is_nonzero(self.w_r):
            self._check_residual(common)
            yield "kr", self.w_r, l2(_residual(student), _residual(teacher).detach(), self.distance)

    def taps(self, gan: Gan) -> dict[str, str]:
        """Every tap that K_l reads in a GAN: names to dotted paths in its generator.

        Raises:
            KdganError: K_r has a weight, and the GAN has no z2.
        """
        self._check_residual([*gan.taps, "z2"] if self.re_encodes else gan.taps)
        further = {tap: tap for term in self.terms for tap in term.taps if tap != "z2" or not self.re_encodes}
        return {**further, **gan.taps}

    @property
    def connected_taps(self) -> set[str]:
        """The taps where the student's feature needs its teacher's shape; other losses compare different channels."""
        compared = [term for term in self.terms if TERM_LOSSES[term.loss].needs_one_shape]
        return {*PAPERS_TAPS, *(tap for term in compared for tap in term.taps)}

    @property
    def re_encodes(self) -> bool:
        """Whether a missing z2 is computed from x̂."""
        return self.re_encode and (is_nonzero(self.w2) or is_nonzero(self.w_r))

    def add_reencoded_z2(self, outputs: Outputs, forward: Callable[[Tensor], Outputs]) -> Outputs:
        """Features with z1 of x̂ in place of a missing z2, if ``re_encode`` asks for it.

        Args:
            outputs: Features of one forward pass.
            forward: Runs the same generator once and returns its features.
        """
        if not self.re_encodes or "z2" in outputs:
            return outputs
        return {**outputs, "z2": forward(outputs["x_hat"])["z1"]}

    def _check_residual(self, taps: Iterable[str]) -> None:
        if is_nonzero(self.w_r) and not {"z1", "z2"} <= set(taps):
            raise KdganError(
                "The residual term K_r needs z1 and z2 of teacher and student",
                f"got {', '.join(sorted(taps))}",
                "Set distillation.loss.w_r to 0, or distillation.loss.re_encode to true",
            )

    def _papers_terms(self) -> list[tuple[str, str, Weight, Callable[[Tensor, Tensor, Distance], Tensor]]]:
        return [("k1", "z1", self.w1, l2), ("kx", "x_hat", self.wx, l1), ("k2", "z2", self.w2, l2)]


def _one_model(loss: Callable[..., Tensor], *features: Tensor) -> Tensor:
    return loss(*features)


def _residual(features: Outputs) -> Tensor:
    """z1 − z2."""
    check_same_shape(features["z1"], features["z2"])
    return features["z1"] - features["z2"]
