"""Photos cut into tiles: random crops to train on, and a regular grid of overlapping tiles to score."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from kdgan_compress.errors import KdganError

MAX_SIDE, MAX_CROPS = 8192, 10_000_000
FINE_PHOTO_SIZE, COARSE_PHOTO_SIZE = 256, 128
ALIGNED = 0.3
"""Photos are aligned if their mean photo has at least this fraction of a photo's variance: 0.99 on MVTec's bottle, 0.74
on transistor, 0.006 on grid."""


@dataclass(frozen=True)
class TileSettings:
    """How photos are cut; the tile's side is the network's image size.

    Attributes:
        enabled: False squeezes a whole photo into the network's size.
        photo_size: Longer side of the working size in pixels; None chooses it from the photos (``suggest_photo_size``).
        frame: The working size, height and width; filled in from the photos and ``photo_size``.
        stride: Distance of tiles in the scoring grid, a divisor of the tile's side; None for half of it.
        num_crops: Random crops to train on.
        flips: Mirror crops at random, left to right.
        brightness: Crops are multiplied by a random factor in 1 ± this.
        seed: Of the crops.

    Raises:
        KdganError: A value out of range.
    """

    enabled: bool = True
    photo_size: int | None = None
    frame: tuple[int, int] | None = None
    stride: int | None = None
    num_crops: int = 12_000
    flips: bool = False
    brightness: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"photo_size": MAX_SIDE, "stride": MAX_SIDE, "num_crops": MAX_CROPS}
        for name, limit in limits.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limit:
                problem = f"tiles.{name} must be 1 or more" if value < 1 else f"tiles.{name} must be at most {limit:,}"
                raise KdganError(problem, f"got {value}", "Leave it out for the default")
        if not 0 <= self.brightness < 1:
            found = f"got {self.brightness}"
            raise KdganError("tiles.brightness must be at least 0 and below 1", found, "Give for example 0.1")
        if self.frame is not None:
            object.__setattr__(self, "frame", tuple(self.frame))
            if len(self.frame) != 2 or not 1 <= min(self.frame) <= max(self.frame) <= MAX_SIDE:
                problem = f"tiles.frame must be a height and a width of at most {MAX_SIDE}"
                raise KdganError(problem, f"got {list(self.frame)}", "Leave it out")

    def grid(self, tile: int) -> "TileGrid":
        """The scoring grid for tiles of this side; ``frame`` is set."""
        assert self.frame is not None
        return TileGrid(self.frame, tile, self.stride or tile // 2)


@dataclass(frozen=True)
class TileGrid:
    """A regular grid of overlapping square tiles that covers a frame.

    Attributes:
        frame: Height and width of a photo, multiples of the stride and at least one tile.
        tile: Side of a tile, a multiple of the stride.
        stride: Distance of neighbouring tiles.

    Raises:
        KdganError: The sizes don't fit each other.
    """

    frame: tuple[int, int]
    tile: int
    stride: int

    def __post_init__(self) -> None:
        if self.stride < 1 or self.tile % self.stride:
            problem = f"The stride must divide the tile's side, {self.tile}"
            raise KdganError(problem, f"got {self.stride}", f"Give --set data.tiles.stride={self.tile // 2}")
        if min(self.frame) < self.tile:
            problem = f"A photo must be at least one tile high and wide ({self.tile} pixels)"
            height, width = self.frame
            raise KdganError(problem, f"its working size is {height}×{width}", "Give a larger --photo-size")
        if any(side % self.stride for side in self.frame):
            height, width = self.frame
            problem = f"The working size must be a multiple of the stride, {self.stride}"
            raise KdganError(problem, f"got {height}×{width}", "Give another --photo-size")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        rows, columns = ((side - self.tile) // self.stride + 1 for side in self.frame)
        return rows, columns

    @property
    def num_tiles(self) -> int:
        """Tiles of one photo."""
        rows, columns = self.shape
        return rows * columns

    def cut(self, photos: Tensor) -> Tensor:
        """Photos (B, C, H, W) of the frame's size → tiles (B, P, C, tile, tile), row by row.

        A photo is divided into stride × stride blocks, of which a tile is a square; so the traced graph has only
        reshapes, slices and concatenations.
        """
        stride, blocks_per_tile = self.stride, self.tile // self.stride
        (rows, columns), channels = self.shape, photos.shape[1]
        height, width = (side // stride for side in self.frame)
        blocks = photos.reshape(-1, channels, height, stride, width, stride)
        wide = torch.cat([blocks[:, :, :, :, j : j + columns] for j in range(blocks_per_tile)], dim=5)
        tiles = torch.cat([wide[:, :, i : i + rows] for i in range(blocks_per_tile)], dim=3)
        return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, self.num_tiles, channels, self.tile, self.tile)

    def map(self, scores: Tensor) -> Tensor:
        """Scores of tiles (B, P) → a map (B, H, W): each score at the centre of its tile, bilinear in between.

        Up to the frame's edge, a map has the value of the nearest centres.
        """
        rows, columns = self.shape
        grid = scores.reshape(-1, 1, rows, columns)
        size = [rows * self.stride, columns * self.stride]
        inner = interpolate(grid, size, mode="bilinear", align_corners=False)
        before = (self.tile - self.stride) // 2
        after = self.tile - self.stride - before
        return pad(inner, (before, after, before, after), mode="replicate")[:, 0]


def working_size(sizes: NDArray[np.int64], photo_size: int, tile: int, stride: int) -> tuple[int, int]:
    """The frame of photos of the given sizes (N, 2), height and width: their median shape, brought to ``photo_size``.

    Sides are rounded to multiples of the stride, and are at least one tile.
    """
    height, width = np.median(sizes / sizes.max(axis=1, keepdims=True), axis=0)
    scale = photo_size / max(height, width)
    rows, columns = (max(tile, round(side * scale / stride) * stride) for side in (height, width))
    return rows, columns


def alignment(photos: NDArray[np.uint8]) -> float:
    """How alike photos (N, H, W, C) are place by place: the variance of their mean over that of a photo, 0 to 1."""
    grey = photos.mean(axis=3, dtype=np.float64)
    return float(grey.mean(0).var() / max(grey.var(axis=(1, 2)).mean(), np.finfo(np.float64).tiny))


def suggest_photo_size(photos: NDArray[np.uint8]) -> tuple[int, str]:
    """A working size for photos (N, H, W, C) of one size, and the reason.

    Parts at the same place in every photo are scored best at a coarse size, textures at a fine one.
    """
    value = alignment(photos)
    if value >= ALIGNED:
        return COARSE_PHOTO_SIZE, f"the photos are aligned ({value:.2f} of 1)"
    return FINE_PHOTO_SIZE, f"the photos are not aligned ({value:.2f} of 1), such as a texture"


def random_crops(photos: Tensor, tile: int, number: int, settings: TileSettings, rng: np.random.Generator) -> Tensor:
    """Random crops uint8 (number, C, tile, tile) of photos uint8 (B, C, H, W)."""
    height, width = photos.shape[2:]
    crops = photos.new_empty((number, photos.shape[1], tile, tile))
    chosen = rng.integers(len(photos), size=number)
    tops, lefts = rng.integers(height - tile + 1, size=number), rng.integers(width - tile + 1, size=number)
    flips = rng.random(number) < (0.5 if settings.flips else 0.0)
    factors = 1 + settings.brightness * rng.uniform(-1, 1, size=number)
    for k, (photo, top, left) in enumerate(zip(chosen, tops, lefts, strict=True)):
        crop = photos[photo, :, top : top + tile, left : left + tile]
        if settings.brightness:
            crop = (crop * float(factors[k])).round().clamp(0, 255).to(torch.uint8)
        crops[k] = crop.flip(2) if flips[k] else crop
    return crops
