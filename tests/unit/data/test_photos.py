"""Photos of a tiled experiment: the working size, crops and whole photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdgan_compress.data import DataSettings, TileSettings, load_split, resolve_tiles
from kdgan_compress.errors import KdganError

TILE = 32


def save(path: Path, size: tuple[int, int], seed: int = 0, orientation: int | None = None) -> None:
    """A photo of random blocks; ``size`` is height and width as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, size=(12, 12, 3)).astype(np.uint8)
    image = Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif)


def settings_of(folder: Path, **tiles: object) -> DataSettings:
    return DataSettings(f"folder:{folder}", tiles=TileSettings(**tiles) if tiles else None)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        save(tmp_path / f"train/good/{number}.png", (90, 120), number)
    save(tmp_path / "test/good/a.png", (90, 120))
    save(tmp_path / "test/dent/b.png", (180, 240))
    return tmp_path


def test_large_photos_are_cut_by_default_and_small_ones_are_not(folder: Path, tmp_path: Path) -> None:
    data, message = resolve_tiles(settings_of(folder), TILE)
    assert data.tiles is not None
    assert data.tiles.photo_size == 256  # not aligned
    assert data.tiles.frame == (192, 256)
    assert message is not None
    assert message.startswith("photos: about 90×120 pixels, brought to 192×256 (the photos are not aligned")
    for number in range(3):
        save(tmp_path / f"small/train/good/{number}.png", (60, 64), number)
    assert resolve_tiles(settings_of(tmp_path / "small"), TILE) == (settings_of(tmp_path / "small"), None)
    off = settings_of(folder, enabled=False)
    assert resolve_tiles(off, TILE) == (off, None)
    assert resolve_tiles(DataSettings("sample"), TILE) == (DataSettings("sample"), None)


def test_split_has_crops_to_train_on_and_whole_photos_for_the_rest(folder: Path) -> None:
    data, _ = resolve_tiles(settings_of(folder, photo_size=96, num_crops=50), TILE)
    split = load_split(data, TILE, 3)
    assert split.train.shape == (50, 3, 32, 32)
    assert split.calibration.shape == (6, 3, 64, 96)
    assert split.test.shape == (2, 3, 64, 96)
    assert split.normals is split.calibration
    assert not split.has_holdout
    assert split.test_is_anomalous.tolist() == [True, False]
    windows = split.calibration.unfold(2, TILE, 1).unfold(3, TILE, 1)
    for crop in split.train[:5]:
        assert (windows == crop[None, :, None, None]).all(dim=(1, 4, 5)).any()
    assert torch.equal(load_split(data, TILE, 3).train, split.train)
    other, _ = resolve_tiles(settings_of(folder, photo_size=96, num_crops=50, seed=1), TILE)
    assert not torch.equal(load_split(other, TILE, 3).train, split.train)


def test_sideways_photos_count_upright(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"train/good/{number}.jpg", (90, 180), number, orientation=6)
    data, _ = resolve_tiles(settings_of(tmp_path, photo_size=96), TILE)
    assert data.tiles is not None
    assert data.tiles.frame == (96, 48)
    assert load_split(data, TILE, 3).calibration.shape == (3, 3, 96, 48)


def test_photos_of_another_shape_are_brought_to_one_grid(folder: Path) -> None:
    save(folder / "train/good/square.png", (150, 150), 9)
    data, _ = resolve_tiles(settings_of(folder, photo_size=96, num_crops=10), TILE)
    assert load_split(data, TILE, 3).calibration.shape == (7, 3, 64, 96)


def test_a_photo_that_is_too_small_is_named(folder: Path) -> None:
    save(folder / "train/good/tiny.png", (20, 28))
    data, _ = resolve_tiles(settings_of(folder, photo_size=96, num_crops=100), TILE)
    with pytest.raises(KdganError, match=r"at least 22×32 pixels.*tiny\.png: got 20×28"):
        load_split(data, TILE, 3)


def test_tiles_need_a_working_size(folder: Path) -> None:
    with pytest.raises(KdganError, match="need a working size"):
        load_split(settings_of(folder, photo_size=96), TILE, 3)


def test_other_sources_are_cut_on_request(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, size=(4, 70, 90, 3), dtype=np.uint8) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "set.npz", **images, y_train=np.zeros(4, int), y_test=np.array([0, 0, 1, 1]))  # type: ignore[arg-type]
    tiles = TileSettings(photo_size=64, num_crops=9)
    data, _ = resolve_tiles(DataSettings(f"npz:{tmp_path / 'set.npz'}", "0", tiles=tiles), TILE)
    split = load_split(data, TILE, 3)
    assert split.train.shape == (9, 3, 32, 32)
    assert split.test.shape == (4, 3, 48, 64)
