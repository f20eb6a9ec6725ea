import io
import os
import struct
import subprocess
import sys
import threading
import types
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import heic, images
from kdgan_compress.runtime.images import is_coloured, read_image, upright_size

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
    with pytest.raises(KdganError, match=r"must be a readable image; .*it is a folder"):
        read_image(tmp_path, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", Path("/dev/zero")):
        with pytest.raises(KdganError, match=r"must be a readable image; .*it is a pipe or a device"):
            read_image(path, 3)


def test_more_pixels_than_pillow_reads_are_refused(tmp_path, monkeypatch):
    path = saved(Image.fromarray(NOISE), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(KdganError, match=r"at most 400 MB; .*more pixels than Pillow reads"):
        read_image(path, 3)


def test_pillows_warning_of_many_pixels_is_not_passed_on(tmp_path, monkeypatch):
    """Warnings are errors here."""
    path = saved(Image.fromarray(NOISE), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    assert read_image(path, 3).shape == NOISE.shape


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
    "error", [RuntimeError, AttributeError, ZeroDivisionError, RecursionError, KeyError, Exception]
)
def test_whatever_a_decoder_raises_means_unreadable(tmp_path, monkeypatch, error):
    path = saved(Image.fromarray(NOISE), tmp_path / "a.png")

    def fail(_self):
        raise error("decoding failed\nat line 7")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(KdganError, match=r"must be a readable image; .*decoding failed") as caught:
        read_image(path, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_full_memory_and_an_interrupt_are_passed_on(tmp_path, monkeypatch, error):
    path = saved(Image.fromarray(NOISE), tmp_path / "a.png")

    def fail(_self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(error):
        read_image(path, 3)


@pytest.mark.parametrize(("form", "suffix"), [("AVIF", ".png"), ("DDS", ".dds"), ("JPEG2000", ".jp2")])
def test_damaged_files_of_rare_formats_are_refused_or_read(tmp_path, form, suffix):
    """Their decoders raise RuntimeError, struct.error and others; the suffix says nothing."""
    whole = saved(Image.fromarray(NOISE), tmp_path / "whole", format=form).read_bytes()
    random = np.random.default_rng(0)
    reasons = []
    for _ in range(60):
        content = bytearray(whole)
        for position in random.integers(0, min(len(content), 300), 3):
            content[position] = random.integers(0, 256)
        (tmp_path / f"damaged{suffix}").write_bytes(content)
        reasons.append(reason_to_refuse(tmp_path / f"damaged{suffix}"))
    assert any(reasons)


def reason_to_refuse(path: Path) -> str | None:
    try:
        read_image(path, 3)
    except KdganError as error:
        return error.found
    return None


@pytest.mark.parametrize("suffix", [".jfif", ".avif", ".gif", ".jp2", ".jpg", ".webp"])
def test_formats_of_cameras_and_phones(tmp_path, suffix):
    image = Image.new("L", (16, 12), 90)
    options = {"format": "JPEG"} if suffix == ".jfif" else {}
    pixels = read_image(saved(image, tmp_path / f"a{suffix}", **options), 3)
    assert pixels.shape == (12, 16, 3)
    assert np.abs(pixels.astype(int) - 90).max() <= 1


@pytest.mark.parametrize("mask", [(0xF800, 0x7E0, 0x1F), None])
def test_bmp_of_16_bits_per_pixel(tmp_path, mask):
    """5, 6 and 5 bits by its masks, or 5, 5 and 5 without them."""
    red, green = (11, 5) if mask else (10, 5)
    pixel = 31 << red | 0 << green | 31
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3 if mask else 0, 0, 0, 0, 0, 0)
    header += struct.pack("<III", *mask) if mask else b""
    start = 14 + len(header)
    content = b"BM" + struct.pack("<IHHI", start + 8, 0, 0, start) + header + struct.pack("<4H", *[pixel] * 4)
    path = tmp_path / "a.bmp"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path, 3), np.full((2, 2, 3), (255, 0, 255)))


@pytest.mark.parametrize("header", [b"P6 2 1 65535\n", b"P6 2 1 1023\n", b"P3 2 1 1023\n"])
def test_deep_colour_ppm_is_refused(tmp_path, header):
    values = b"700 1 2 3 4 5\n" if header.startswith(b"P3") else b"\x02\xbc" * 6
    (tmp_path / "a.ppm").write_bytes(header + values)
    with pytest.raises(KdganError, match="8 bits per channel"):
        read_image(tmp_path / "a.ppm", 3)


@pytest.mark.parametrize(("header", "expected"), [(b"P6 1 1 255\n", 10), (b"P6 1 1 100\n", 26)])
def test_ppm_of_8_bits_is_read(tmp_path, header, expected):
    (tmp_path / "a.ppm").write_bytes(header + b"\x0a\x0a\x0a")
    np.testing.assert_array_equal(read_image(tmp_path / "a.ppm", 3), np.full((1, 1, 3), expected))


@pytest.mark.parametrize("compressed", [False, True])
def test_png_with_much_text_is_read(tmp_path, compressed):
    text = PngImagePlugin.PngInfo()
    text.add_text("notes", "x" * 3_000_000, zip=compressed)
    text.add_itxt("more", "y" * 3_000_000, zip=compressed)
    path = saved(Image.fromarray(NOISE), tmp_path / "a.png", pnginfo=text)
    np.testing.assert_array_equal(read_image(path, 3), NOISE)


def scene(width: int, height: int) -> Image.Image:
    """Large shapes and fine noise, in colour."""
    random = np.random.default_rng(1)
    shapes = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    noise = random.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8))


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("near", [(32, 32), (24, 40), (40, 24), (61, 53)])
def test_a_large_photo_is_shrunk_to_at_least_twice_the_size_and_keeps_what_a_resize_of_it_shows(
    tmp_path, suffix, channels, near
):
    path = saved(scene(1201, 903), tmp_path / f"a{suffix}")
    whole, pixels = read_image(path, channels), read_image(path, channels, near=near)
    height, width = pixels.shape[:2]
    assert whole.shape == (903, 1201, channels)
    assert height >= 2 * near[0]
    assert width >= 2 * near[1]
    assert height < 903 / 1.9
    assert width / height == pytest.approx(1201 / 903, rel=0.02)

    def resized(values):
        image = Image.fromarray(values.squeeze(-1) if channels == 1 else values)
        return np.asarray(image.resize(near[::-1], Image.Resampling.BILINEAR))

    assert mean_difference(resized(pixels), resized(whole)) < 1
    assert mean_difference(read_image(path, channels, near), resized(whole).reshape(*near, channels)) < 1


@pytest.mark.parametrize("shape", [(5, 7), (60, 90), (100, 900)])
def test_a_small_photo_or_one_small_in_one_direction_is_not_shrunk(tmp_path, shape):
    path = saved(scene(shape[1], shape[0]), tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path, 3, near=(16, 16)), read_image(path, 3))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_large_photo_is_shrunk_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene(1200, 600)
    path = saved(stored, tmp_path / f"a{suffix}", exif=exif)
    upright = UPRIGHT[orientation](np.asarray(stored))
    near = (30, 60) if orientation < 5 else (60, 30)
    pixels = read_image(path, 3, near=near)
    assert pixels.shape == ((120, 240, 3) if orientation < 5 else (240, 120, 3))
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(upright)).resize(pixels.shape[1::-1]))
    assert mean_difference(pixels, expected) < 6
    assert upright_size(path) == upright.shape[:2]


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_other_modes_are_converted_before_they_are_shrunk(tmp_path, mode):
    """Else a palette's numbers would be averaged, and transparent pixels would become black."""
    colours = Image.fromarray(np.full((400, 400, 3), 255, np.uint8)).convert(mode)
    if mode in ("LA", "RGBA"):
        colours.putalpha(0)
    path = saved(colours, tmp_path / "a.png")
    pixels = read_image(path, 3, near=(16, 16))
    assert pixels.shape == (64, 64, 3)
    assert pixels.min() == 255


def test_a_jpeg_is_reduced_in_the_decoder_and_not_below_twice_the_size(tmp_path, monkeypatch):
    sizes = []
    load = JpegImageFile.load

    def record(self):
        result = load(self)
        sizes.append(self.size)
        return result

    monkeypatch.setattr(JpegImageFile, "load", record)
    path = saved(Image.new("RGB", (1600, 1200)), tmp_path / "a.jpg")
    read_image(path, 3, near=(75, 75))
    assert set(sizes) == {(400, 300)}


PEAK_RSS = r"""
import re, sys
from pathlib import Path
from kdgan_compress.runtime.images import read_image
pixels = read_image(Path(sys.argv[1]), 3, near=(256, 256))
print(pixels.shape[0], re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_48_megapixels_take_less_than_300_mb(tmp_path):
    path = saved(Image.new("RGB", (8000, 6000), (200, 100, 50)), tmp_path / "a.jpg")
    command = [sys.executable, "-c", PEAK_RSS, str(path)]
    height, peak_kb = map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
    assert height == 1024
    assert peak_kb < 300_000


@pytest.mark.parametrize(("mode", "num_bytes"), [("L", 1), ("RGB", 4), ("P", 5), ("RGBA", 8)])
def test_what_takes_too_much_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch, mode, num_bytes):
    path = saved(Image.new(mode, (20, 10)), tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 200 * num_bytes)
    assert read_image(path, 3).shape == (10, 20, 3)
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 200 * num_bytes - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("was decoded"))
    with pytest.raises(KdganError, match=r"20×10 pixels take .* MB\. Save it as JPEG"):
        read_image(path, 3)


@pytest.mark.parametrize(("progressive", "num_bytes"), [(False, 40 * 40 * 4), (True, 40 * 40 * 4 + 320 * 320 * 6)])
def test_a_jpeg_takes_the_memory_of_its_reduced_size_and_of_its_coefficients(
    tmp_path, monkeypatch, progressive, num_bytes
):
    path = saved(Image.new("RGB", (320, 320)), tmp_path / "a.jpg", progressive=progressive)
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", num_bytes)
    assert read_image(path, 3, near=(10, 10)).shape == (40, 40, 3)
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", num_bytes - 1)
    with pytest.raises(KdganError, match="320×320 pixels"):
        read_image(path, 3, near=(10, 10))


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    running, most = 0, 0
    lock, load = threading.Lock(), ImageFile.ImageFile.load
    gate = threading.Event()

    def count(self):
        nonlocal running, most
        if not self.tile:  # decoded already
            return load(self)
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(0.05)
        try:
            return load(self)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(ImageFile.ImageFile, "load", count)
    paths = [saved(Image.new("RGB", (20, 10)), tmp_path / f"{number}.bmp") for number in range(4)]
    for max_bytes in (0, 10_000):
        monkeypatch.setattr(images, "MAX_PARALLEL_BYTES", max_bytes)
        most = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda path: read_image(path, 3), paths))
        assert (most == 1) is (max_bytes == 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_grey_pixels_have_no_colour_however_they_are_stored(tmp_path, mode):
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    assert not is_coloured(saved(grey.convert(mode), tmp_path / "a.png"))


@pytest.mark.parametrize(("suffix", "options"), [(".jpg", {}), (".webp", {"quality": 50}), (".avif", {})])
def test_grey_pixels_have_no_colour_after_lossy_compression(tmp_path, suffix, options):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).convert("RGB")
    assert not is_coloured(saved(noise, tmp_path / f"a{suffix}", **options))


def test_a_single_coloured_pixel_is_a_colour(tmp_path):
    image = Image.new("RGB", (300, 200), (90, 90, 90))
    image.putpixel((7, 8), (90, 90, 96))
    assert is_coloured(saved(image, tmp_path / "a.png"))


def test_a_large_photo_is_looked_at_in_a_reduced_size(tmp_path):
    image = Image.new("RGB", (2000, 1500), (90, 90, 90))
    image.paste((120, 60, 60), (500, 500, 540, 540))
    assert is_coloured(saved(image, tmp_path / "a.jpg"))


def test_an_unreadable_image_has_neither_colour_nor_grey(tmp_path):
    with pytest.raises(KdganError, match="must be a readable image"):
        is_coloured(unreadable("text", tmp_path))


def heic_file(path: Path) -> Path:
    """The first bytes of a photo of a phone."""
    path.write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100))
    return path


@pytest.fixture
def _fresh_heic():
    heic.register_heic.cache_clear()
    yield
    heic.register_heic.cache_clear()


@pytest.mark.usefixtures("_fresh_heic")
@pytest.mark.parametrize("name", ["a.heic", "a.jpg"])
def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = heic_file(tmp_path / name)
    with pytest.raises(KdganError) as caught:
        read_image(path, 3)
    assert str(caught.value) == (
        f"Reading HEIC needs pillow-heif; {path} is HEIC and it is not installed. "
        "Run pip install 'kdgan-compress[heic]'."
    )


@pytest.mark.usefixtures("_fresh_heic")
def test_heic_is_opened_by_its_library_which_is_loaded_only_then(tmp_path, monkeypatch):
    calls = []

    def register():
        calls.append("registered")
        monkeypatch.setattr(Image, "open", lambda _: Image.new("RGB", (3, 2), (1, 2, 3)))

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    read_image(saved(Image.fromarray(NOISE), tmp_path / "a.png"), 3)
    assert calls == []
    pixels = read_image(heic_file(tmp_path / "a.heic"), 3)
    np.testing.assert_array_equal(pixels, np.full((2, 3, 3), (1, 2, 3)))
    read_image(heic_file(tmp_path / "b.heic"), 3)
    assert calls == ["registered"]


@pytest.mark.usefixtures("_fresh_heic")
def test_a_real_heic_file(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    image = Image.new("RGB", (64, 48), (200, 100, 50))
    pillow_heif.from_pillow(image).save(tmp_path / "a.heic")
    pixels = read_image(tmp_path / "a.heic", 3)
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 6


def test_two_pages_of_avif_are_refused(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.avif", save_all=True, append_images=frames[1:])
    with pytest.raises(KdganError, match="exactly one frame"):
        read_image(path, 3)


def test_a_jpeg_of_several_pictures_is_its_first(tmp_path):
    content = io.BytesIO()
    frames = [Image.new("L", (8, 8), level) for level in (90, 10)]
    frames[0].save(content, "MPO", save_all=True, append_images=frames[1:])
    (tmp_path / "a.jpg").write_bytes(content.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", 1), np.full((8, 8, 1), 90))


def test_an_exif_that_is_damaged_elsewhere_does_not_spoil_the_orientation(tmp_path):
    """ "cam" where a number belongs, which matters only to whoever writes the EXIF again."""
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "cam", 6
    content = saved(Image.new("L", (16, 8), 90), tmp_path / "a.jpg", exif=exif).read_bytes()
    model = content.index(b"\x01\x10\x00\x02")
    (tmp_path / "a.jpg").write_bytes(content[: model + 1] + b"\0" + content[model + 2 :])
    assert read_image(tmp_path / "a.jpg", 1).shape == (16, 8, 1)
