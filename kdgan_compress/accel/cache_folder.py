"""A folder of teacher caches: for each key one ``.npy`` of rows and a ``.json`` that says what they are and their hash.

A cache is whole or not there: rows that don't fit their hash, or whose description is gone, are computed again.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdgan_compress.accel.teacher_cache import TeacherCache
from kdgan_compress.errors import KdganError
from kdgan_compress.files import atomic_path, unwritable


class CacheFolder:
    """Where caches are kept.

    Args:
        path: Made when the first cache is written.
        memory_mb: Rows larger than that stay in their file and are mapped; smaller ones are read into memory.
    """

    def __init__(self, path: Path, memory_mb: int) -> None:
        self.path, self._memory_mb = path, memory_mb

    def load(self, key: str) -> tuple[TeacherCache | None, str]:
        """The cache of this key, or None; and in words what was found."""
        rows_path, about_path = self._paths(key)
        if not rows_path.exists() and not about_path.exists():
            return None, "none yet"
        damaged = None, f"{rows_path} was damaged"
        try:
            about = json.loads(about_path.read_text(encoding="utf-8"))
            shapes = {name: tuple(shape) for name, shape in about["shapes"].items()}
            if about["sha256"] != _sha256(rows_path, shapes):
                return damaged
            rows = np.load(rows_path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return damaged
        if rows.nbytes <= self._memory_mb * 1_000_000:
            rows = np.array(rows)
        return TeacherCache(_as_tensor(rows), shapes), f"read from {rows_path}"

    def save(
        self, key: str, shapes: Mapping[str, tuple[int, ...]], num_images: int, dtype: str, rows: Iterable[Tensor]
    ) -> None:
        """Write rows as they come; no more than one portion of them is in memory.

        Raises:
            KdganError: The folder can't be written, or is full; nothing is left there then.
        """
        rows_path, about_path = self._paths(key)
        shape = (num_images, sum(map(math.prod, shapes.values())))
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        with atomic_path(rows_path) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for portion in rows:
                try:
                    file.write(portion.numpy().tobytes())
                except OSError as error:
                    raise unwritable(rows_path, error) from None
        about: dict[str, Any] = {"key": key, "shapes": shapes, "sha256": _sha256(rows_path, shapes)}
        try:
            with atomic_path(about_path) as temporary:
                temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        except KdganError:
            rows_path.unlink(missing_ok=True)
            raise

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.path / f"{key}.npy", self.path / f"{key}.json"


def _sha256(rows_path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Of the rows' file and of what their columns are."""
    with rows_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr([(name, list(shape)) for name, shape in shapes.items()]).encode())
    return digest.hexdigest()


def _as_tensor(rows: Any) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written to
        return torch.from_numpy(rows)
