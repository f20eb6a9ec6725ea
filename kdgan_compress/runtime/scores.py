"""The outputs of a detector for some images, checked before anyone relies on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError

REQUIRED_OUTPUTS = {"score": "float32", "is_anomaly": "bool"}
"""Outputs that every detector file has, and their dtypes."""


@dataclass(frozen=True, eq=False)
class Scores:
    """A detector's outputs for N images.

    Attributes:
        score: (N,) float32, higher is more anomalous.
        is_anomaly: (N,) bool, whether each score is above the threshold.
        relative: (N,) float64, score divided by the threshold: above 1 is an anomaly. None if the threshold is not
            positive, because the quotient then has no such meaning (a negative log-likelihood may be negative).
        reconstruction: The generator's reconstruction: uint8 (N, S, S, C), or float32 (N, C, S, S) from 0 to 1 if the
            detector takes floats. None if not requested.
        anomaly_map: float32; None if not requested. If the detector has a frame, (N, H, W) at the frame's size in units
            of the score: values above the threshold are defects. Otherwise (N, S, S) from 0 to 1: absolute difference
            of image and reconstruction, averaged over the channels.
    """

    score: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]
    relative: NDArray[np.float64] | None = None
    reconstruction: NDArray[np.generic] | None = None
    anomaly_map: NDArray[np.float32] | None = None


def make_scores(
    outputs: Mapping[str, NDArray[Any]], num_images: int, threshold: np.float32, frame: tuple[int, int] | None
) -> Scores:
    """Check a file's outputs and compute the relative scores.

    Args:
        outputs: Attribute of ``Scores`` → the file's output.
        num_images: Number of images that were scored.
        threshold: The threshold that the file compared with.
        frame: Height and width of the anomaly map; None if they are not known.

    Raises:
        KdganError: There is not one result per image, a score is NaN, or the anomaly map has another size.
    """
    for name, array in outputs.items():
        if array.shape[:1] != (num_images,) or (name in REQUIRED_OUTPUTS and array.ndim != 1):
            found = f"{name} has shape {array.shape} for {num_images} images"
            hint = "Export the model again; its score must not depend on the other images of a batch"
            raise KdganError("The detector must give one result per image", found, hint)
    score = outputs["score"]
    if (invalid := np.isnan(score)).any():
        found = f"the score of image {int(np.argmax(invalid))} is NaN"
        raise KdganError("Scores must be numbers", found, "Export the model again, or leave this image out")
    if frame is not None and "anomaly_map" in outputs and outputs["anomaly_map"].shape[1:] != frame:
        found = f"it has shape {outputs['anomaly_map'].shape}, the frame is {frame}"
        raise KdganError("The anomaly map needs the frame's size", found, "Export the model again")
    return Scores(**outputs, relative=score.astype(np.float64) / float(threshold) if threshold > 0 else None)
