"""A trained GAN as one safetensors file: weights, and a JSON header with all that is needed to use them.

Tensors are named ``generator.…`` (averaged weights: what is scored), ``raw.…`` (the last weights, where averaging made
another set of them) and ``discriminator.…`` (which structures ③ and ④ go on training). No pickle is involved.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdgan_compress.data import DataSettings
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import atomic_path, unwritable
from kdgan_compress.gans import Architecture, Gan, build

FORMAT = 1
HEADER_KEY = "kdgan_compress"
NETWORKS = ("generator", "raw", "discriminator")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a model file holds.

    Attributes:
        architecture: What to build.
        data: The images it was trained on.
        threshold: Score above which an image is an anomaly.
        threshold_rule: How that was found, in words.
        provenance: Where it comes from: command, teacher, seed, schedule, versions; plain JSON values.
        weights: State dicts by network, ``generator``, ``raw`` (may be missing) and ``discriminator``.
    """

    architecture: Architecture
    data: DataSettings
    threshold: float
    threshold_rule: str
    provenance: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def build(self) -> Gan:
        """The GAN with the weights that are scored, in evaluation mode."""
        gan = build(self.architecture)
        for name, network in gan.networks().items():
            network.load_state_dict(self.weights[name])
            network.eval()
        return gan

    def build_without_ema(self) -> Gan | None:
        """The same with the generator's last, unaveraged weights; None where there are no others."""
        if "raw" not in self.weights:
            return None
        gan = self.build()
        gan.generator.load_state_dict(self.weights["raw"])
        return gan


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a model file, whole or not at all."""
    header = {
        "format": FORMAT,
        "architecture": dataclasses.asdict(checkpoint.architecture),
        "data": dataclasses.asdict(checkpoint.data),
        "threshold": checkpoint.threshold,
        "threshold_rule": checkpoint.threshold_rule,
        "provenance": checkpoint.provenance,
    }
    tensors = {
        f"{network}.{name}": tensor.detach().cpu().contiguous().clone()
        for network, weights in checkpoint.weights.items()
        for name, tensor in weights.items()
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={HEADER_KEY: json.dumps(header, ensure_ascii=False)})
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise unwritable(path, OSError(first_line(error))) from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a model file.

    Raises:
        KdganError: Missing, cut short, of another program, of a newer format, or weights that don't fit the header.
    """
    fix = "Give a run folder or a model.safetensors that train or distill wrote"
    if not path.is_file():
        raise KdganError("The model must be a file", f"found none at {path}", fix)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise KdganError("The model file must be whole", f"{path}: {error}", fix) from None
    if HEADER_KEY not in metadata:
        raise KdganError("The model file must be of this package", f"found no header of it in {path}", fix)
    try:
        header = json.loads(metadata[HEADER_KEY])
        if header["format"] > FORMAT:
            raise KdganError(
                f"The model file must be of format {FORMAT} or older",
                f"{path} has format {header['format']}",
                "Upgrade kdgan-compress",
            )
        architecture = header["architecture"] | {"channels": tuple(header["architecture"]["channels"])}
        checkpoint = Checkpoint(
            architecture=Architecture(**architecture),
            data=DataSettings(**header["data"]),
            threshold=header["threshold"],
            threshold_rule=header["threshold_rule"],
            provenance=header["provenance"],
            weights=_by_network(tensors),
        )
        checkpoint.build()
        checkpoint.build_without_ema()
    except KdganError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split("\n\t")[:2]) or type(error).__name__
        raise KdganError("The weights must fit the model file's header", f"{path}: {reason}", fix) from None
    return checkpoint


def _by_network(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    weights: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        network, _, name = full_name.partition(".")
        weights.setdefault(network, {})[name] = tensor
    return weights
