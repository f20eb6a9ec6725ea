"""Anomaly scores of many images. The network runs in evaluation mode, so an image's score depends on no other image.
On a GPU, too, it is computed in float32: the detector that is exported computes no TF32.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdgan_compress.accel.layers import fast_layers
from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.distillation.precision import precision_context
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, anomaly_score, eval_mode, has_score_terms, normalize_images
from kdgan_compress.scores import FittedScorer

# Measured on one thread at 32×32: 128 is within 8 % of the best batch size for wide and narrow networks and for cvgad,
# channels_last is slower for all of them, folding batch norm gains nothing, and the fast layers save 8 to 32 %.
EVAL_BATCH_SIZE = 128
CALIBRATION_BATCH_SIZE = 256
MAX_CALIBRATION_IMAGES = 5000
MAX_TILES_PER_BATCH = 512
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def score_images(generator: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """Raw anomaly scores (N,) of images uint8 (N, C, S, S), or photos (N, C, H, W), N ≥ 0; higher is more anomalous.

    The generator, or a ``FittedScorer``, has a method ``anomaly_score``. Scores are never clamped or squashed.
    """
    if len(images) == 0:
        return np.empty(0)
    return _run(generator, lambda batch: anomaly_score(generator, batch), images).numpy()


def map_photos(scorer: FittedScorer, photos: Tensor) -> NDArray[np.float32]:
    """Anomaly maps (N, H, W) of photos uint8 (N, C, H, W), N ≥ 1, in units of the score."""
    return _run(scorer, scorer.anomaly_map, photos).float().numpy()


def position_features(scorer: FittedScorer, images: Tensor) -> NDArray[np.float32]:
    """The features (N, P, D) at each position of images uint8 (N, C, S, S) or photos (N, C, H, W), N ≥ 1."""
    return _run(scorer, scorer.position_features, images, Tensor.float).numpy()


def recalibrate(generator: nn.Module, normals: Tensor) -> None:
    """Re-estimate the batch norm statistics and the score's scales on normal training images.

    Running statistics lag behind the last weights, and EMA weights have none that match; this is precise batch norm,
    like ``torch.optim.swa_utils.update_bn``. A generator without batch norm and without ``score_terms`` stays as it is.

    Args:
        generator: If it has ``score_terms``, its ``fit_score_scale`` is called with them.
        normals: uint8 (N, C, S, S), N ≥ 1; of more than 5,000, an evenly spaced subset is used.
    """
    chosen = normals[:: -(-len(normals) // MAX_CALIBRATION_IMAGES)]
    _update_batch_norms(generator, chosen)
    if has_score_terms(generator):
        generator.fit_score_scale(_score_terms(generator, chosen))  # type: ignore[operator]


def _update_batch_norms(generator: nn.Module, normals: Tensor) -> None:
    """Set running statistics to the mean over equal batches; each layer's input is normalised by batch statistics."""
    layers = [layer for layer in generator.modules() if isinstance(layer, BATCH_NORMS) and layer.track_running_stats]
    if not layers:
        return
    momenta, device = [layer.momentum for layer in layers], next(layers[0].buffers()).device
    with torch.no_grad(), precision_context("float32", device.type), eval_mode(generator), fast_layers(generator):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
        for batch in normals.chunk(-(-len(normals) // CALIBRATION_BATCH_SIZE)):
            generator(normalize_images(batch.to(device)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def paper_scores(generator: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """Scores as in CVGAD's paper: each term is scaled to [0, 1] by its minimum and maximum over the *test set*.

    ``images`` are the whole test set, uint8 (N, C, S, S), N ≥ 1. A deployed detector does not have it, and each image's
    score depends on the others: use these scores only to compare with the paper's numbers.

    Raises:
        KdganError: The generator's score is not a sum of terms.
    """
    if not has_score_terms(generator):
        problem = "Scores in the paper's mode need a sum of scaled terms, as in cvgad"
        found = f"the score of {type(generator).__name__} is a single number"
        raise KdganError(problem, found, "Leave out --mode paper")
    terms = _score_terms(generator, images)
    low, high = terms.amin(0), terms.amax(0)
    scaled: NDArray[np.float64] = ((terms - low) / (high - low).clamp(min=torch.finfo().tiny)).sum(1).numpy()
    return scaled


def encode(gan: Gan, images: Tensor) -> Tensor:
    """z1 (N, latent) of images uint8 (N, C, S, S), N ≥ 1; for cvgad, μ."""
    return _extract_feature(gan, "z1", images)


def reconstruct(gan: Gan, images: Tensor) -> Tensor:
    """x̂ of images uint8 (N, C, S, S), N ≥ 1, as floats in [−1, 1]."""
    return _extract_feature(gan, "x_hat", images)


def _extract_feature(gan: Gan, name: str, images: Tensor) -> Tensor:
    with FeatureHooks(gan.generator, {name: gan.taps[name]}) as taps:
        return _run(gan.generator, lambda batch: taps(batch)[name], images).float()


def _score_terms(generator: nn.Module, images: Tensor) -> Tensor:
    return _run(generator, generator.score_terms, images)  # type: ignore[arg-type]


def _run(
    network: nn.Module,
    compute: Callable[[Tensor], Tensor],
    images: Tensor,
    convert: Callable[[Tensor], Tensor] = Tensor.double,
) -> Tensor:
    """``compute`` over batches of images in evaluation mode, converted, concatenated and on the CPU."""
    grid = network.grid if isinstance(network, FittedScorer) else None
    batch_size = EVAL_BATCH_SIZE if grid is None else max(1, MAX_TILES_PER_BATCH // grid.num_tiles)
    device = next((parameter.device for parameter in network.parameters()), images.device)
    with torch.no_grad(), precision_context("float32", device.type), eval_mode(network), fast_layers(network):
        batches = [compute(normalize_images(batch.to(device))) for batch in images.split(batch_size)]
        return torch.cat([convert(batch).cpu() for batch in batches])
