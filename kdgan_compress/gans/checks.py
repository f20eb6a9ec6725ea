"""Checks of a user's own GAN: each mistake is reported once, when it is built or exported, and not by a wrong score."""

import difflib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.architecture import ImageFormat
from kdgan_compress.gans.gan import Gan, Scorer, anomaly_score, eval_mode
from kdgan_compress.gans.user_code import describe, place, user_code

NUM_IMAGES = 3
RTOL = 1e-3
"""Largest difference of an image's score alone and in a batch, relative to the largest score; kernels round by less."""

REQUIRED_TAPS = ("z1", "x_hat")
METHOD = "Give the generator a method anomaly_score(images) that returns one score per image"


def check_gan(gan: object, image_format: ImageFormat) -> None:
    """Check a GAN before it is trained: its networks, its taps and its score.

    Args:
        gan: What a family built.
        image_format: Size and channels of its images.

    Raises:
        KdganError: The first mistake.

    Example:
        >>> from kdgan_compress.gans import Architecture, build
        >>> check_gan(build(Architecture(channels=(1, 2, 4))), Architecture(channels=(1, 2, 4)))
    """
    if not isinstance(gan, Gan):
        raise KdganError("A family needs to build a Gan", f"got {type(gan).__name__}", "Return kdgan_compress.Gan(…)")
    for name, network in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        if name == "generator" or network is not None:
            _check_network(name, network)
    _check_taps(gan)
    check_score(gan.generator, image_format)


def check_score(generator: nn.Module, image_format: ImageFormat) -> None:
    """Check that a generator scores each image by itself, the same each time, and can be exported.

    It is run on a few images in evaluation mode, and left as it was.

    Raises:
        KdganError: The first mistake.
    """
    _check_network("generator", generator)
    if not callable(getattr(generator, "anomaly_score", None)):
        raise KdganError("The generator needs an anomaly score", f"{type(generator).__name__} has none", METHOD)
    for path, layer in generator.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            problem = "Batch norm without running statistics makes a score depend on the other images of a batch"
            raise KdganError(problem, f"found it in {path or 'the generator'}", "Leave out track_running_stats=False")
    images = _images(generator, image_format)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), eval_mode(generator):
        _check_values(generator, images)
        _check_latents(generator, images)
        _check_traceable(generator, images)


def check_discriminator(gan: Gan, image_format: ImageFormat) -> None:
    """Check that a discriminator, if there is one, returns what GANomaly's losses read: features and a logit per image.

    Raises:
        KdganError: It returns something else.
    """
    discriminator = gan.discriminator
    if discriminator is None:
        return
    images = _images(gan.generator, image_format)
    with torch.no_grad(), eval_mode(discriminator), user_code("The discriminator failed"):
        output = discriminator(images)
    is_pair = isinstance(output, tuple) and len(output) == 2 and all(isinstance(each, Tensor) for each in output)
    if not is_pair or output[0].shape[:1] != (NUM_IMAGES,) or output[1].shape != (NUM_IMAGES,):
        found = f"got {_shapes(output)} for {NUM_IMAGES} images"
        hint = "Return (features, logit.flatten()), or give the family an objective of its own"
        raise KdganError("The discriminator needs to return features (N, …) and a logit (N,)", found, hint)


def _check_network(name: str, network: object) -> None:
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(network, "_orig_mod"):
        inner = "_orig_mod" if hasattr(network, "_orig_mod") else "module"
        problem = f"The {name} needs to be the network itself"
        raise KdganError(problem, f"it is wrapped in {type(network).__name__}", f"Give its attribute .{inner}")
    if not isinstance(network, nn.Module):
        found = f"it is of type {type(network).__name__}"
        raise KdganError(f"The {name} needs to be a torch.nn.Module", found, "Return kdgan_compress.Gan(generator, …)")
    if next(network.parameters(), None) is None:
        hint = "Make its weights parameters and its layers attributes (or an nn.ModuleList)"
        raise KdganError(f"The {name} needs weights", f"{type(network).__name__} has no parameters", hint)


def _check_taps(gan: Gan) -> None:
    missing = [name for name in REQUIRED_TAPS if not isinstance(gan.taps, Mapping) or name not in gan.taps]
    if missing:
        found = f"got {dict(gan.taps)}" if isinstance(gan.taps, Mapping) else f"got {type(gan.taps).__name__}"
        hint = "Give the paths of the submodules whose outputs they are: {'z1': 'encoder', 'x_hat': 'decoder'}"
        raise KdganError("The taps need to name z1 and x_hat", found, hint)
    paths = [path for path, _ in gan.generator.named_modules()]
    for name, path in gan.taps.items():
        if path in paths:
            continue
        near = difflib.get_close_matches(str(path).removeprefix("module."), paths, n=1)
        there_are = ", ".join(name for name, _ in gan.generator.named_children()) or "none"
        hint = f"Write {near[0]!r}" if near else "Choose one of them, or a part of one such as encoder.0"
        raise KdganError(f"Tap {name!r} does not name a submodule", f"got {path!r}, there are {there_are}", hint)


def _images(generator: nn.Module, image_format: ImageFormat) -> Tensor:
    """Images of different contrast in [−1, 1]."""
    device = next(generator.parameters()).device
    shape = (NUM_IMAGES, image_format.image_channels, image_format.image_size, image_format.image_size)
    noise = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
    return (noise * torch.linspace(0.3, 1, NUM_IMAGES)[:, None, None, None]).to(device)


def _score(generator: nn.Module, images: Tensor) -> Tensor:
    with user_code("The method anomaly_score failed"):
        score: object = anomaly_score(generator, images)
    if not isinstance(score, Tensor):
        raise KdganError("The anomaly score needs to be a tensor", f"got {type(score).__name__}", METHOD)
    if score.shape != (len(images),):
        found = f"got shape {tuple(score.shape)} for {len(images)} image{'s'[: len(images) - 1]}"
        hint = "Take the mean or the norm of all axes but the first, such as .flatten(1).mean(1)"
        raise KdganError("The anomaly score needs shape (N,), one number per image", found, hint)
    if score.dtype != torch.get_default_dtype():
        found = f"got {str(score.dtype).removeprefix('torch.')}"
        raise KdganError("The anomaly score needs to be of type float32", found, "Return score.float()")
    if not score.isfinite().all():
        found = f"got {_numbers(score)} for {len(images)} image{'s'[: len(images) - 1]}"
        hint = "Look for a division by 0, such as scaling by the range of a batch, and for logarithms of 0"
        raise KdganError("The anomaly score needs to be finite", found, hint)
    return score


def _check_values(generator: nn.Module, images: Tensor) -> None:
    together, again = _score(generator, images), _score(generator, images)
    if _differ(together, again):
        found = f"got {_numbers(together)} and then {_numbers(again)} for the same images"
        hint = "Draw no random numbers in anomaly_score; nn.Dropout draws none in evaluation mode"
        raise KdganError("The anomaly score is random", found, hint)
    alone = torch.cat([_score(generator, image[None]) for image in images])
    if _differ(together, alone):
        found = f"three images have {_numbers(together)} together and {_numbers(alone)} one by one"
        hint = "Compute nothing over the first axis: no minimum, maximum, mean or norm of the batch"
        raise KdganError("The anomaly score depends on the other images of a batch", found, hint)


def _check_latents(generator: nn.Module, images: Tensor) -> None:
    """Check the method ``latents``, if there is one."""
    if not hasattr(generator, "latents"):
        return
    with user_code("The method latents failed"):
        together = generator.latents(images)  # type: ignore[operator]
    is_pair = isinstance(together, tuple) and len(together) == 2 and all(isinstance(each, Tensor) for each in together)
    if not is_pair or together[0].shape != together[1].shape or together[0].dim() != 2:
        found = f"got {_shapes(together)}"
        raise KdganError("The method latents needs to return z1 and z2, (N, D) each", found, "Return (z1, z2)")
    with user_code("The method latents failed for one image"):
        alone = [torch.cat(each) for each in zip(*(generator.latents(image[None]) for image in images), strict=True)]  # type: ignore[operator]
    if any(_differ(*pair) for pair in zip(together, alone, strict=True)):
        problem = "The method latents needs to return the same for an image alone and in a batch"
        raise KdganError(problem, "they differ, or are not finite", "Compute nothing over the first axis")


def _check_traceable(generator: nn.Module, images: Tensor) -> None:
    """Check that torch can export the score for any number of images."""
    try:
        with _silent():
            torch.export.export(
                Scorer(generator), (images[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
    except Exception as error:
        found = describe(error)
        if "data-dependent" in str(error):
            found = f"it does in {place(error)}"
            problem = "The anomaly score can't be exported: it branches on values of a tensor"
            hint = "Replace the `if`, float(…) or .item() by torch.where or arithmetic"
        elif "specialized it to be a constant" in str(error):
            found = "torch found a size that does not follow the number of images"
            problem = "The anomaly score can't be exported: it works for one number of images only"
            hint = "Use len(images) or -1 for the first axis in reshape, view and expand"
        else:
            problem, hint = (
                "The anomaly score can't be exported",
                "Compute it by torch functions that torch.export knows",
            )
        raise KdganError(problem, found, hint) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress output, warnings and log messages: torch prints the whole graph when it can't export one."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _differ(first: Tensor, second: Tensor) -> bool:
    return not bool(((first - second).abs() <= RTOL * first.abs().max()).all())


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist())


def _shapes(output: object) -> str:
    """The shapes of what a network returned, or its type."""
    if isinstance(output, Tensor):
        return f"one tensor {tuple(output.shape)}"
    if isinstance(output, tuple):
        return f"({', '.join(_shapes(each) for each in output)})"
    return type(output).__name__
