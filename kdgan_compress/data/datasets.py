"""Labelled images that a source has read: as arrays, or as image files that are decoded when needed."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.data.prepare import resize, to_channels
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.runtime.images import read_image


class LabelledImages(Protocol):
    """The pool of a source's images: the official training split first, then the official test split."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """One per image, from 0."""
        ...

    @property
    def num_train(self) -> int:
        """Size of the official training split."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """The name of each label; empty if labels have no names."""
        ...

    def load(self, indices: NDArray[np.int64], size: int, channels: int) -> Tensor:
        """The images at these indices at a network's size, uint8 (n, channels, size, size)."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """Images (N, H, W) or (N, H, W, C) uint8 and labels (N,) of a training and a test split.

    A data set without an official test split has all its images in the training split.
    """

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    class_names: Sequence[str] = ()

    @property
    def labels(self) -> NDArray[np.int64]:
        """See ``LabelledImages``."""
        return np.concatenate([self.y_train, self.y_test])

    @property
    def num_train(self) -> int:
        """See ``LabelledImages``."""
        return len(self.x_train)

    def load(self, indices: NDArray[np.int64], size: int, channels: int) -> Tensor:
        """See ``LabelledImages``; the two official splits may differ in image size."""
        images = torch.empty((len(indices), channels, size, size), dtype=torch.uint8)
        in_test = indices >= self.num_train
        for pixels, mask, start in ((self.x_train, ~in_test, 0), (self.x_test, in_test, self.num_train)):
            if mask.any():
                images[torch.from_numpy(mask)] = resize(to_channels(pixels[indices[mask] - start], channels), size)
        return images


@dataclass(frozen=True, eq=False)
class FileDataset:
    """Image files of any size with a label each."""

    paths: Sequence[Path]
    labels: NDArray[np.int64]
    num_train: int
    class_names: Sequence[str]

    def load(self, indices: NDArray[np.int64], size: int, channels: int) -> Tensor:
        """See ``LabelledImages``."""
        images = torch.empty((len(indices), channels, size, size), dtype=torch.uint8)
        for position, index in enumerate(indices):
            path = self.paths[index]
            pixels = read_image(path, channels)
            try:
                images[position] = resize(pixels[None], size)[0]
            except KdganError as error:
                raise KdganError(error.problem, f"{path}: {error.found}", error.hint) from None
        return images


def read_npz(path: Path, keys: tuple[str, ...], hint: str) -> list[NDArray[Any]]:
    """The arrays of an ``.npz`` file under these keys; no pickle is executed.

    Raises:
        KdganError: The file is missing or damaged, or lacks a key.
    """
    if not path.is_file():
        raise KdganError("The .npz file must exist", f"found none at {path}", "Check the path")
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise invalid_npz(keys, f"{path} is a single array", hint)
            missing = [key for key in keys if key not in file]
            if missing:
                raise invalid_npz(keys, f"{path} lacks {', '.join(missing)}", hint)
            return [file[key] for key in keys]
    except KdganError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise invalid_npz(keys, f"{path} can't be read: {first_line(error)}", hint) from None


def invalid_npz(keys: tuple[str, ...], found: str, hint: str) -> KdganError:
    """The error for an ``.npz`` file with other content."""
    return KdganError(f"An .npz data set must hold {', '.join(keys)}", found, hint)
