"""Running a generator over images in evaluation mode: a batch's other images never touch a score."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdgan_compress.gans import Gan, anomaly_score, evaluating, to_network_range
from kdgan_compress.taps import Taps

BATCH = 256


def score_images(generator: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """Raw scores, never clamped or squashed.

    Args:
        generator: Has a method ``anomaly_score``.
        images: uint8 (N, C, S, S); N may be 0.

    Returns:
        (N,), higher is more novel.
    """
    if len(images) == 0:
        return np.empty(0)
    with torch.no_grad(), evaluating(generator):
        scores = [anomaly_score(generator, to_network_range(batch)).double().numpy() for batch in images.split(BATCH)]
    return np.concatenate(scores)


def reconstruct(gan: Gan, images: Tensor) -> Tensor:
    """x̂ of images uint8 (N, C, S, S), as floats in [−1, 1]."""
    with torch.no_grad(), evaluating(gan.generator), Taps(gan.generator, {"x_hat": gan.taps["x_hat"]}) as taps:
        return taps(to_network_range(images))["x_hat"]
