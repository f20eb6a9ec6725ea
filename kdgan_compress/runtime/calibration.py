"""Find a detector's threshold again from good photos of the place where it works: camera and light differ there."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError

THRESHOLD_QUANTILE = 0.99
"""Quantile of the good photos' scores, as in an export."""

MIN_PHOTOS = 20
"""With fewer good photos the threshold is little more than the score of one of them."""


@dataclass(frozen=True)
class Calibration:
    """A new threshold, and the false alarms on the photos it was found from.

    Attributes:
        threshold: The new threshold.
        threshold_rule: How it was found, as text for the metadata.
        old_threshold: The threshold before.
        num_photos: Number of good photos.
        alarms_before: How many of them are above the old threshold.
        alarms_after: How many of them are above the new threshold.
    """

    threshold: float
    threshold_rule: str
    old_threshold: float
    num_photos: int
    alarms_before: int
    alarms_after: int


def check_quantile(quantile: float) -> None:
    """Check that a quantile is in (0, 1).

    Raises:
        KdganError: It is not.
    """
    if not 0 < quantile < 1:
        hint = f"{THRESHOLD_QUANTILE} is the default"
        raise KdganError("The quantile must be between 0 and 1", f"got {quantile}", hint)


def find_threshold(
    scores: NDArray[np.float32], old_threshold: float, quantile: float = THRESHOLD_QUANTILE
) -> Calibration:
    """Find the threshold at a quantile of good photos' scores.

    Args:
        scores: (N,) float32, N ≥ 1, finite.
        old_threshold: The threshold to compare with.
        quantile: In (0, 1).

    Raises:
        KdganError: There is no score, or the quantile is not in (0, 1).

    Example:
        >>> import numpy as np
        >>> find_threshold(np.float32([1, 2, 3, 4, 5]), old_threshold=2, quantile=0.5).threshold
        3.0
    """
    check_quantile(quantile)
    if not len(scores):
        raise KdganError("Calibration needs good photos", "none could be scored", "Give more photos of good parts")
    threshold = float(np.quantile(scores.astype(np.float64), quantile))
    return Calibration(
        threshold,
        f"{quantile:.4g} quantile of {len(scores)} good photos' scores, by calibrate",
        old_threshold,
        len(scores),
        *(int((scores > np.float32(each)).sum()) for each in (old_threshold, threshold)),
    )
