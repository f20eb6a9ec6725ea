import numpy as np
import pytest
import torch
from PIL import Image

from kdgan_compress.data import prepare
from kdgan_compress.data.prepare import resize, to_channels
from kdgan_compress.errors import KdganError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def by_pillow(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) → (C, size, size)."""
    planes = [
        Image.fromarray(image[..., c]).resize((size, size), Image.Resampling.BILINEAR) for c in range(image.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(28, 28, 32), (17, 23, 32), (33, 31, 32), (97, 64, 32), (301, 40, 32), (48, 16, 16), (150, 99, 64)],
)
def test_resize_is_pillows_to_one_level(height, width, size, channels):
    images = noise(2, height, width, channels)
    resized = resize(images, (size, size))
    assert resized.dtype == torch.uint8
    assert resized.shape == (2, channels, size, size)
    expected = np.stack([by_pillow(image, size) for image in images])
    difference = resized.numpy().astype(int) - expected
    assert np.abs(difference).max() <= 1
    assert abs(difference.mean()) < 0.1  # rounded, not cut off


def test_shrinking_is_antialiased():
    """A chessboard of single pixels has only its mean left at a quarter of its size."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    resized = resize(board.astype(np.uint8)[None, ..., None], (16, 16))
    assert (resized[..., 2:-2, 2:-2].int() - 127).abs().max() <= 1


def test_images_of_the_right_size_stay_as_they_are():
    images = noise(3, 16, 16, 3)
    np.testing.assert_array_equal(resize(images, (16, 16)).numpy(), images.transpose(0, 3, 1, 2))


def test_extreme_levels_do_not_wrap_around():
    images = np.concatenate([np.zeros((1, 21, 20, 1), np.uint8), np.full((1, 21, 20, 1), 255, np.uint8)])
    assert [resized.unique().tolist() for resized in resize(images, (32, 32))] == [[0], [255]]


def test_images_beyond_one_batch_keep_their_order(monkeypatch):
    images = noise(5, 20, 24, 1)
    whole = resize(images, (16, 16))
    monkeypatch.setattr(prepare, "RESIZE_BATCH_SIZE", 2)
    assert torch.equal(resize(images, (16, 16)), whole)
    assert not torch.equal(whole[0], whole[4])


@pytest.mark.parametrize(("height", "width"), [(10, 40), (40, 10)])
def test_images_smaller_than_a_third_are_refused(height, width):
    with pytest.raises(KdganError, match=rf"at least 11×11 .* got {height}×{width}"):
        resize(noise(1, height, width, 1), (32, 32))


def test_images_of_a_third_of_the_size_are_taken():
    assert resize(noise(1, 11, 11, 1), (32, 32)).shape == (1, 1, 32, 32)


def test_luma_is_pillows_to_one_level():
    images = noise(2, 13, 9, 3)
    grey = to_channels(images, 1)
    assert grey.dtype == np.uint8
    assert grey.shape == (2, 13, 9, 1)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    assert np.abs(grey[..., 0].astype(int) - expected).max() <= 1


def test_white_stays_white():
    assert to_channels(np.full((1, 2, 2, 3), 255, np.uint8), 1).min() == 255


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 5, 1)])
def test_grey_is_repeated_for_rgb(shape):
    images = noise(*shape)
    rgb = to_channels(images, 3)
    assert rgb.shape == (2, 4, 5, 3)
    for channel in range(3):
        np.testing.assert_array_equal(rgb[..., channel], images.reshape(2, 4, 5))


@pytest.mark.parametrize(("shape", "channels"), [((2, 4, 5), 1), ((2, 4, 5, 1), 1), ((2, 4, 5, 3), 3)])
def test_fitting_channels_keep_their_pixels(shape, channels):
    images = noise(*shape)
    np.testing.assert_array_equal(to_channels(images, channels), images.reshape(2, 4, 5, channels))
