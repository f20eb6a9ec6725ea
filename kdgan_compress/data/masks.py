"""Masks that say where the defects of a test photo are, as MVTec's ``ground_truth`` has them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.images import open_image, upright_size

LOSSY_THRESHOLD = 127
"""A lossy format spoils the values of a mask, so only there half of the range counts; else any value but 0 does."""

MAX_ASPECT_DIFFERENCE = 0.02


def read_mask(path: Path, size: tuple[int, int], photo: Path | None = None) -> NDArray[np.bool_]:
    """Read a mask at the size of an anomaly map.

    A pixel is True if any pixel of the file that it covers is marked, so that a thin scratch does not vanish when the
    mask is made smaller. A larger mask repeats the nearest pixels.

    Args:
        path: An image file; every value but 0 (in JPEG: above 127) marks a defect, in any channel but alpha.
        size: Height and width.
        photo: The mask's photo, to check that both show the same area.

    Returns:
        (H, W), True where the defect is.

    Raises:
        KdganError: A file can't be read, or mask and photo differ in their aspect ratio by more than 2 %.
    """
    with open_image(path) as image:
        threshold = LOSSY_THRESHOLD if image.format == "JPEG" else 0
        values = np.asarray(image)
        has_alpha = image.mode in ("LA", "RGBA", "PA")
    if values.ndim == 3:
        values = values[..., :-1] if has_alpha else values
        values = values.max(axis=2)
    marked = values > threshold
    if photo is not None:
        _check_aspect(path, marked.shape, photo)
    for axis, length in enumerate(size):
        marked = _resize_axis(marked, axis, length)
    return marked


def _resize_axis(marked: NDArray[np.bool_], axis: int, length: int) -> NDArray[np.bool_]:
    """Change the length of one axis: the maximum over what a pixel covers, or the nearest pixel."""
    old = marked.shape[axis]
    resized: NDArray[np.bool_]
    if length >= old:
        resized = marked.take((2 * np.arange(length) + 1) * old // (2 * length), axis)
    else:
        resized = np.logical_or.reduceat(marked, np.arange(length) * old // length, axis)
    return resized


def _check_aspect(path: Path, shape: tuple[int, ...], photo: Path) -> None:
    height, width = upright_size(photo)
    if abs(shape[0] * width / (shape[1] * height) - 1) > MAX_ASPECT_DIFFERENCE:
        found = f"{path} has {shape[0]}×{shape[1]} pixels and {photo} {height}×{width}"
        raise KdganError("A mask needs the aspect ratio of its photo", found, "Replace or remove the mask")
