"""Parity: ONNX Runtime's scores and anomaly maps of tiles equal torch's up to rounding."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from kdgan_compress.errors import KdganError
from kdgan_compress.export.validation.golden import sample_images, sample_sizes
from kdgan_compress.gans import ImageFormat, anomaly_score, normalize_images
from kdgan_compress.runtime import Detector
from kdgan_compress.scores import FittedScorer, input_size

PARITY_TOLERANCE = 1e-4
FITTED_PARITY_TOLERANCE = 1e-3
"""Of fitted scores: a whitening magnifies rounding differences of narrow directions."""

MIN_SCORE = 1e-6
"""Differences of smaller scores are divided by this value."""


def parity(detector: Detector, generator: nn.Module, image_format: ImageFormat) -> float:
    """Largest relative difference between the scores of a detector file and of torch, on images of several sizes.

    Maps of tiles are compared too, relative to the largest value of each.
    """
    size = input_size(generator, image_format.image_size)
    has_map = isinstance(generator, FittedScorer) and generator.grid is not None and detector.has_anomaly_map
    differences = []
    for height, width in sample_sizes(size, detector.input_size):
        images = sample_images(height, width, image_format.image_channels)
        chw = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        found = detector.score(images, maps=has_map)
        with torch.no_grad():
            resized = normalize_images(interpolate(chw, size, mode="bilinear", antialias=True, align_corners=False))
            differences.append(relative_difference(found.score, anomaly_score(generator, resized).numpy()))
            if has_map and found.anomaly_map is not None:
                expected = generator.anomaly_map(resized).numpy()  # type: ignore[operator]
                differences.append(map_difference(found.anomaly_map, expected))
    return float(np.max(differences))  # unlike the built-in max, this propagates NaN


def relative_difference(scores: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Largest |a − b| / max(|b|, 1e-6)."""
    difference = np.abs(np.float64(scores) - np.float64(expected))
    return float(np.max(difference / np.maximum(np.abs(expected), MIN_SCORE)))


def map_difference(maps: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Largest |a − b| of maps (…, H, W), relative to the largest |b| of the same map."""
    wanted = np.asarray(expected, dtype=np.float64)
    difference, largest = (np.abs(each).max(axis=(-2, -1)) for each in (np.asarray(maps, np.float64) - wanted, wanted))
    return float(np.max(difference / np.maximum(largest, MIN_SCORE)))


def check_parity(difference: float, is_fitted: bool) -> None:
    """Check that a relative difference is within the tolerance of exact exports.

    Raises:
        KdganError: It is larger than 1e-4 (1e-3 if the score is fitted), or NaN.
    """
    tolerance = FITTED_PARITY_TOLERANCE if is_fitted else PARITY_TOLERANCE
    if not difference <= tolerance:
        problem = f"Scores of torch and ONNX Runtime must agree to {tolerance:g} relative"
        hint = "Please report this with the versions of torch and onnxruntime; no file was written"
        raise KdganError(problem, f"they differ by {difference:.2g}", hint)
