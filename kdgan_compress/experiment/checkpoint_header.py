"""The JSON header of a model file, validated like a recipe, and the check that the file's tensors fit it."""

import struct
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from kdgan_compress.data import DataSettings
from kdgan_compress.data.sources import UNKNOWN
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.experiment.aliases import update_names
from kdgan_compress.files import check_regular, parse_json
from kdgan_compress.gans import Architecture, Gan, build, is_entry_point
from kdgan_compress.scores import DISCRIMINATOR_POSITIONS, PositionGaussian, ScoreSettings, Statistic

FORMAT = 2
"""2 added the score and its statistic; a file of format 1 is scored by the generator's own score."""

MAX_HEADER_BYTES = 4_000_000
"""Of the whole safetensors header: the model's own, and names and shapes of its tensors."""

EMA_NETWORKS = {"raw": "generator"}
"""Further networks of a file and those whose shapes they have."""


class CheckpointHeader(BaseModel):
    """What a model file says about its weights; see ``Checkpoint``."""

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    architecture: Architecture
    data: DataSettings
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None
    threshold_rule: str
    provenance: dict[str, Any]
    score: ScoreSettings = ScoreSettings("norm")
    statistic: str | None = None

    @field_validator("architecture", mode="before")
    @classmethod
    def _update_names(cls, architecture: object) -> object:
        return update_names(architecture, {field.name for field in fields(Architecture)})

    @field_validator("provenance")
    @classmethod
    def _names_a_teacher(cls, provenance: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(provenance.get("teacher"), str | None):
            raise ValueError("teacher is not a path")
        return provenance

    @model_validator(mode="after")
    def _is_usable(self) -> "CheckpointHeader":
        if self.threshold is None and self.data.source != UNKNOWN:
            raise ValueError("only a model that was imported without data may lack a threshold")
        if self.data.used_tiles is not None:
            if self.data.used_tiles.frame is None:
                raise ValueError("data.tiles has no frame")
            self.data.grid(self.architecture.image_size)
        return self


def check_header_size(path: Path) -> None:
    """Check how large a safetensors file says that its header is, before anything else is read.

    Raises:
        OSError: It can't be read.
        ValueError: It is not a safetensors file, or the header is too large.
    """
    size = check_regular(path)
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8:
        raise ValueError("it is not a safetensors file")
    (length,) = struct.unpack("<Q", start)
    if length > min(size, MAX_HEADER_BYTES):
        raise ValueError(f"its header would have {length:,} bytes")


def parse_header(path: Path, text: str) -> CheckpointHeader:
    """Validate the header of a file.

    Raises:
        KdganError: A newer version wrote it.
        ValueError: Its first problems in one line.
    """
    content = parse_json(text)
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        problem = f"The model file must be of format {FORMAT} or older"
        raise KdganError(problem, f"{path} has format {version}", "Upgrade kdgan-compress")
    try:
        return CheckpointHeader.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'header'}: {each['msg']}" for each in error.errors()]
        raise ValueError("; ".join(problems[:3]).replace("Value error, ", "")) from None


def check_weights(architecture: Architecture, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Check the tensors' names, shapes and dtypes before a network of the header's size is built.

    Raises:
        KdganError: The family does not exist or can't be built.
        ValueError: The weights don't fit.
    """
    networks = _without_memory(architecture).networks()
    if unknown := weights.keys() - networks.keys() - EMA_NETWORKS.keys():
        raise ValueError(f"{architecture.family} has no network {min(unknown)}")
    for name in networks.keys() | weights.keys():
        expected = networks[EMA_NETWORKS.get(name, name)].state_dict()
        given = weights.get(name, {})
        if difference := expected.keys() ^ given.keys():
            raise ValueError(
                f"{name}.{min(difference)} is {'missing' if min(difference) in expected else 'unexpected'}"
            )
        for key, tensor in expected.items():
            if (tensor.shape, tensor.dtype) != (given[key].shape, given[key].dtype):
                found = f"{given[key].dtype} {tuple(given[key].shape)} instead of {tensor.dtype} {tuple(tensor.shape)}"
                raise ValueError(f"{name}.{key} is {found}".replace("torch.", ""))


def check_statistic(header: CheckpointHeader, statistic: Statistic) -> None:
    """Check that a score's statistic fits the features and the grid.

    Raises:
        ValueError: It does not.
    """
    architecture = header.architecture
    size = {
        "residual": architecture.latent_size,
        "latents": 2 * architecture.latent_size,
        "discriminator": sum(architecture.channels),
    }[header.score.fitted_features]
    if not is_entry_point(architecture.family) and len(statistic.projection) != size:
        raise ValueError(f"the score's statistic is of {len(statistic.projection)} features instead of {size}")
    if isinstance(statistic, PositionGaussian):
        grid = header.data.grid(architecture.image_size)
        num_positions = DISCRIMINATOR_POSITIONS if header.score.uses_discriminator else int(grid is not None)
        num_positions *= 1 if grid is None else grid.num_tiles
        if len(statistic.means) != num_positions:
            raise ValueError(f"the score's statistic has {len(statistic.means)} positions")


def _without_memory(architecture: Architecture) -> Gan:
    """The GAN's shapes; a user's own code is run as always, since it may need real tensors."""
    if is_entry_point(architecture.family):
        return build(architecture)
    try:
        with torch.device("meta"):
            return build(architecture)
    except RuntimeError as error:
        raise KdganError("The architecture can't be built", first_line(error), "Use a smaller one") from None
