"""The photos of a tiled experiment: the working size, crops to train on, and whole photos to fit and test on."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.data.datasets import ArrayDataset, FileDataset
from kdgan_compress.data.tiles import TileSettings, random_crops, suggest_photo_size, working_size
from kdgan_compress.runtime.images import upright_size

MAX_PHOTO_BYTES = 1 << 28
MAX_TILES = 1 << 17
"""Of the photos that statistics are fitted to: 512 features of each are 256 MB."""

MAX_SIZES = 500
SUGGESTION_SIZE, NUM_SUGGESTION_PHOTOS = (64, 64), 50
MIN_LARGE_SIDE = 64
"""Photos of a folder with a longer side than this are cut into tiles by default."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class TilePlan:
    """Resolved tile settings and what to print about them."""

    settings: TileSettings
    message: str


def plan_tiles(images: ArrayDataset | FileDataset, normals: Indices, settings: TileSettings, tile: int) -> TilePlan:
    """Choose the working size from normal photos, as far as the settings leave it open.

    Args:
        images: All images.
        normals: Indices of the normal photos to train on.
        settings: Their ``frame`` is filled in.
        tile: Side of a tile.

    Raises:
        KdganError: The settings don't fit the photos.
    """
    stride = settings.stride or tile // 2
    sizes = photo_sizes(images, normals)
    reason = "as given"
    photo_size = settings.photo_size
    if photo_size is None:
        chosen = _evenly(normals, NUM_SUGGESTION_PHOTOS)
        few = torch.cat([images.load(chosen[k : k + 1], SUGGESTION_SIZE, 3) for k in range(len(chosen))])
        photo_size, reason = suggest_photo_size(few.permute(0, 2, 3, 1).numpy())
    frame = working_size(sizes, photo_size, tile, stride)
    resolved = dataclasses.replace(settings, photo_size=photo_size, frame=frame, stride=stride)
    grid = resolved.grid(tile)
    (rows, columns), (height, width) = grid.shape, np.median(sizes, axis=0).astype(int)
    message = (
        f"photos: about {height}×{width} pixels, brought to {frame[0]}×{frame[1]} ({reason}); "
        f"{rows}×{columns} tiles of {tile}×{tile} per photo"
    )
    return TilePlan(resolved, message)


def are_large(images: ArrayDataset | FileDataset, normals: Indices) -> bool:
    """Whether the median photo has a side of more than 64 pixels."""
    return bool(len(normals)) and float(np.median(photo_sizes(images, normals).max(axis=1))) > MIN_LARGE_SIDE


def photo_sizes(images: ArrayDataset | FileDataset, indices: Indices) -> NDArray[np.int64]:
    """Height and width (n, 2) of upright photos, of at most 500 evenly spaced ones; nothing is decoded.

    Raises:
        KdganError: A file can't be read.
    """
    if isinstance(images, ArrayDataset):
        return np.array([images.x_train.shape[1:3]], dtype=np.int64)
    return np.array([upright_size(images.paths[index]) for index in _evenly(indices, MAX_SIZES)], dtype=np.int64)


def load_crops(
    images: ArrayDataset | FileDataset, normals: Indices, settings: TileSettings, tile: int, channels: int
) -> Tensor:
    """Random crops uint8 (num_crops, C, tile, tile); each photo is decoded at most once, and only if it has a crop."""
    assert settings.frame is not None
    rng = np.random.default_rng(settings.seed)
    counts = rng.multinomial(settings.num_crops, np.full(len(normals), 1 / len(normals)))
    crops = []
    for photo, count in zip(normals[counts > 0], counts[counts > 0], strict=True):
        pixels = images.load(np.array([photo]), settings.frame, channels)
        crops.append(random_crops(pixels, tile, int(count), settings, rng))
    return torch.cat(crops)


def load_photos(images: ArrayDataset | FileDataset, indices: Indices, settings: TileSettings, channels: int) -> Tensor:
    """Photos uint8 (n, C, H, W) at the working size."""
    assert settings.frame is not None
    return images.load(indices, settings.frame, channels)


def photos_to_fit(normals: Indices, settings: TileSettings, tile: int, channels: int) -> Indices:
    """The normal photos that statistics are fitted to: all, or as many evenly spaced ones as fit into the memory."""
    assert settings.frame is not None
    bytes_per_photo = channels * settings.frame[0] * settings.frame[1]
    return _evenly(normals, max(1, min(MAX_PHOTO_BYTES // bytes_per_photo, MAX_TILES // settings.grid(tile).num_tiles)))


def _evenly(indices: Indices, number: int) -> Indices:
    return indices[:: -(-len(indices) // number)]
