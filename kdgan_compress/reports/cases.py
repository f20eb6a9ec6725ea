"""The best and worst cases of an evaluation as a PNG file: photos next to their anomaly maps, with the masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.reports.grids import save_figure

NUM_CASES = 4
"""Photos per row."""

CASE_INCHES, LABEL_INCHES, TITLE_INCHES = 2.6, 2.2, 0.5
GAP = 0.03
"""White space between a photo and its map, relative to the photo's width."""

MAP_COLORS = colormaps["inferno"]
MASK_COLOR = "#00c8ff"
MAX_ALPHA = 0.85
MAX_QUANTILE = 0.995
MAX_CLASS_CHARACTERS = 32

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class ScoredPhotos:
    """A labelled test split as a detector sees it.

    Attributes:
        photos: uint8 (N, C, H, W).
        maps: Anomaly maps (N, H, W), higher is more anomalous; NaN for photos that are in none of ``case_rows``.
        masks: One mask (H, W) per photo, True where the defect is, or None.
        scores: (N,).
        is_anomalous: The labels (N,).
        classes: Each photo's class, such as ``good`` or ``scratch``.
    """

    photos: Tensor
    maps: FloatArray
    masks: Sequence[NDArray[np.bool_] | None]
    scores: NDArray[np.float64]
    is_anomalous: NDArray[np.bool_]
    classes: Sequence[str]


@dataclass(frozen=True)
class CaseRow:
    """One row of the picture.

    Attributes:
        title: What its photos have in common.
        count: How many of all such photos are on which side of the threshold.
        indices: The photos, most telling first.
    """

    title: str
    count: str
    indices: list[int]


def plot_cases(scored: ScoredPhotos, threshold: float, path: Path, map_threshold: float | None = None) -> None:
    """Plot the defects with the lowest and the highest scores, and the good photos with the highest.

    Each photo stands next to its map, which lies over the photo in grey. Wrong verdicts are written in red. All maps
    have one colour scale, which begins at the median of the good photos.

    Args:
        scored: N ≥ 1 photos.
        threshold: Scores above it are anomalies.
        path: PNG file.
        map_threshold: The map's value above which a pixel belongs to a defect. The scale then ends half as far above
            it, and it is marked; otherwise the scale ends above 99.5 % of the values shown.
    """
    rows = case_rows(scored.scores, scored.is_anomalous, threshold)
    scale = _color_scale(scored, [index for row in rows for index in row.indices], map_threshold)
    height, width = scored.photos.shape[2:]
    row_inches = TITLE_INCHES + CASE_INCHES / (2 + GAP) * height / width
    size = (LABEL_INCHES + NUM_CASES * CASE_INCHES, 0.4 + len(rows) * row_inches)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), NUM_CASES, squeeze=False)
    for row, axes in zip(rows, grid, strict=True):
        axes[0].set_ylabel(f"{row.title}\n\n{row.count}", fontsize=9, rotation=0, ha="right", va="center")
        for axis in axes[len(row.indices) :]:
            axis.set_visible(False)
        for index, axis in zip(row.indices, axes, strict=False):
            _show_case(axis, scored, index, threshold, scale)
    bar = figure.colorbar(ScalarMappable(scale, MAP_COLORS), ax=grid, shrink=0.6, aspect=30, pad=0.01)
    bar.set_label("anomaly map", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if map_threshold is not None:
        bar.ax.axhline(map_threshold, color="white", linewidth=2)
        bar.set_ticks([map_threshold], labels=["limit"])
    contour = Line2D([], [], color=MASK_COLOR, label="labelled defect (mask)")
    figure.legend(handles=[contour], fontsize=8, frameon=False, loc="outside lower center")
    save_figure(figure, path)


def case_rows(scores: NDArray[np.float64], is_anomalous: NDArray[np.bool_], threshold: float) -> list[CaseRow]:
    """The rows of the picture: up to four photos each, none of them twice; a row without photos is left out."""
    by_score = np.argsort(scores, kind="stable")
    defects = by_score[is_anomalous[by_score]]
    normals = by_score[~is_anomalous[by_score]]
    num_found, num_alarms = (int((scores[group] > threshold).sum()) for group in (defects, normals))
    num_weakest = min(NUM_CASES, (len(defects) + 1) // 2)
    rows = [
        (
            "Defects with the\nlowest scores",
            f"{len(defects) - num_found} of {len(defects)} missed",
            defects[:num_weakest],
        ),
        ("Good photos with\nthe highest scores", f"{num_alarms} of {len(normals)} false alarms", normals[::-1]),
        ("Defects with the\nhighest scores", f"{num_found} of {len(defects)} found", defects[num_weakest:][::-1]),
    ]
    return [CaseRow(title, count, group[:NUM_CASES].tolist()) for title, count, group in rows if len(group)]


def verdict(score: float, threshold: float, is_anomalous: bool) -> tuple[str, bool]:
    """A score relative to the threshold with its verdict, and whether the verdict is right."""
    relative = f"{score / threshold:.2f} × limit" if threshold > 0 else f"{score:.3g}, limit {threshold:.3g}"
    if score > threshold:
        return f"{relative}: {'found' if is_anomalous else 'false alarm'}", is_anomalous
    return f"{relative}: {'missed' if is_anomalous else 'passed'}", not is_anomalous


def _color_scale(scored: ScoredPhotos, shown: list[int], map_threshold: float | None) -> Normalize:
    normals = scored.maps[~scored.is_anomalous]
    low = float(np.nanmedian(normals if len(normals) else scored.maps[shown]))
    high = float(np.quantile(scored.maps[shown], MAX_QUANTILE))
    if map_threshold is not None:
        high = low + 1.5 * (map_threshold - low)
    return Normalize(low, max(high, np.nextafter(low, np.inf)), clip=True)


def _show_case(axis: Axes, scored: ScoredPhotos, index: int, threshold: float, scale: Normalize) -> None:
    """One photo and its map side by side, both with the mask."""
    photo = scored.photos[index].permute(1, 2, 0).numpy() / 255
    gap = np.ones((photo.shape[0], max(1, round(GAP * photo.shape[1])), 3))
    overlay = overlay_map(photo, scored.maps[index], scale)
    axis.imshow(np.concatenate([np.broadcast_to(photo, overlay.shape), gap, overlay], axis=1))
    mask = scored.masks[index]
    if mask is not None and mask.any() and not mask.all():
        both = np.concatenate([mask, np.zeros(gap.shape[:2], dtype=bool), mask], axis=1)
        axis.contour(both, levels=[0.5], colors=MASK_COLOR, linewidths=1)
    text, is_right = verdict(float(scored.scores[index]), threshold, bool(scored.is_anomalous[index]))
    title = f"{scored.classes[index][:MAX_CLASS_CHARACTERS]}\n{text}"
    axis.set_title(title, fontsize=9, color="black" if is_right else "tab:red", parse_math=False)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def overlay_map(photo: FloatArray, values: FloatArray, scale: Normalize) -> FloatArray:
    """A map (H, W) in colours over a photo (H, W, C) in [0, 1] in grey, as RGB (H, W, 3); high values hide it."""
    relative = np.asarray(scale(values))[..., None]
    grey = photo.mean(2, keepdims=True)
    blended: FloatArray = (
        grey * (1 - MAX_ALPHA * relative) + MAP_COLORS(relative[..., 0])[..., :3] * MAX_ALPHA * relative
    )
    return blended
