import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.images import find_images, is_grey, read_image

NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)

# What a stored array looks like upright, by EXIF orientation.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def deep_rgb_png(path: Path) -> Path:
    """4×4 RGB pixels of 16 bits, which Pillow itself can't write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = (b"\0" + b"\x12\x34" * 12) * 4
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_rgb_pixels_are_read_as_stored(tmp_path):
    pixels = read_image(saved(Image.fromarray(NOISE), tmp_path / "a.png"), 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, NOISE)


def test_grey_pixels_have_one_channel(tmp_path):
    pixels = read_image(saved(Image.fromarray(NOISE[..., 0]), tmp_path / "a.png"), 1)
    np.testing.assert_array_equal(pixels, NOISE[..., :1])


def test_luma_is_itu_r_601(tmp_path):
    pixels = read_image(saved(Image.fromarray(NOISE), tmp_path / "a.png"), 1)
    luma = 0.299 * NOISE[..., 0] + 0.587 * NOISE[..., 1] + 0.114 * NOISE[..., 2]
    assert np.abs(pixels[..., 0] - luma).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "rgb", "grey"),
    [
        ("1", 1, (255, 255, 255), 255),
        ("L", 100, (100, 100, 100), 100),
        ("LA", (90, 10), (90, 90, 90), 90),
        ("RGB", (255, 0, 0), (255, 0, 0), 76),
        ("RGBA", (0, 255, 0, 0), (0, 255, 0), 150),
        ("P", 3, (0, 0, 255), 29),
    ],
)
def test_every_mode_becomes_rgb_and_grey(tmp_path, mode, colour, rgb, grey):
    image = Image.new(mode, (3, 2), colour)
    if mode == "P":
        image.putpalette([9, 9, 9] * 3 + [0, 0, 255])
    path = saved(image, tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(path, 3), np.full((2, 3, 3), rgb))
    np.testing.assert_array_equal(read_image(path, 1), np.full((2, 3, 1), grey))


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_cmyk_is_refused_in_one_clean_message(tmp_path, suffix, channels):
    """Whose colours depend on the printer."""
    path = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / f"a{suffix}")
    with pytest.raises(KdganError) as caught:
        read_image(path, channels)
    assert caught.value.problem == "An image must be grey or RGB"
    assert caught.value.found == f"{path} is CMYK"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(3, 4), (11, 5), (5, 7)])
def test_size_is_height_and_width_and_comes_after_the_orientation(tmp_path, channels, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(NOISE)
    path = saved(stored, tmp_path / "a.png", exif=exif)
    upright = Image.fromarray(np.rot90(NOISE, -1).copy()).convert("L" if channels == 1 else "RGB")
    expected = np.array(upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)).reshape(*size, channels)
    np.testing.assert_array_equal(read_image(path, channels, size), expected)


def test_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([9, 9, 9, 0, 0, 255])
    path = saved(image, tmp_path / "a.png", transparency=b"\x00\x80")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(read_image(path, 3), np.full((2, 3, 3), (0, 0, 255)))
        np.testing.assert_array_equal(read_image(path, 1), np.full((2, 3, 1), 29))
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("channels", [1, 3])
def test_exif_orientation_is_applied(tmp_path, orientation, channels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = NOISE if channels == 3 else NOISE[..., 0]
    path = saved(Image.fromarray(stored), tmp_path / "a.png", exif=exif)
    expected = UPRIGHT[orientation](NOISE[..., :channels])
    np.testing.assert_array_equal(read_image(path, channels), expected)


def test_missing_image(tmp_path):
    with pytest.raises(KdganError, match=r"must exist; there is no file .*absent\.png"):
        read_image(tmp_path / "absent.png", 3)


def unreadable(kind: str, folder: Path) -> Path:
    image = Image.fromarray(np.tile(NOISE, (20, 20, 1)))
    match kind:
        case "empty":
            content, suffix = b"", ".png"
        case "text":
            content, suffix = b"not a picture\n", ".png"
        case "cut png" | "cut jpg":
            suffix = f".{kind[4:]}"
            content = saved(image, folder / f"whole{suffix}").read_bytes()
            content = content[: len(content) // 2]
        case "cut ppm header":
            content, suffix = b"P6 4 ", ".ppm"
        case "empty second page":
            suffix = ".tif"
            tiff = bytearray(saved(Image.new("L", (20, 20)), folder / "whole.tif").read_bytes())
            end = 10 + 12 * tiff[8]  # of the first page's entries; the second page's offset follows
            tiff[end : end + 4] = (end + 10).to_bytes(4, "little")
            content = bytes(tiff)
    path = folder / f"broken{suffix}"
    path.write_bytes(content)
    return path


UNREADABLE = ["empty", "text", "cut png", "cut jpg", "cut ppm header", "empty second page"]


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("channels", [1, 3])
def test_unreadable_images_are_named(tmp_path, kind, channels):
    path = unreadable(kind, tmp_path)
    with pytest.raises(KdganError) as caught:
        read_image(path, channels)
    assert caught.value.problem == "The file must be a readable image"
    assert str(path) in caught.value.found


def test_folder_is_no_image(tmp_path):
    with pytest.raises(KdganError, match="must be a readable image"):
        read_image(tmp_path, 3)


def test_huge_image_is_refused(tmp_path, monkeypatch):
    path = saved(Image.fromarray(NOISE), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(KdganError, match="must be a readable image"):
        read_image(path, 3)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_deep_grey_image_is_refused_in_one_clean_message(tmp_path, suffix):
    path = saved(Image.fromarray(np.full((4, 4), 300, dtype=np.uint16)), tmp_path / f"a{suffix}")
    with pytest.raises(KdganError) as caught:
        read_image(path, 1)
    assert caught.value.problem == "An image needs 8 bits per channel"
    assert caught.value.hint == "Convert it to 8 bits"


def test_deep_rgb_image_is_refused(tmp_path):
    with pytest.raises(KdganError, match="8 bits per channel"):
        read_image(deep_rgb_png(tmp_path / "a.png"), 3)


@pytest.mark.parametrize(("form", "name"), [("GIF", "a.gif"), ("WEBP", "a.webp"), ("GIF", "b.webp")])
def test_animation_is_refused_in_one_clean_message(tmp_path, form, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / name, format=form, save_all=True, append_images=frames[1:])
    with pytest.raises(KdganError) as caught:
        read_image(path, 3)
    assert caught.value.problem == "An image needs exactly one frame"
    assert caught.value.found == f"{path} has 2"


@pytest.mark.parametrize(
    ("mode", "grey"), [("1", True), ("L", True), ("LA", True), ("RGB", False), ("RGBA", False), ("P", False)]
)
def test_is_grey_by_how_it_is_stored(tmp_path, mode, grey):
    assert is_grey(saved(Image.new(mode, (3, 2)), tmp_path / "a.png")) is grey


@pytest.mark.parametrize("kind", ["empty", "text", "cut ppm header"])
def test_unreadable_image_counts_as_coloured(tmp_path, kind):
    assert is_grey(unreadable(kind, tmp_path)) is False


def test_huge_image_counts_as_coloured(tmp_path, monkeypatch):
    path = saved(Image.new("L", (8, 8)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert is_grey(path) is False


def test_find_images_is_sorted_recursive_and_passes_over_the_rest(tmp_path):
    wanted = ["B.PNG", "a.jpg", "deep/er/x.TIFF", "deep/y.WebP", "z.bmp"]
    others = [".hidden.png", "deep/.x.png", "notes.txt", "a.jpg.bak", "png"]
    for name in wanted + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == wanted


def test_find_images_needs_a_folder(tmp_path):
    with pytest.raises(KdganError, match="folder must exist"):
        find_images(tmp_path / "absent")


def test_find_images_needs_images(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(KdganError, match=r"must hold images; .*\.png"):
        find_images(tmp_path)
