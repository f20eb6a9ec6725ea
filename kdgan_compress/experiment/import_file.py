"""Read the tensors of another project's checkpoint: safetensors, or torch's format without executing code."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.experiment.checkpoint_header import check_header_size
from kdgan_compress.experiment.torch_file import load_torch_file

SAFETENSORS = ".safetensors"
ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
"""First bytes of what ``torch.save`` writes: today a zip archive, a pickle before torch 1.6."""

CHECKPOINT_HINT = "Give GANomaly's netG.pth, anomalib's .ckpt of a Ganomaly, or the same tensors as .safetensors"

SNIPPET = (
    "import torch; from safetensors.torch import save_file; "
    "c = torch.load({name!r}, map_location='cpu', weights_only=False); "
    "c = c.get('model', c) if isinstance(c, dict) else c; "
    "c = c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c); "
    "save_file({{k: v.contiguous().clone() for k, v in c.items() if isinstance(v, torch.Tensor)}}, {out!r})"
)
"""Python that saves a checkpoint's tensors, to run where the checkpoint and its project's code are trusted."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name.

    Args:
        path: A ``.safetensors`` file, or what ``torch.save`` wrote: a state dict, or a dictionary with one under
            ``state_dict``.

    Raises:
        KdganError: No such file, a damaged one, one without a state dict, or one that needs code to be executed.
    """
    if not path.is_file():
        raise KdganError("The checkpoint must be a file", f"found none at {path}", CHECKPOINT_HINT)
    if path.suffix == SAFETENSORS:
        try:
            check_header_size(path)
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise KdganError("The checkpoint is damaged", f"{path}: {first_line(error)}", CHECKPOINT_HINT) from None
    return _state_dict(path, _load(path))


def conversion_command(path: Path) -> str:
    """The shell command that writes a checkpoint's tensors to a ``.safetensors`` file next to it."""
    return f'python -c "{SNIPPET.format(name=path.name, out=path.stem + SAFETENSORS)}"'


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        if not file.read(len(ZIP_START)).startswith((ZIP_START, PICKLE_START)):
            raise KdganError("The checkpoint is not a file of torch", f"got {path}", CHECKPOINT_HINT)
    try:
        return load_torch_file(path)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)|[`']([\w.]+)[`']? was not an allowed global", str(error))
        if name is None and "Unsupported" not in str(error):
            raise KdganError("The checkpoint is damaged", f"{path} is not torch's format", CHECKPOINT_HINT) from None
        what = next(filter(None, name.groups()), "an object") if name else "an object"
        raise KdganError(
            "A checkpoint may hold tensors and plain values only, as anything else executes code when it is loaded",
            f"{path} has {what}",
            f"On the machine it came from, run {conversion_command(path)} and import {path.stem}{SAFETENSORS}",
        ) from None
    except Exception as error:  # torch documents no narrower class for a damaged archive
        raise KdganError("The checkpoint is damaged", f"{path}: {first_line(error)}", CHECKPOINT_HINT) from None


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The state dict in what was loaded; values of it that are not tensors are left out."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise KdganError("The checkpoint must be a state dict", f"{path} has no tensors by name", CHECKPOINT_HINT)
    return tensors
