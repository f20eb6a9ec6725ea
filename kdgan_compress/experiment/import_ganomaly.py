"""Recognise a checkpoint of GANomaly's public code or of anomalib's Ganomaly, and convert it to its family.

Both projects name their layers by role and channels. The names are made here from an architecture that is read from a
few of the shapes; a checkpoint is accepted if it has exactly these names and shapes.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.import_file import CHECKPOINT_HINT
from kdgan_compress.gans import Architecture, Gan, build, ganomaly
from kdgan_compress.gans.ganomaly import ANOMALIB, PUBLIC_CODE

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NORM_COUNT = "num_batches_tracked"
"""Missing in files of old versions of torch; no score depends on it."""

NETWORKS = ("encoder1", "decoder", "encoder2")
PROJECT_NAMES = {PUBLIC_CODE: "GANomaly's public code", ANOMALIB: "anomalib's Ganomaly"}
SECTIONS = {
    ("encoder", "initial"): "input_layers",
    ("encoder", "extra"): "extra_layers",
    ("encoder", "pyramid"): "pyramid_features",
    ("decoder", "initial"): "latent_input",
    ("decoder", "pyramid"): "inverse_pyramid",
    ("decoder", "extra"): "extra_layers",
    ("decoder", "final"): "final_layers",
}
"""Network and role of a layer → the submodule that it has in anomalib."""

IGNORED = re.compile(
    r"(.*\.)?(discriminator|generator_loss|discriminator_loss|image_threshold|pixel_threshold|normalization_metrics|"
    r"image_metrics|pixel_metrics|pre_processor|post_processor|evaluator|visualizer|callbacks)\."
)
"""Tensors of anomalib that the score does not use."""

MIN_BLOCKS, MIN_ANOMALIB_BLOCKS, MAX_BLOCKS = 2, 3, 8
"""Strided convolutions of an encoder; at 16 pixels, anomalib's wide padding leaves more than 4×4."""

MAX_NAMES_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Imported:
    """A converted checkpoint.

    Attributes:
        project: What it was recognised as, in words.
        architecture: Of the family that it was converted to.
        gan: Its networks, with images in [−1, 1] left as they are.
        has_discriminator: Whether the discriminator is the project's too; otherwise it is freshly initialised.
    """

    project: str
    architecture: Architecture
    gan: Gan
    has_discriminator: bool


def import_ganomaly(tensors: Mapping[str, Tensor], discriminator: Mapping[str, Tensor] | None = None) -> Imported:
    """Convert the tensors of a checkpoint.

    Args:
        tensors: Of the generator; anomalib's include the discriminator.
        discriminator: Of the discriminator, which the public code has in another file; None for none.

    Raises:
        KdganError: Another project's checkpoint, or tensors that are missing, unknown, of another shape, not float32 or
            not finite.
    """
    prefix = _prefix(tensors)
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    is_anomalib = any(name.startswith("encoder1.input_layers.") for name in named)
    architecture = _architecture(named, ANOMALIB if is_anomalib else PUBLIC_CODE)
    project = PROJECT_NAMES[architecture.family]
    if is_anomalib:
        discriminator = {name: tensor for name, tensor in tensors.items() if ".discriminator." in name}
        named = {name: tensor for name, tensor in named.items() if not IGNORED.match(name)}
    with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the tensors
        shapes = {name: network.state_dict() for name, network in ganomaly.build(architecture).networks().items()}
    weights = {"generator": _converted(project, _generator_names(architecture, shapes), named, shapes["generator"])}
    if discriminator:
        named = {re.sub(r"^.*?(?=features\.|classifier\.)", "", name): t for name, t in discriminator.items()}
        names = [name for name in shapes["discriminator"] if name.startswith("encoder.")]
        new_names = {name.removeprefix("encoder.").replace("head.", "classifier.0."): name for name in names}
        kind = f"the discriminator of {project}"
        weights["discriminator"] = _converted(kind, new_names, named, shapes["discriminator"])
    gan = build(architecture)
    for name, network in gan.networks().items():
        network.load_state_dict(network.state_dict() | weights.get(name, {}))
    return Imported(project, architecture, gan, "discriminator" in weights)


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    """What the names of the generator's tensors begin with: nothing, ``module.``, ``model.generator.`` …"""
    prefixes = {match.group(1) for name in tensors if (match := re.match(r"(.*?\b)?encoder1\.", name))}
    prefixes = {prefix or "" for prefix in prefixes}
    if len(prefixes) == 1:
        return prefixes.pop()
    names = sorted(tensors)
    plain = [re.sub(r"^(module\.)+", "", name) for name in names]
    if any(re.match(r"model\.model\.\d", name) for name in plain):
        raise KdganError(
            "Checkpoints of skip-GANomaly can't be imported",
            "recognised its U-Net; skip connections bypass the latent code, so there is no z1 that x̂ is decoded from, "
            "and its score compares features of the discriminator, which is another file",
            CHECKPOINT_HINT,
        )
    if any(name.startswith("classifier.") for name in plain) and any(name.startswith("features.") for name in plain):
        raise KdganError("The checkpoint must be a generator", "recognised a discriminator (netD.pth)", CHECKPOINT_HINT)
    kinds = sorted({".".join(name.split(".")[:2]) for name in names})
    raise KdganError(
        f"The checkpoint must be of {' or '.join(PROJECT_NAMES.values())}",
        f"recognised none of encoder1, decoder and encoder2 among {len(names)} tensors named {_some(kinds)}",
        f"{CHECKPOINT_HINT}; for a network of your own see docs/own-gan.md",
    )


def _architecture(named: Mapping[str, Tensor], family: str) -> Architecture:
    """The architecture by the shapes of the first encoder's convolutions."""

    def matching(pattern: str) -> list[Tensor]:
        return [tensor for name, tensor in named.items() if re.match(rf"encoder1\.([\w]+\.)?{pattern}", name)]

    first, last = matching(r"initial-conv-\d+-\d+\.weight$"), matching(r"final(-\d+-\d+-conv|_conv_layer)\.weight$")
    extra, pyramid = matching(r"extra-layers-\d+-\d+-conv\.weight$"), matching(r"pyramid-\d+-\d+-conv\.weight$")
    if len(first) != 1 or len(last) != 1 or any(tensor.dim() != 4 for tensor in (*first, *last)):
        raise KdganError(
            f"A checkpoint of {PROJECT_NAMES[family]} needs the first and the last convolution of encoder1",
            f"found {len(first)} and {len(last)}",
            CHECKPOINT_HINT,
        )
    smallest = MIN_ANOMALIB_BLOCKS if family == ANOMALIB else MIN_BLOCKS
    if not smallest <= len(pyramid) + 1 <= MAX_BLOCKS:
        raise KdganError(
            f"{PROJECT_NAMES[family]} is imported for images of {4 << smallest} to {4 << MAX_BLOCKS} pixels",
            f"found {len(pyramid) + 1} strided convolutions in encoder1",
            CHECKPOINT_HINT,
        )
    width, image_channels = first[0].shape[:2]
    return Architecture(
        family=family,
        channels=tuple(width << block for block in range(len(pyramid) + 1)),
        image_size=8 << len(pyramid),
        image_channels=image_channels,
        latent_size=last[0].shape[0],
        norm="batch",
        extra_layers=len(extra) or None,
    )


def _generator_names(architecture: Architecture, shapes: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """The project's name of each of the generator's tensors, and the family's."""
    originals = [f"{network}.{name}" for network in NETWORKS for name in _tensor_names(architecture, network)]
    names = [name for name in shapes["generator"] if name.split(".")[0] in NETWORKS]
    return dict(zip(originals, names, strict=True))


def _tensor_names(architecture: Architecture, network: str) -> Iterator[str]:
    """The project's names of a network's tensors, in the order of the layers."""
    kind = "decoder" if network == "decoder" else "encoder"
    layers = _decoder_layers(architecture) if kind == "decoder" else _encoder_layers(architecture)
    for role, name, is_norm in layers:
        section = SECTIONS.get((kind, role)) if architecture.family == ANOMALIB else "main"
        path = f"{section}.{name}" if section else "final_conv_layer"
        yield from (f"{path}.{tensor}" for tensor in (NORM_TENSORS if is_norm else NORM_TENSORS[:1]))


def _encoder_layers(architecture: Architecture) -> Iterator[tuple[str, str, bool]]:
    """Role and name of each layer with weights, and whether it is a norm."""
    channels = architecture.channels
    yield "initial", f"initial-conv-{architecture.image_channels}-{channels[0]}", False
    yield from _extra_layers(architecture)
    for before, after in itertools.pairwise(channels):
        yield "pyramid", f"pyramid-{before}-{after}-conv", False
        yield "pyramid", f"pyramid-{after}-batchnorm", True
    yield "final", f"final-{channels[-1]}-1-conv", False


def _decoder_layers(architecture: Architecture) -> Iterator[tuple[str, str, bool]]:
    channels = architecture.channels[::-1]
    yield "initial", f"initial-{architecture.latent_size}-{channels[0]}-convt", False
    yield "initial", f"initial-{channels[0]}-batchnorm", True
    for before, after in itertools.pairwise(channels):
        yield "pyramid", f"pyramid-{before}-{after}-convt", False
        yield "pyramid", f"pyramid-{after}-batchnorm", True
    yield from _extra_layers(architecture)
    yield "final", f"final-{channels[-1]}-{architecture.image_channels}-convt", False


def _extra_layers(architecture: Architecture) -> Iterator[tuple[str, str, bool]]:
    width = architecture.channels[0]
    for layer in range(architecture.extra_layers or 0):
        yield "extra", f"extra-layers-{layer}-{width}-conv", False
        yield "extra", f"extra-layers-{layer}-{width}-batchnorm", True


def _converted(
    project: str, new_names: Mapping[str, str], named: Mapping[str, Tensor], shapes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors by the names of the family, where ``shapes`` has tensors of the same shape."""
    _check_names(project, new_names, named)
    for original in new_names.keys() & named.keys():
        _check_tensor(project, original, named[original], shapes[new_names[original]])
    return {new: named[original] for original, new in new_names.items() if original in named}


def _check_names(project: str, expected: Collection[str], named: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in named and not name.endswith(NORM_COUNT)]
    unknown = sorted(named.keys() - set(expected))
    problems = [
        f"{len(names)} {what} ({_some(names)})" for names, what in ((missing, "missing"), (unknown, "unknown")) if names
    ]
    if problems:
        raise KdganError(
            f"The checkpoint was recognised as {project} but has other tensors",
            f"found {' and '.join(problems)}",
            "Give a complete checkpoint of the unchanged project",
        )


def _check_tensor(project: str, name: str, tensor: Tensor, built: Tensor) -> None:
    found = None
    if tensor.shape != built.shape:
        found = f"{name} has shape {tuple(tensor.shape)} instead of {tuple(built.shape)}"
    elif tensor.dtype != built.dtype:
        found = f"{name} is {str(tensor.dtype).removeprefix('torch.')} instead of {str(built.dtype)[6:]}"
    elif not bool(torch.isfinite(tensor).all()):
        found = f"{name} has a value that is not finite"
    elif name.endswith("running_var") and bool((tensor < 0).any()):
        found = f"{name} has a negative variance"
    if found is not None:
        hint = "Give a complete float32 checkpoint of the unchanged project"
        raise KdganError(f"The checkpoint was recognised as {project} but does not fit it", found, hint)


def _some(names: Iterable[str]) -> str:
    """The first few names as one text."""
    listed = list(names)
    more = f" and {len(listed) - MAX_NAMES_SHOWN} more" if len(listed) > MAX_NAMES_SHOWN else ""
    return ", ".join(listed[:MAX_NAMES_SHOWN]) + more
