"""Further terms of K_l: which loss compares which tap of teacher and student. A loss is one row of ``TERM_LOSSES``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.objective import Outputs, check_weights
from kdgan_compress.losses import (
    Distance,
    attention,
    correlation,
    cosine,
    fsp,
    l1,
    l2,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

if TYPE_CHECKING:
    from jaxtyping import Float


WithinBatch = Callable[..., Tensor]
"""Called with a loss that compares images and its features (B, ...): one value per sample (``TrainState``)."""


@dataclass(frozen=True)
class TermLoss:
    """A loss that a term may name.

    Attributes:
        function: Called with the student's features, then the teacher's, each (B, ...); one value per sample.
        num_taps: How many taps it reads of each network.
        num_images: How many images of a batch it needs: 1, or more if it compares them with each other.
        needs_one_shape: Whether the student's feature needs its teacher's shape, by a connector where it differs.
        has_distance: Whether the function takes K_l's ``distance``, mean or norm.
    """

    function: Callable[..., Tensor]
    num_taps: int = 1
    num_images: int = 1
    needs_one_shape: bool = True
    has_distance: bool = False


TERM_LOSSES = {
    "l1": TermLoss(l1, has_distance=True),
    "l2": TermLoss(l2, has_distance=True),
    "cosine": TermLoss(cosine),
    "correlation": TermLoss(correlation),
    "attention": TermLoss(attention, needs_one_shape=False, has_distance=True),
    "fsp": TermLoss(fsp, num_taps=2, has_distance=True),
    "rkd_distance": TermLoss(rkd_distance, num_images=3, needs_one_shape=False),
    "rkd_angle": TermLoss(rkd_angle, num_images=3, needs_one_shape=False),
    "sp": TermLoss(similarity_preserving, num_images=2, needs_one_shape=False),
}
"""Name in a recipe → loss."""


@dataclass(frozen=True)
class Term:
    """One term of K_l: how far the student's feature is from the teacher's.

    Attributes:
        tap: Name of a tap, or the dotted path of a submodule that both generators have; two of them for ``"fsp"``.
            Where the channels differ and the loss compares values, a connector is trained with the student.
        weight: ≥ 0.
        loss: A name in ``TERM_LOSSES``: ``"l2"`` as for K_1 and K_2, ``"l1"`` as for K_x, ….

    Raises:
        KdganError: Another loss, or it needs another number of taps.
    """

    tap: str | tuple[str, str]
    weight: float = 1.0
    loss: str = "l2"

    def __post_init__(self) -> None:
        check_weights(weight=self.weight)
        if self.loss not in TERM_LOSSES:
            matches = difflib.get_close_matches(self.loss, TERM_LOSSES, n=1)
            hint = f"Choose one of {', '.join(TERM_LOSSES)}{f', perhaps {matches[0]}' if matches else ''}"
            raise KdganError("A term of K_l needs a known loss", f"got {self.loss!r}", hint)
        num_taps = TERM_LOSSES[self.loss].num_taps
        if len(self.taps) != num_taps:
            names = "tap: NAME" if num_taps == 1 else "tap: [FIRST, SECOND]"
            found = f"got {len(self.taps)}: {', '.join(self.taps)}"
            raise KdganError(f"The loss {self.loss} reads {num_taps} tap{'s'[: num_taps - 1]}", found, f"Give {names}")

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps that it reads."""
        return (self.tap,) if isinstance(self.tap, str) else tuple(self.tap)

    @property
    def name(self) -> str:
        """Its name in the log."""
        return "_".join(["k", *([] if self.loss in ("l1", "l2") else [self.loss]), *self.taps])

    def check_batch_size(self, batch_size: int) -> None:
        """Check that a batch has as many images as the loss compares.

        Raises:
            KdganError: It has fewer.
        """
        num_images = TERM_LOSSES[self.loss].num_images
        if batch_size < num_images:
            raise KdganError(
                f"The loss {self.loss} compares images with each other and needs batches of at least {num_images}",
                f"got {batch_size}",
                f"Give --batch-size {num_images} or more and as many images, or remove the term",
            )

    def per_sample(
        self, student: Outputs, teacher: Outputs, distance: Distance, within_batch: WithinBatch
    ) -> Float[Tensor, " B"]:
        """The loss of each sample; no gradient reaches the teacher.

        Raises:
            KdganError: The features do not fit the loss.
        """
        loss = TERM_LOSSES[self.loss]
        features = [*(student[tap] for tap in self.taps), *(teacher[tap].detach() for tap in self.taps)]
        try:
            if loss.num_images > 1:
                return within_batch(loss.function, *features)
            return loss.function(*features, distance) if loss.has_distance else loss.function(*features)
        except KdganError as error:
            problem = f"{error.problem} (term {self.loss} on {' and '.join(self.taps)})"
            raise KdganError(problem, error.found, error.hint) from None
