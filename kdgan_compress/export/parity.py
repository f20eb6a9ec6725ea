"""Parity: whether ONNX Runtime's scores are torch's."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from kdgan_compress.errors import KdganError
from kdgan_compress.export.golden import sample_images, sample_sizes
from kdgan_compress.gans import ImageFormat, anomaly_score, normalize_images
from kdgan_compress.runtime import Detector

PARITY_TOLERANCE = 1e-4
SMALLEST_SCORE = 1e-6
"""Below it a difference counts as that of a score of this size."""


def parity(detector: Detector, generator: nn.Module, image_format: ImageFormat) -> float:
    """Largest relative difference of scores between an exported detector and torch, over images of several sizes."""
    side = image_format.image_size
    differences = []
    for height, width in sample_sizes(side, detector.frame):
        images = sample_images(height, width, image_format.image_channels)
        chw = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            resized = interpolate(chw, (side, side), mode="bilinear", antialias=True, align_corners=False)
            expected = anomaly_score(generator, normalize_images(resized)).numpy()
        differences.append(relative_difference(detector.score(images).score, expected))
    return float(np.max(differences))  # NaN if any is, which the built-in max would pass over


def relative_difference(scores: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Largest |a − b| / |b|; scores near 0 count as 1e-6."""
    difference = np.abs(np.float64(scores) - np.float64(expected))
    return float(np.max(difference / np.maximum(np.abs(expected), SMALLEST_SCORE)))


def check_parity(difference: float) -> None:
    """Hold the bound of what is exact.

    Raises:
        KdganError: The difference is larger than 1e-4, or no number.
    """
    if not difference <= PARITY_TOLERANCE:
        raise KdganError(
            f"Scores of torch and ONNX Runtime must agree to {PARITY_TOLERANCE:g} relative",
            f"they differ by {difference:.2g}",
            "Please report this with the versions of torch and onnxruntime; no file was written",
        )
