"""Read image files; training and the device share this code, so both see the same pixels.

A large photo is shrunk while it is decoded (JPEG) or right after it, so that only the part that is needed takes memory.
"""

import math
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.runtime.heic import HEADER_SIZE, is_heic, register_heic

MAX_DECODED_BYTES = 400_000_000
"""Bound on one image in memory: 100 megapixels in colour or 400 in grey, after the reduction of a JPEG."""

MAX_PARALLEL_BYTES = 64_000_000
"""Images that take more are decoded one at a time, whatever the number of threads."""

MAX_NEAR_PIXELS = 4_000_000
"""A shrunk photo has at most so many pixels, unless 2 times the wanted size are more."""

GREY_TOLERANCE = 4
"""Channels that differ by at most so many levels are grey: lossy formats round that much."""

COLOUR_CHECK_SIZE = (128, 128)
MULTI_PICTURE_FORMAT = "HEIF"
"""Its first picture is the photo, as in a JPEG of several pictures."""

JPEG_START = b"\xff\xd8\xff"
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MB: much text does not spoil the pixels

_large_image_lock, _warnings_lock = Lock(), Lock()


def read_image(
    path: Path, channels: int, size: tuple[int, int] | None = None, *, near: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Read one image upright (EXIF orientation applied).

    Args:
        path: A file that Pillow can read: 8 bits per channel, one frame, not CMYK.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB; transparency is dropped.
        size: Height and width to resize to (bilinear, antialiased); None keeps the size.
        near: Height and width that the caller will resize to: a much larger image is shrunk to about 4 times that size,
            a huge one to 2 times, with its aspect ratio kept. A resize of the result differs by about one grey level
            from a resize of the original. ``size`` implies it.

    Returns:
        Pixels (H, W, channels), 0 to 255.

    Raises:
        KdganError: The file is missing, not an image, truncated, animated, deeper than 8 bits, CMYK or too large.
    """
    with open_image(path) as image:
        mode = "L" if channels == 1 else "RGB"
        _check_pixels(path, image)
        pixels = np.array(_decode(path, image, mode, size, near or size), dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def is_coloured(path: Path) -> bool:
    """Whether any pixel of an image has a colour; a photo of 1024×1024 or more is looked at in a reduced size.

    Raises:
        KdganError: As ``read_image``.
    """
    with open_image(path) as image:
        if image.mode in ("1", "L", "LA"):
            return False
    pixels = read_image(path, 3, near=COLOUR_CHECK_SIZE)
    return bool((pixels.max(axis=2) - pixels.min(axis=2) > GREY_TOLERANCE).any())


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image after its EXIF orientation is applied; nothing is decoded.

    Raises:
        KdganError: The file is missing or not an image.
    """
    with open_image(path) as image:
        # a PNG's own getexif would decode the image, to find an EXIF that follows the pixels
        is_turned = _orientation(image, Image.Image.getexif(image)) > 4
        return (image.width, image.height) if is_turned else (image.height, image.width)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file with Pillow; whatever a decoder raises in the body says that the file can't be read.

    Raises:
        KdganError: The file is missing, not a regular file or not a readable image.
    """
    try:
        with _open(path) as image:
            yield image
    except (KdganError, MemoryError):
        raise
    except FileNotFoundError:
        raise KdganError("The image must exist", f"there is no file {path}", "Check the path") from None
    except Image.DecompressionBombError:
        raise _too_large(path, "more pixels than Pillow reads") from None
    except Exception as error:  # decoders raise anything
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)
        hint = "Remove or replace the file"
        raise KdganError("The file must be a readable image", f"{path}: {reason}", hint) from None


def _open(path: Path) -> Image.Image:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError("it is a folder" if stat.S_ISDIR(mode) else "it is a pipe or a device")
    with path.open("rb") as file:
        header = file.read(HEADER_SIZE)
    if header.startswith(JPEG_START):
        return JpegImageFile(path)  # of any size, since it is reduced while it is decoded
    if is_heic(header):
        try:
            register_heic()
        except KdganError as error:
            raise KdganError(error.problem, f"{path} is HEIC and {error.found}", error.hint) from None
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # this module has a bound of its own
        return Image.open(path)


def _check_pixels(path: Path, image: Image.Image) -> None:
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format != MULTI_PICTURE_FORMAT:
        raise KdganError("An image needs exactly one frame", f"{path} has {num_frames}", "Save one frame")
    if _is_deep(image):
        found = f"{path} has mode {image.mode}"
        raise KdganError("An image needs 8 bits per channel", found, "Convert it to 8 bits")
    if image.mode == "CMYK":
        raise KdganError("An image must be grey or RGB", f"{path} is CMYK", "Convert it to RGB")


def _is_deep(image: Image.Image) -> bool:
    """Whether channels have more than 8 bits. ``BGR;16`` has 16 bits per pixel; a PPM states its maximum last."""
    tiles: list[tuple[object, ...]] = getattr(image, "tile", [])
    maxima = [tile[3][-1] for tile in tiles if image.format == "PPM" and isinstance(tile[3], tuple)]
    return (
        image.mode.startswith(("I", "F"))
        or re.search(r"(?<!BGR);16", str(tiles)) is not None
        or any(isinstance(maximum, int) and maximum > 255 for maximum in maxima)
    )


def _decode(
    path: Path, image: Image.Image, mode: str, size: tuple[int, int] | None, near: tuple[int, int] | None
) -> Image.Image:
    """The upright image in a mode, shrunk towards ``near`` and resized to ``size``."""
    full_size = image.size
    box: tuple[float, float, float, float] = (0, 0, *full_size)
    if near is not None and isinstance(image, JpegImageFile):
        drafted = image.draft(None, _shrunk_size(full_size, _stored(near, _orientation(image))))
        box = drafted[1] if drafted else box
    num_bytes = _num_decoded_bytes(image, full_size, mode)
    if num_bytes > MAX_DECODED_BYTES:
        raise _too_large(path, f"{full_size[0]}×{full_size[1]} pixels take {num_bytes / 1e6:.0f} MB")
    with _large_image_lock if num_bytes > MAX_PARALLEL_BYTES else nullcontext():
        orientation = _orientation(image)  # decodes a PNG, whose EXIF may follow the pixels
        image.info.pop("transparency", None)  # Pillow would warn that it drops it
        pixels = image if image.mode in ("L", "RGB") else image.convert(mode)
        shrunk = full_size if near is None else _shrunk_size(full_size, _stored(near, orientation))
        if pixels.size != shrunk:
            pixels = pixels.resize(shrunk, Image.Resampling.HAMMING, box, reducing_gap=2.0)
        pixels.load()
    if orientation in TRANSPOSITIONS:
        pixels = pixels.transpose(TRANSPOSITIONS[orientation])
    if pixels.mode != mode:
        pixels = pixels.convert(mode)
    if size is not None and pixels.size != size[::-1]:
        pixels = pixels.resize(size[::-1], Image.Resampling.BILINEAR)
    return pixels


def _shrunk_size(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The size (width, height) to which an image is shrunk on its way to a wanted one; its own if it is small."""
    ratio = min(size[0] / wanted[0], size[1] / wanted[1])
    factor = max(ratio / 4, min(ratio / 2, math.sqrt(size[0] * size[1] / MAX_NEAR_PIXELS)))
    return size if factor < 2 else (math.ceil(size[0] / factor), math.ceil(size[1] / factor))


def _num_decoded_bytes(image: Image.Image, full_size: tuple[int, int], mode: str) -> int:
    """Memory of the decoded image, with its converted copy and the coefficients of a progressive JPEG."""
    num_bytes = 1 if image.mode in ("1", "L", "P") else 4
    if image.mode not in ("L", "RGB"):
        num_bytes += 1 if mode == "L" else 4
    coefficients = 2 * len(image.getbands()) if "progressive" in image.info else 0
    return image.width * image.height * num_bytes + full_size[0] * full_size[1] * coefficients


def _orientation(image: Image.Image, exif: Image.Exif | None = None) -> int:
    if image.format == "TIFF":  # Pillow itself turns it
        return 1
    orientation = (image.getexif() if exif is None else exif).get(ExifTags.Base.Orientation)
    return orientation if orientation in TRANSPOSITIONS else 1


def _stored(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height, as an image of this orientation is stored, of an upright height and width."""
    return size if orientation > 4 else (size[1], size[0])


def _too_large(path: Path, found: str) -> KdganError:
    problem = f"An image must take at most {MAX_DECODED_BYTES // 1_000_000} MB"
    return KdganError(problem, f"{path}: {found}", "Save it as JPEG, which is reduced while it is read, or smaller")
