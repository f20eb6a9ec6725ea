"""A trained GAN as one safetensors file: weights, and a JSON header with everything that is needed to use them.

Tensors are named ``generator.…`` (the weights that are scored: with EMA, their moving average), ``raw.…`` (with EMA,
the last weights), ``discriminator.…`` (which structures ③ and ④ continue to train) and ``score.…`` (the score's fitted
statistic). No pickle is involved.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdgan_compress.data import DataSettings, TileGrid
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.experiment.checkpoint_header import (
    FORMAT,
    check_header_size,
    check_statistic,
    check_weights,
    parse_header,
)
from kdgan_compress.files import absolute_path, atomic_path, relative_path, unwritable
from kdgan_compress.gans import Architecture, Gan, build
from kdgan_compress.scores import FittedScorer, ScoreSettings, Statistic, load_statistic

HEADER_KEY = "kdgan_compress"
STATISTIC = "score"
OWN_SCORE = ScoreSettings("norm")
PLAIN_VALUES = ("threshold", "threshold_rule", "provenance")
"""Attributes of ``Checkpoint`` that are stored in the header as they are."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a model file.

    Attributes:
        architecture: The networks to build.
        data: The images that it was trained on.
        threshold: Score above which an image is an anomaly; None for a model that was imported without data.
        threshold_rule: How the threshold was set, in words.
        provenance: Command, teacher, seed, schedule and versions; plain JSON values.
        weights: State dicts by network, ``generator``, ``raw`` (only with EMA) and ``discriminator``.
        score: How the score is computed.
        statistic: The fitted statistic of the score; None for the generator's own score.
    """

    architecture: Architecture
    data: DataSettings
    threshold: float | None
    threshold_rule: str
    provenance: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    score: ScoreSettings = OWN_SCORE
    statistic: Statistic | None = None

    @property
    def grid(self) -> TileGrid | None:
        """How photos are cut into tiles; None without tiles."""
        return self.data.grid(self.architecture.image_size)

    def scorer(self) -> nn.Module:
        """The module with ``anomaly_score`` that is deployed, in evaluation mode: images, or photos, to scores."""
        gan = self.build()
        if self.statistic is None and self.grid is None:
            return gan.generator
        network = gan.discriminator if self.scores_discriminator else gan.generator
        assert network is not None  # a statistic was fitted to its features
        return FittedScorer(network, self.statistic, self.score.fitted_features, self.grid, self.score.photo).eval()

    @property
    def scores_discriminator(self) -> bool:
        """Whether the discriminator is scored in place of the generator."""
        return self.statistic is not None and self.score.uses_discriminator

    @property
    def required_threshold(self) -> float:
        """The threshold; a KdganError if there is none."""
        if self.threshold is None:
            hint = "Give --data, or import the model again with --data"
            raise KdganError("The model has no threshold", "it was imported without data", hint)
        return self.threshold

    @property
    def sha256(self) -> str:
        """A hash of all weights, by their names."""
        digest = hashlib.sha256()
        for network, weights in sorted(self.weights.items()):
            for name, tensor in sorted(weights.items()):
                digest.update(f"{network}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def build(self) -> Gan:
        """The GAN with the weights that are scored, in evaluation mode."""
        gan = build(self.architecture)
        for name, network in gan.networks().items():
            network.load_state_dict(self.weights[name])
            network.eval()
        return gan

    def build_without_ema(self) -> Gan | None:
        """The GAN with the generator's last weights instead of their EMA; None if it was trained without EMA."""
        if "raw" not in self.weights:
            return None
        return dataclasses.replace(self, weights=self.weights | {"generator": self.weights["raw"]}).build()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a model file atomically; the paths in it are relative to its folder."""
    checkpoint = _with_paths(checkpoint, lambda stored: relative_path(stored, path.parent))
    header = {
        "format": FORMAT,
        "architecture": dataclasses.asdict(checkpoint.architecture),
        "data": dataclasses.asdict(checkpoint.data),
        "score": dataclasses.asdict(checkpoint.score),
        "statistic": None if checkpoint.statistic is None else checkpoint.statistic.name,
        **{name: getattr(checkpoint, name) for name in PLAIN_VALUES},
    }
    tensors = {
        f"{network}.{name}": tensor.detach().cpu().contiguous().clone()
        for network, weights in checkpoint.weights.items()
        for name, tensor in weights.items()
    }
    if checkpoint.statistic is not None:
        buffers = checkpoint.statistic.state_dict().items()
        tensors |= {f"{STATISTIC}.{name}": tensor.contiguous() for name, tensor in buffers}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={HEADER_KEY: json.dumps(header, ensure_ascii=False)})
        except SafetensorError as error:  # a full disk, for example
            raise unwritable(path, OSError(first_line(error))) from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a model file; its paths become absolute.

    Raises:
        KdganError: The file is missing, damaged, not a model file or of a newer format, or the weights don't fit.
    """
    hint = "Give a run folder or a model.safetensors that train or distill wrote"
    if not path.is_file():
        raise KdganError("The model must be a file", f"found none at {path}", hint)
    weights: dict[str, dict[str, Tensor]] = {}
    try:
        check_header_size(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for full_name in file.keys():  # noqa: SIM118
                network, _, name = full_name.partition(".")
                weights.setdefault(network, {})[name] = file.get_tensor(full_name)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise KdganError("The model file is damaged", f"{path}: {first_line(error)}", hint) from None
    if HEADER_KEY not in metadata:
        raise KdganError("The model file must come from this package", f"found no such header in {path}", hint)
    try:
        header = parse_header(path, metadata[HEADER_KEY])
    except KdganError:
        raise
    except ValueError as error:
        raise KdganError("The model file's header must be valid", f"{path}: {error}", hint) from None
    buffers = weights.pop(STATISTIC, {})
    try:
        check_weights(header.architecture, weights)
        statistic = None if header.statistic is None else load_statistic(header.statistic, buffers)
        if statistic is not None:
            check_statistic(header, statistic)
        if statistic is None and buffers:
            raise ValueError("it has values of a score that the header does not name")
    except KdganError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        hint = f"{hint}; a family of your own needs the code that it was trained with"
        raise KdganError("The weights must fit the model file's header", f"{path}: {first_line(error)}", hint) from None
    checkpoint = Checkpoint(
        architecture=header.architecture,
        data=header.data,
        weights=weights,
        score=header.score,
        statistic=statistic,
        **{name: getattr(header, name) for name in PLAIN_VALUES},
    )
    return _with_paths(checkpoint, lambda stored: absolute_path(stored, path.parent))


def _with_paths(checkpoint: Checkpoint, convert: Callable[[str], str]) -> Checkpoint:
    """A copy with the paths of its images and its teacher converted."""
    provenance = dict(checkpoint.provenance)
    if provenance.get("teacher") is not None:
        provenance["teacher"] = convert(provenance["teacher"])
    return dataclasses.replace(checkpoint, data=checkpoint.data.with_paths(convert), provenance=provenance)
