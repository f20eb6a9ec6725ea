"""A folder of teacher caches: for each key one ``.npy`` of rows and a ``.json`` with their description and hash.

Files are written atomically. Rows that do not match their hash, or have no description, are computed again.
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
from kdgan_compress.files import (
    atomic_path,
    check_regular,
    parse_json,
    read_array_header,
    read_text,
    remove_stale_files,
    unwritable,
)

MAX_METADATA_BYTES = 1_000_000
MAX_DIMENSIONS, MAX_SIDE = 8, 1 << 31
DTYPES = (np.dtype("<f4"), np.dtype("<f2"))


class CacheFolder:
    """Loads and saves caches.

    Args:
        path: The folder; created with its first cache.
        memory_mb: Larger caches are memory-mapped; smaller ones are read into memory.
    """

    def __init__(self, path: Path, memory_mb: int) -> None:
        self.path, self._memory_mb = path, memory_mb

    def load(self, key: str) -> tuple[TeacherCache | None, str]:
        """The cache of this key or None, and a text that says where it is from or why there is none."""
        rows_path, metadata_path = self._paths(key)
        if not rows_path.exists() and not metadata_path.exists():
            return None, "none yet"
        damaged = None, f"{rows_path.name} was damaged"
        try:
            sha256, shapes = _read_metadata(metadata_path)
            size = check_regular(rows_path)
            with rows_path.open("rb") as file:
                header = read_array_header(file)
            is_rows = header.dtype in DTYPES and header[1:3] == (_rows_shape(shapes, header.shape[0]), False)
            if not is_rows or size != header.offset + header.num_bytes or sha256 != _sha256(rows_path, shapes):
                return damaged
            rows: Any = np.memmap(rows_path, header.dtype, "r", header.offset, header.shape)
        except (OSError, ValueError, IndexError):
            return damaged
        if rows.nbytes <= self._memory_mb * 1_000_000:
            rows = np.array(rows)
        return TeacherCache(_as_tensor(rows), shapes), f"read from {rows_path.name}"

    def save(
        self, key: str, shapes: Mapping[str, tuple[int, ...]], num_images: int, dtype: str, rows: Iterable[Tensor]
    ) -> None:
        """Write rows batch by batch; only one batch is in memory.

        Raises:
            KdganError: The folder cannot be written, or is full; no file of this key remains.
        """
        rows_path, metadata_path = self._paths(key)
        shape = _rows_shape(shapes, num_images)
        remove_stale_files(self.path)
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        with atomic_path(rows_path) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for batch in rows:
                try:
                    file.write(batch.numpy().tobytes())
                except OSError as error:
                    raise unwritable(rows_path, error) from None
        metadata: dict[str, Any] = {"key": key, "shapes": shapes, "sha256": _sha256(rows_path, shapes)}
        try:
            with atomic_path(metadata_path) as temporary:
                temporary.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        except KdganError:
            rows_path.unlink(missing_ok=True)
            raise

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.path / f"{key}.npy", self.path / f"{key}.json"


def _read_metadata(path: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The rows' hash, and each feature's shape.

    Raises:
        OSError: The file can't be read.
        ValueError: It is damaged.
    """
    metadata = parse_json(read_text(path, MAX_METADATA_BYTES))
    shapes = metadata.get("shapes") if isinstance(metadata, dict) else None
    if not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
        raise ValueError("it has no shapes")
    return str(metadata.get("sha256")), {name: tuple(shape) for name, shape in shapes.items()}


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= MAX_DIMENSIONS
        and all(type(side) is int and 1 <= side < MAX_SIDE for side in shape)
    )


def _rows_shape(shapes: Mapping[str, tuple[int, ...]], num_images: int) -> tuple[int, int]:
    return num_images, sum(map(math.prod, shapes.values()))


def _sha256(rows_path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The hash of the rows' file and of their columns' names and shapes."""
    with rows_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(repr([(name, list(shape)) for name, shape in shapes.items()]).encode())
    return digest.hexdigest()


def _as_tensor(rows: Any) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is not written to
        return torch.from_numpy(rows)
