"""Draw anomaly maps over photos as heat maps, and name their files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from kdgan_compress.errors import KdganError
from kdgan_compress.files import atomic_path
from kdgan_compress.runtime.batch_scoring import FileScore
from kdgan_compress.runtime.detector import Detector

SUFFIX = ".map.jpg"
MIN_SIDE, MAX_SIDE = 384, 768
"""Range of an overlay's longer side, in pixels."""

JPEG_QUALITY = 90

FIRST_VISIBLE, FULL = 0.75, 1.5
"""Map divided by threshold: transparent up to the first, strongest colour from the second."""

MIN_FULL_DIFFERENCE = 0.25
"""Difference of image and reconstruction that gets the strongest colour; the map's maximum if that is larger."""

MAX_OPACITY = 0.6
MAX_RELATIVE = 1e4
"""Larger values are drawn as this one, so that interpolation stays finite."""

INFERNO = np.array(
    [
        *((0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84)),
        *((228, 90, 49), (249, 142, 9), (249, 203, 53), (252, 255, 164)),
    ],
    dtype=np.float32,
)
"""RGB at equal steps of the perceptually uniform colormap inferno (matplotlib, CC0)."""

COLORMAP = np.stack(
    [np.interp(np.linspace(0, len(INFERNO) - 1, 256), np.arange(len(INFERNO)), channel) for channel in INFERNO.T],
    axis=1,
).astype(np.float32)
"""The same in 256 steps."""

CONTOUR, OUTLINE = (255, 255, 255), (0, 0, 0)
LABEL_NORMAL, LABEL_ANOMALY = (45, 45, 45), (190, 20, 20)


def draw_overlay(
    pixels: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    label: str,
    is_anomaly: bool,
    threshold: float | None,
) -> Image.Image:
    """Draw an anomaly map over a photo, in colours from purple (just below the threshold) to yellow.

    Args:
        pixels: The photo, uint8 (H, W, 1 or 3).
        anomaly_map: (h, w) of any size; it covers the whole photo.
        label: Text for the corner.
        is_anomaly: Gives the label a red background.
        threshold: Where the map is above it, a contour is drawn, and colours are relative to it. None if the map is
            not in units of the score: then colours are relative to its maximum.

    Returns:
        An RGB image whose longer side is 384 to 768 pixels.
    """
    photo = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    scale = np.clip(max(photo.size), MIN_SIDE, MAX_SIDE) / max(photo.size)
    width, height = (max(1, round(side * scale)) for side in photo.size)
    relative = _relative_map(anomaly_map, threshold)
    values = np.asarray(Image.fromarray(relative).resize((width, height), Image.Resampling.BILINEAR))
    heat = np.clip((values - FIRST_VISIBLE) / (FULL - FIRST_VISIBLE), 0, 1)
    colours = COLORMAP[(heat * (len(COLORMAP) - 1)).round().astype(np.uint8)]
    blended = np.array(photo.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    blended += MAX_OPACITY * np.sqrt(heat)[..., None] * (colours - blended)
    if threshold is not None:
        _draw_contour(blended, values > 1)
    overlay = Image.fromarray(blended.round().astype(np.uint8))
    _draw_label(overlay, label, LABEL_ANOMALY if is_anomaly else LABEL_NORMAL)
    return overlay


def draw_result(detector: Detector, result: FileScore) -> Image.Image:
    """Draw the map of a photo that ``score_files`` scored with maps; the label has its relative score."""
    assert result.pixels is not None, "score_files needs maps=True"
    assert result.anomaly_map is not None, "score_files needs maps=True"
    threshold = detector.threshold
    label = result_label(result.score or 0.0, result.relative, threshold, result.is_anomaly is True)
    limit = threshold if detector.map_unit == "score" else None
    return draw_overlay(result.pixels, result.anomaly_map, label, result.is_anomaly is True, limit)


def result_label(score: float, relative: float | None, threshold: float, is_anomaly: bool) -> str:
    """The text of an overlay: the relative score, or score and threshold where there is none, and the decision."""
    text = f"{score:.4g} (limit {threshold:.4g})" if relative is None else f"{relative:.2f}"
    return f"{text} {'anomaly' if is_anomaly else 'normal'}"


def write_overlay(path: Path, overlay: Image.Image) -> None:
    """Write an overlay as JPEG.

    Raises:
        KdganError: The path is not writable.
    """
    with atomic_path(path) as temporary:
        overlay.save(temporary, "JPEG", quality=JPEG_QUALITY)


def overlay_paths(folder: Path, photos: Iterable[tuple[Path, Path]]) -> list[Path]:
    """Where each photo's overlay is written: the photo's path below its root, in ``folder``, with suffix ``.map.jpg``.

    Args:
        folder: Folder of the overlays.
        photos: Path and root of each photo; a root is a folder whose photos are all scored, or a photo's own folder.

    Returns:
        One path per photo; equal names get numbers, and no path is that of a photo.
    """
    photos = list(photos)
    taken = {_key(path) for path, _ in photos}
    numbers: dict[str, int] = {}
    paths = []
    for photo, root in photos:
        stem = folder / photo.relative_to(root).with_suffix("")
        number = numbers.get(_key(stem), 1)
        path = stem.with_name(stem.name + SUFFIX)
        while _key(path) in taken:
            number += 1
            path = stem.with_name(f"{stem.name}-{number}{SUFFIX}")
        numbers[_key(stem)] = number
        taken.add(_key(path))
        paths.append(path)
    return paths


def check_overlay_folder(folder: Path, scored: Iterable[Path]) -> None:
    """Check that the overlays' folder is not in a scored folder, because the next run would score the overlays.

    Raises:
        KdganError: It is.
    """
    for root in scored:
        if folder.resolve().is_relative_to(root.resolve()):
            found = f"{folder} is in {root}"
            hint = "Give --maps a folder elsewhere; the next run would score the maps too"
            raise KdganError("The folder of the maps must be outside of the scored folders", found, hint)


def _key(path: Path) -> str:
    """Equal for paths that are equal on file systems that ignore case."""
    return str(path.absolute()).casefold()


def _relative_map(anomaly_map: NDArray[np.float32], threshold: float | None) -> NDArray[np.float32]:
    """The map on a scale on which 1 is the threshold.

    It is the map divided by the threshold. If the threshold is not positive, it is 1 plus the map's distance from the
    threshold, divided by the largest such distance in this map.
    """
    values = np.nan_to_num(anomaly_map).astype(np.float64)
    if threshold is None:
        relative = FULL * values / max(MIN_FULL_DIFFERENCE, values.max(initial=0))
    elif threshold > 0:
        relative = values / threshold
    else:
        distance = values - threshold
        relative = 1 + distance / (np.abs(distance).max(initial=0) or 1)
    return np.asarray(relative.clip(0, MAX_RELATIVE), dtype=np.float32)


def _draw_contour(pixels: NDArray[np.float32], region: NDArray[np.bool_]) -> None:
    """Draw the edge of a region in white with black on both sides, in place."""
    if not region.any():
        return
    thickness = max(1, max(region.shape) // 300)
    inner = _shrink(region, thickness)
    for area, colour in (
        (_grow(region) ^ region, OUTLINE),
        (region ^ inner, CONTOUR),
        (inner ^ _shrink(inner), OUTLINE),
    ):
        pixels[area] = colour


def _shrink(region: NDArray[np.bool_], by: int = 1) -> NDArray[np.bool_]:
    """The region without its outermost pixels; the image's edge counts as outside."""
    return ~_grow(~np.pad(region, by), by)[by:-by, by:-by]


def _grow(region: NDArray[np.bool_], by: int = 1) -> NDArray[np.bool_]:
    """The region with its neighbours in the four directions."""
    for _ in range(by):
        grown = region.copy()
        grown[1:] |= region[:-1]
        grown[:-1] |= region[1:]
        grown[:, 1:] |= region[:, :-1]
        grown[:, :-1] |= region[:, 1:]
        region = grown
    return region


def _draw_label(overlay: Image.Image, text: str, background: tuple[int, int, int]) -> None:
    """Write white text into the upper left corner."""
    size = max(12, max(overlay.size) // 26)
    font = ImageFont.load_default(size if features.check("freetype2") else None)
    draw = ImageDraw.Draw(overlay)
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    margin = size // 3
    draw.rectangle((0, 0, right - left + 2 * margin, bottom - top + 2 * margin), background)
    draw.text((margin - left, margin - top), text, (255, 255, 255), font)
