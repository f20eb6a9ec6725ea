"""Running a generator over images in evaluation mode: a batch's other images never touch a score."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, anomaly_score, eval_mode, has_score_terms, normalize_images

BATCH = 256
MAX_CALIBRATION_IMAGES = 5000
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
    return _over_batches(generator, lambda batch: anomaly_score(generator, batch), images).numpy()


def recalibrate(generator: nn.Module, normals: Tensor) -> None:
    """Find on training normals what a finished training leaves open; nothing happens to generators without it.

    Batch norm's running statistics, which belong to the weights of many steps ago and, of averaged weights, to others
    altogether, are taken anew. So are the scales of a score that is a sum of terms.

    Args:
        generator: Where it has ``score_terms``, its ``fit_score_scale`` is called with them.
        normals: uint8 (N, C, S, S), N ≥ 1; of more than 5,000 an even choice is taken.
    """
    chosen = normals[:: -(-len(normals) // MAX_CALIBRATION_IMAGES)]
    _fit_batch_norms(generator, chosen)
    if has_score_terms(generator):
        generator.fit_score_scale(_score_terms(generator, chosen))  # type: ignore[operator]


def _fit_batch_norms(generator: nn.Module, normals: Tensor) -> None:
    """Running statistics as the mean over batches of one size, each layer fed by batch statistics below it."""
    layers = [layer for layer in generator.modules() if isinstance(layer, BATCH_NORMS) and layer.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    with torch.no_grad(), eval_mode(generator):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
        for batch in normals.chunk(-(-len(normals) // BATCH)):
            generator(normalize_images(batch.to(layers[0].weight.device)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def paper_scores(generator: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """Scores as CVGAD's paper has them: each term brought to [0, 1] by its least and largest value in the *test set*.

    No deployed detector can do that, and what it says of one test image depends on the others: figures by it compare
    with the paper's, and are of no other use.

    Args:
        generator: Has ``score_terms``.
        images: The whole test set, uint8 (N, C, S, S), N ≥ 1.

    Raises:
        KdganError: The generator's score has no terms to be scaled.
    """
    if not has_score_terms(generator):
        raise KdganError(
            "Scores in the paper's mode must be a sum of scaled terms, as cvgad's",
            f"{type(generator).__name__} scores by one number",
            "Leave the mode out",
        )
    terms = _score_terms(generator, images)
    low, high = terms.amin(0), terms.amax(0)
    scaled: NDArray[np.float64] = ((terms - low) / (high - low).clamp(min=torch.finfo().tiny)).sum(1).numpy()
    return scaled


def encode(gan: Gan, images: Tensor) -> Tensor:
    """z1 (N, latent) of images uint8 (N, C, S, S), N ≥ 1: of cvgad μ."""
    return _tapped(gan, "z1", images)


def reconstruct(gan: Gan, images: Tensor) -> Tensor:
    """x̂ of images uint8 (N, C, S, S), N ≥ 1, as floats in [−1, 1]."""
    return _tapped(gan, "x_hat", images)


def _tapped(gan: Gan, name: str, images: Tensor) -> Tensor:
    with FeatureHooks(gan.generator, {name: gan.taps[name]}) as taps:
        return _over_batches(gan.generator, lambda batch: taps(batch)[name], images).float()


def _score_terms(generator: nn.Module, images: Tensor) -> Tensor:
    return _over_batches(generator, generator.score_terms, images)  # type: ignore[arg-type]


def _over_batches(generator: nn.Module, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What ``compute`` makes of all images, float64 on the CPU."""
    device = next((parameter.device for parameter in generator.parameters()), images.device)
    with torch.no_grad(), eval_mode(generator):
        return torch.cat([compute(normalize_images(batch.to(device))).double().cpu() for batch in images.split(BATCH)])
