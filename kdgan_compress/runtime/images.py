"""Find and read image files; training and the device share this code, so both see the same pixels."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdgan_compress.errors import KdganError, first_line

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
MPO_FORMAT = "MPO"
"""Multi-picture JPEG, as phones write it; the first picture is the photo."""

READ_ERRORS = (OSError, SyntaxError, TypeError, ValueError, struct.error, Image.DecompressionBombError)


def find_images(folder: Path) -> list[Path]:
    """List the image files in a folder and its subfolders by suffix, sorted by path; hidden ones are skipped.

    Raises:
        KdganError: The folder does not exist or contains no image.
    """
    if not folder.is_dir():
        raise KdganError("The folder must exist", f"found none at {folder}", "Check the path")
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not images:
        hint = f"Add images of these types: {', '.join(sorted(SUFFIXES))}"
        raise KdganError("The folder must hold images", f"there is none in {folder}", hint)
    return images


def read_image(path: Path, channels: int, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read one image upright (EXIF orientation applied).

    Args:
        path: A file that Pillow can read: 8 bits per channel, one frame, not CMYK.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB; transparency is dropped.
        size: Height and width to resize to (bilinear, antialiased); None keeps the size.

    Returns:
        Pixels (H, W, channels), 0 to 255.

    Raises:
        KdganError: The file is missing, not an image, truncated, animated, deeper than 8 bits or CMYK.
    """
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1 and image.format != MPO_FORMAT:
                raise KdganError("An image needs exactly one frame", f"{path} has {image.n_frames}", "Save one frame")  # type: ignore[attr-defined]
            if image.mode.startswith(("I", "F")) or ";16" in str(image.tile):
                found = f"{path} has mode {image.mode}"
                raise KdganError("An image needs 8 bits per channel", found, "Convert it to 8 bits")
            if image.mode == "CMYK":
                raise KdganError("An image must be grey or RGB", f"{path} is CMYK", "Convert it to RGB")
            if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
                del image.info["transparency"]  # Pillow would warn that it drops it
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            if size is not None and upright.size != size[::-1]:
                upright = upright.resize(size[::-1], Image.Resampling.BILINEAR)
            pixels = np.array(upright, dtype=np.uint8)
    except KdganError:
        raise
    except FileNotFoundError:
        raise KdganError("The image must exist", f"there is no file {path}", "Check the path") from None
    except READ_ERRORS as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)
        hint = "Remove or replace the file"
        raise KdganError("The file must be a readable image", f"{path}: {reason}", hint) from None
    return pixels.reshape(*pixels.shape[:2], channels)


def is_grey(path: Path) -> bool:
    """Whether an image file is stored in grey."""
    try:
        with Image.open(path) as image:
            return image.mode in ("1", "L", "LA")
    except READ_ERRORS:
        return False
