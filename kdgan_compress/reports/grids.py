"""Grids of images as PNG files: labelled rows of tiles, and reconstructions with their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from kdgan_compress.files import atomic_path

GAP = 2
"""White pixels between tiles."""

ROW_INCHES, TILE_INCHES, LABEL_INCHES = 0.6, 0.6, 1.4


@dataclass(frozen=True, eq=False)
class ImageRow:
    """Groups of images side by side, with a wider gap between groups.

    Attributes:
        label: Text to the left of the row.
        groups: Each (N, C, S, S) in [0, 1].
    """

    label: str
    groups: Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One detector's reconstructions and scores of some images.

    Attributes:
        name: Row label, such as ``student``.
        x_hat: Reconstructions (N, C, S, S) in [−1, 1].
        scores: (N,).
        threshold: Scores above it are written in red.
    """

    name: str
    x_hat: Tensor
    scores: NDArray[np.float64]
    threshold: float


def plot_rows(rows: Sequence[ImageRow], titles: Sequence[str], path: Path) -> None:
    """Plot rows of images below each other, with a title above each group.

    All rows have as many groups, and as many images in each group, as the first.
    """
    counts = [len(group) for group in rows[0].groups]
    tiles = sum(counts) + 0.5 * (len(counts) - 1)
    size = (LABEL_INCHES + TILE_INCHES * max(tiles, 4), 0.5 + ROW_INCHES * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(counts), squeeze=False, gridspec_kw={"width_ratios": counts})
    for title, axis in zip(titles, axes[0], strict=True):
        axis.set_title(title, fontsize=8)
    for row, row_axes in zip(rows, axes, strict=True):
        _label_row(row_axes[0], row.label)
        for group, axis in zip(row.groups, row_axes, strict=True):
            tiles_with_gaps = pad(group.clamp(0, 1), (0, GAP), value=1.0)
            _show_image(axis, torch.cat(list(tiles_with_gaps), dim=2))
            axis.spines[:].set_visible(False)
    save_figure(figure, path)


def plot_reconstructions(
    images: Tensor, classes: Sequence[str], rows: Sequence[Reconstruction], title: str, path: Path
) -> None:
    """Plot a row of inputs, uint8 (N, C, S, S), with their classes above one row of reconstructions per detector."""
    figure = Figure(figsize=(1.05 * len(images) + 1.2, 1.35 * (len(rows) + 1) + 0.4), layout="constrained")
    input_axes, *rows_axes = figure.subplots(1 + len(rows), len(images), squeeze=False)
    figure.suptitle(title, fontsize=10)
    _label_row(input_axes[0], "input")
    for axis, image, label in zip(input_axes, images, classes, strict=True):
        _show_image(axis, image.float() / 255)
        axis.set_title(label, fontsize=8)
    for row, axes in zip(rows, rows_axes, strict=True):
        _label_row(axes[0], f"{row.name}\n> {row.threshold:.2f}")
        for axis, image, score in zip(axes, row.x_hat, row.scores, strict=True):
            _show_image(axis, (image + 1) / 2)
            axis.set_xlabel(f"{score:.2f}", fontsize=8, color="tab:red" if score > row.threshold else "black")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _label_row(axis: Axes, label: str) -> None:
    axis.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")


def _show_image(axis: Axes, image: Tensor) -> None:
    """Show an image (C, H, W) in [0, 1], grey or RGB, without ticks; values outside the range are clipped."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
