"""Labelled images that a source has read: as arrays, or as image files that are decoded when needed.

The images of a data set are one pool: the official training split first, then the official test split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.data.folder_summary import FolderSummary
from kdgan_compress.data.prepare import resize, to_channels
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import check_regular, read_arrays
from kdgan_compress.runtime.images import read_image

MAX_NPZ_BYTES, MAX_NPZ_RATIO = 400_000_000, 4
"""The arrays of an ``.npz`` file may take so many bytes, or so many times the file's size if that is more."""

MAX_IMAGES = 10_000_000


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Images (N, H, W) or (N, H, W, C) uint8 and labels (N,) from 0, of a training and a test split.

    A data set without an official test split has all its images in the training split. ``class_names`` has the name of
    each label; it is empty if labels have no names.
    """

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    class_names: Sequence[str] = ()

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of the pool."""
        return np.concatenate([self.y_train, self.y_test])

    @property
    def num_train(self) -> int:
        """Size of the official training split."""
        return len(self.x_train)

    def load(self, indices: NDArray[np.int64], size: tuple[int, int], channels: int) -> Tensor:
        """The images at these indices of the pool at a height and width, uint8 (n, channels, *size)."""
        images = torch.empty((len(indices), channels, *size), dtype=torch.uint8)
        in_test = indices >= self.num_train
        for pixels, mask, start in ((self.x_train, ~in_test, 0), (self.x_test, in_test, self.num_train)):
            if mask.any():
                images[torch.from_numpy(mask)] = resize(to_channels(pixels[indices[mask] - start], channels), size)
        return images


@dataclass(frozen=True, eq=False)
class FileDataset:
    """Image files of any size with a label each; see ``ArrayDataset``.

    ``masks`` has the mask of each file (``masks.read_mask``), None where there is none; ``summary`` says how a folder's
    photos are used.
    """

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    num_train: int
    class_names: Sequence[str]
    masks: Sequence[Path | None]
    summary: FolderSummary

    def load(self, indices: NDArray[np.int64], size: tuple[int, int], channels: int) -> Tensor:
        """See ``ArrayDataset.load``."""
        images = torch.empty((len(indices), channels, *size), dtype=torch.uint8)
        for position, path in enumerate(self.paths[index] for index in indices):
            pixels = read_image(path, channels, near=size)
            try:
                images[position] = resize(pixels[None], size)[0]
            except KdganError as error:
                raise KdganError(error.problem, f"{path}: {error.found}", error.hint) from None
        return images


def read_npz(
    path: Path, images_of: dict[str, str], channels: tuple[tuple[int, ...], ...], hint: str
) -> list[NDArray[Any]]:
    """Read and check the arrays of an ``.npz`` file; no pickle is executed.

    Args:
        path: The file.
        images_of: The keys to read. Images (N, H, W) or (N, H, W, C) uint8 are named by their own key; whole numbers
            (N,), one per image, by the key of those images.
        channels: What may follow N, H and W in the shape of images.
        hint: How to write such a file.

    Raises:
        KdganError: The file is missing or damaged, or lacks a key, or an array has another shape or dtype.
    """

    def invalid(found: str) -> KdganError:
        return KdganError(f"An .npz data set must hold {', '.join(images_of)}", found, hint)

    if not path.is_file():
        raise KdganError("The .npz file must exist", f"found none at {path}", "Check the path")
    try:
        max_bytes = max(MAX_NPZ_BYTES, MAX_NPZ_RATIO * check_regular(path))
        arrays = read_arrays(path, max_bytes, images_of)
    except (OSError, ValueError) as error:
        raise invalid(f"{path} can't be read: {first_line(error)}") from None
    if missing := [key for key in images_of if key not in arrays]:
        raise invalid(f"{path} lacks {', '.join(missing)}")
    for key, images_key in images_of.items():
        array, images = arrays[key], arrays[images_key]
        found = f"{key} in {path} is {array.dtype} {array.shape}"
        if key == images_key:
            is_image = array.dtype == np.uint8 and array.ndim >= 3 and array.shape[3:] in channels
            if not is_image or 0 in array.shape[1:] or len(array) > MAX_IMAGES:
                raise invalid(found)
        elif array.shape != images.shape[:1] or not np.issubdtype(array.dtype, np.integer):
            raise invalid(f"{found} for {len(images)} images")
    return [
        array if key == images_of[key] else array.astype(np.int64)
        for key, array in ((key, arrays[key]) for key in images_of)
    ]
