"""Tiles against plain loops."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from kdgan_compress.data.tiles import TileGrid, TileSettings, alignment, random_crops, suggest_photo_size, working_size
from kdgan_compress.errors import KdganError

GRIDS = [((64, 96), 32, 16), ((64, 96), 32, 8), ((64, 96), 32, 32), ((32, 32), 32, 16)]


def _corners(grid: TileGrid) -> list[tuple[int, int]]:
    height, width = grid.frame
    return [
        (top, left)
        for top in range(0, height - grid.tile + 1, grid.stride)
        for left in range(0, width - grid.tile + 1, grid.stride)
    ]


@pytest.mark.parametrize("sizes", GRIDS)
def test_cut_equals_slices(sizes: tuple[tuple[int, int], int, int]) -> None:
    grid = TileGrid(*sizes)
    photos = torch.rand(2, 3, *grid.frame)
    tiles = grid.cut(photos)
    corners = _corners(grid)
    assert tiles.shape == (2, len(corners), 3, 32, 32)
    for position, (top, left) in enumerate(corners):
        assert torch.equal(tiles[:, position], photos[:, :, top : top + 32, left : left + 32])


@pytest.mark.parametrize("sizes", GRIDS)
def test_map_is_bilinear_between_the_centres_of_tiles(sizes: tuple[tuple[int, int], int, int]) -> None:
    grid = TileGrid(*sizes)
    values = np.random.default_rng(0).normal(size=grid.shape)
    axes = [np.arange(number) * grid.stride + grid.tile / 2 for number in grid.shape]
    pixels = [np.clip(np.arange(side) + 0.5, axis[0], axis[-1]) for side, axis in zip(grid.frame, axes, strict=True)]
    if min(grid.shape) == 1:
        expected = np.full(grid.frame, values[0, 0])
    else:
        expected = RegularGridInterpolator(axes, values)(np.stack(np.meshgrid(*pixels, indexing="ij"), axis=-1))
    found = grid.map(torch.from_numpy(values).reshape(1, -1))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-12)


def test_the_highest_value_of_a_map_lies_in_the_highest_tile() -> None:
    grid = TileGrid((128, 128), 32, 16)
    scores = torch.zeros(1, grid.num_tiles)
    scores[0, 3 * 7 + 5] = 1.0  # row 3, column 5: from (48, 80) to (80, 112)
    row, column = divmod(int(grid.map(scores).argmax()), 128)
    assert 48 <= row < 80
    assert 80 <= column < 112


@pytest.mark.parametrize(
    ("frame", "tile", "stride", "message"),
    [
        ((16, 64), 32, 16, "at least one tile"),
        ((64, 64), 32, 12, "must divide the tile's side"),
        ((72, 64), 32, 16, "multiple of the stride"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(frame: tuple[int, int], tile: int, stride: int, message: str) -> None:
    with pytest.raises(KdganError, match=message):
        TileGrid(frame, tile, stride)


@pytest.mark.parametrize(("name", "value"), [("photo_size", 0), ("stride", -1), ("num_crops", 0), ("brightness", 1.0)])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(KdganError, match=name):
        TileSettings(**{name: value})  # type: ignore[arg-type]


def test_working_size_keeps_the_aspect_ratio() -> None:
    sizes = np.array([[3000, 4000]] * 3 + [[900, 900]])
    assert working_size(sizes, 256, 32, 16) == (192, 256)
    assert working_size(sizes[:, ::-1], 256, 32, 16) == (256, 192)
    assert working_size(np.array([[100, 4000]]), 256, 32, 16) == (32, 256)  # at least one tile


def test_aligned_photos_get_a_coarse_size_and_textures_a_fine_one() -> None:
    rng = np.random.default_rng(0)
    part = rng.integers(0, 256, size=(1, 16, 16, 3))
    aligned = np.clip(part + rng.normal(0, 5, size=(20, 16, 16, 3)), 0, 255).astype(np.uint8)
    texture = rng.integers(0, 256, size=(20, 16, 16, 3)).astype(np.uint8)
    assert alignment(aligned) > 0.9
    assert alignment(texture) < 0.1
    assert suggest_photo_size(aligned)[0] == 128
    assert suggest_photo_size(texture)[0] == 256


def test_crops_are_parts_of_photos_and_repeatable() -> None:
    photos = torch.arange(2 * 40 * 48, dtype=torch.int64).reshape(2, 1, 40, 48).remainder(251).to(torch.uint8)
    crops = random_crops(photos, 32, 20, TileSettings(), np.random.default_rng(5))
    again = random_crops(photos, 32, 20, TileSettings(), np.random.default_rng(5))
    assert torch.equal(crops, again)
    windows = photos.unfold(2, 32, 1).unfold(3, 32, 1).reshape(-1, 32, 32)
    for crop in crops:
        assert (windows == crop[0]).all(dim=(1, 2)).any()


def test_flips_and_brightness_change_crops() -> None:
    photos = torch.full((1, 1, 32, 32), 100, dtype=torch.uint8)
    photos[..., :16] = 50
    crops = random_crops(photos, 32, 200, TileSettings(flips=True), np.random.default_rng(0))
    num_flipped = int((crops[:, 0, 0, 0] == 100).sum())
    assert 60 < num_flipped < 140
    crops = random_crops(photos, 32, 200, TileSettings(brightness=0.2), np.random.default_rng(0))
    values = crops[:, 0, 0, 31]
    assert 80 <= int(values.min()) < 85
    assert 115 < int(values.max()) <= 120
