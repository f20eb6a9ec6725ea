import numpy as np
import pytest
from PIL import Image

from kdgan_compress.data.masks import read_mask
from kdgan_compress.errors import KdganError


def save_mask(path, marked, mode="L", **options):
    image = Image.fromarray(marked.astype(np.uint8) * 255).convert(mode)
    image.save(path, **options)
    return path


def marked_pixels(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width)) < 0.05


@pytest.mark.parametrize(("shape", "size"), [((60, 90), (20, 30)), ((60, 90), (7, 11)), ((13, 17), (5, 17))])
def test_a_smaller_mask_marks_every_pixel_that_covers_a_marked_one(tmp_path, shape, size):
    marked = marked_pixels(*shape)
    expected = np.zeros(size, bool)
    for y, x in zip(*np.nonzero(marked), strict=True):
        row = max(i for i in range(size[0]) if i * shape[0] // size[0] <= y)
        column = max(i for i in range(size[1]) if i * shape[1] // size[1] <= x)
        expected[row, column] = True
    mask = read_mask(save_mask(tmp_path / "a.png", marked), size)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected)


def test_a_scratch_of_one_pixel_does_not_vanish(tmp_path):
    marked = np.zeros((900, 900), bool)
    marked[450, 100:800] = True
    mask = read_mask(save_mask(tmp_path / "a.png", marked), (64, 64))
    assert mask.sum(axis=0).tolist() == [0] * 7 + [1] * 50 + [0] * 7


def test_a_larger_mask_is_the_nearest_pixel(tmp_path):
    marked = marked_pixels(10, 15)
    path = save_mask(tmp_path / "a.png", marked)
    np.testing.assert_array_equal(read_mask(path, (30, 45)), marked.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(read_mask(path, (10, 15)), marked)
    nearest = Image.fromarray(marked.astype(np.uint8)).resize((37, 26), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(read_mask(path, (26, 37)), np.asarray(nearest) > 0)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "I;16"])
def test_any_mode_and_any_value_but_0_marks(tmp_path, mode):
    values = np.zeros((8, 8), np.uint8)
    values[2:4, 3:7] = 1
    image = Image.fromarray(values)
    if mode == "P":
        image = image.copy()
        image.putpalette([0, 0, 0, 0, 0, 0])  # only the numbers differ
    elif mode == "1":
        image = Image.fromarray(values.astype(bool))
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 256)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", (8, 8)), values > 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_marks_nothing(tmp_path, mode):
    marked = marked_pixels(8, 8)
    np.testing.assert_array_equal(read_mask(save_mask(tmp_path / "a.png", marked, mode), (8, 8)), marked)


def test_noise_of_jpeg_marks_nothing(tmp_path):
    marked = np.zeros((64, 64), bool)
    marked[10:30, 20:50] = True
    mask = read_mask(save_mask(tmp_path / "a.jpg", marked, quality=60), (64, 64))
    assert (mask != marked).mean() < 0.01


def test_a_mask_of_another_size_than_its_photo_is_fine_and_of_another_shape_is_not(tmp_path):
    path = save_mask(tmp_path / "mask.png", marked_pixels(30, 40))
    for size, fits in [
        ((40, 30), True),
        ((400, 300), True),
        ((403, 300), True),
        ((30, 40), False),
        ((300, 300), False),
    ]:
        photo = tmp_path / "photo.png"
        Image.new("L", size).save(photo)
        if fits:
            assert read_mask(path, (12, 16), photo).shape == (12, 16)
        else:
            with pytest.raises(KdganError, match=r"aspect ratio of its photo; .*mask\.png has 30×40 .*photo\.png"):
                read_mask(path, (12, 16), photo)


def test_a_photo_that_is_stored_turned_is_compared_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 40)).save(tmp_path / "photo.jpg", exif=exif)
    path = save_mask(tmp_path / "mask.png", marked_pixels(30, 40))
    assert read_mask(path, (30, 40), tmp_path / "photo.jpg").shape == (30, 40)


def test_an_unreadable_mask_is_named(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(KdganError, match=r"readable image; .*a\.png"):
        read_mask(tmp_path / "a.png", (8, 8))
