"""Anomaly scores of many images. The network runs in evaluation mode, so an image's score depends on no other image."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, anomaly_score, eval_mode, has_score_terms, normalize_images

# Measured on one thread at 32×32: 128 is within 8 % of the best batch size for wide and narrow networks and for cvgad,
# channels_last is slower for all of them, and replacing the norms saves 3 to 15 %.
EVAL_BATCH_SIZE = 128
CALIBRATION_BATCH_SIZE = 256
MAX_CALIBRATION_IMAGES = 5000
SAME_SCORE_RTOL = 1e-3
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def score_images(generator: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """Raw anomaly scores, never clamped or squashed.

    Args:
        generator: Has a method ``anomaly_score``.
        images: uint8 (N, C, S, S); N may be 0.

    Returns:
        (N,), higher is more anomalous.
    """
    if len(images) == 0:
        return np.empty(0)
    return _run_fast(generator, lambda batch: anomaly_score(generator, batch), images).numpy()


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
    momenta = [layer.momentum for layer in layers]
    with torch.no_grad(), eval_mode(generator):
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
        for batch in normals.chunk(-(-len(normals) // CALIBRATION_BATCH_SIZE)):
            generator(normalize_images(batch.to(layers[0].weight.device)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def paper_scores(generator: nn.Module, images: Tensor) -> NDArray[np.float64]:
    """Scores as in CVGAD's paper: each term is scaled to [0, 1] by its minimum and maximum over the *test set*.

    A deployed detector cannot do that, and each image's score depends on the others: use these scores only to compare
    with the paper's numbers.

    Args:
        generator: Has ``score_terms``.
        images: The whole test set, uint8 (N, C, S, S), N ≥ 1.

    Raises:
        KdganError: The generator's score is not a sum of terms.
    """
    if not has_score_terms(generator):
        raise KdganError(
            "Scores in the paper's mode need a sum of scaled terms, as in cvgad",
            f"the score of {type(generator).__name__} is a single number",
            "Leave out --mode paper",
        )
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
    with torch.no_grad(), eval_mode(gan.generator), FeatureHooks(gan.generator, {name: gan.taps[name]}) as taps:
        return _run_in_batches(gan.generator, lambda batch: taps(batch)[name], images).float()


def _score_terms(generator: nn.Module, images: Tensor) -> Tensor:
    return _run_fast(generator, generator.score_terms, images)  # type: ignore[arg-type]


def _run_fast(network: nn.Module, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``compute`` over all images with fast norms, if they give the same values for the first image."""
    with torch.no_grad(), eval_mode(network):
        expected = _run_in_batches(network, compute, images[:1])
        with _fast_norms(network):
            first = _run_in_batches(network, compute, images[:1])
            if torch.allclose(first, expected, rtol=SAME_SCORE_RTOL, equal_nan=True):
                return _run_in_batches(network, compute, images)
        return _run_in_batches(network, compute, images)


def _run_in_batches(network: nn.Module, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``compute`` over batches of images, concatenated: float64 on the CPU."""
    device = next((parameter.device for parameter in network.parameters()), images.device)
    batches = images.split(EVAL_BATCH_SIZE)
    return torch.cat([compute(normalize_images(batch.to(device))).double().cpu() for batch in batches])


@contextmanager
def _fast_norms(network: nn.Module) -> Iterator[None]:
    """Inside ``with``, batch norm is folded into the convolution before it and instance norm runs as group norm.

    Only neighbours in an ``nn.Sequential`` are folded. The network is in evaluation mode.
    """
    replacements = [
        (parent, name, getattr(parent, name), module)
        for parent in network.modules()
        for name, module in (_folded(parent) if isinstance(parent, nn.Sequential) else {}).items()
    ]
    replacements += [
        (parent, name, module, _as_group_norm(module))
        for parent in network.modules()
        for name, module in parent.named_children()
        if isinstance(module, nn.InstanceNorm2d) and not module.track_running_stats
    ]
    try:
        for parent, name, _, module in replacements:
            setattr(parent, name, module)
        yield
    finally:
        for parent, name, original, _ in replacements:
            setattr(parent, name, original)


def _folded(layers: nn.Sequential) -> dict[str, nn.Module]:
    """Convolutions with the batch norm after them folded in, and identities in place of the norms, by child name."""
    folded: dict[str, nn.Module] = {}
    for (conv_name, conv), (norm_name, norm) in itertools.pairwise(layers.named_children()):
        if (
            isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
            and isinstance(norm, nn.BatchNorm2d)
            and norm.track_running_stats
            and (conv.groups == 1 or isinstance(conv, nn.Conv2d))
            and "weight" in dict(conv.named_parameters(recurse=False))  # not computed, by spectral norm for example
        ):
            is_transposed = isinstance(conv, nn.ConvTranspose2d)
            folded |= {conv_name: fuse_conv_bn_eval(conv, norm, is_transposed), norm_name: nn.Identity()}
    return folded


def _as_group_norm(norm: nn.InstanceNorm2d) -> nn.GroupNorm:
    group_norm = nn.GroupNorm(norm.num_features, norm.num_features, norm.eps, affine=norm.affine)
    group_norm.weight, group_norm.bias = norm.weight, norm.bias
    return group_norm.eval()
