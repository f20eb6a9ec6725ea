"""Grids of many small images: labelled rows of tiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from kdgan_compress.reports.figures import save_figure, show_image

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


def plot_rows(rows: Sequence[ImageRow], titles: Sequence[str], path: Path) -> None:
    """Plot rows of images below each other.

    Args:
        rows: At least one; all have as many groups, and as many images in each group, as the first.
        titles: One title per group, above it.
        path: The PNG to write.
    """
    counts = [len(group) for group in rows[0].groups]
    tiles = sum(counts) + 0.5 * (len(counts) - 1)
    size = (LABEL_INCHES + TILE_INCHES * max(tiles, 4), 0.5 + ROW_INCHES * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(counts), squeeze=False, gridspec_kw={"width_ratios": counts})
    for title, axis in zip(titles, axes[0], strict=True):
        axis.set_title(title, fontsize=8)
    for row, row_axes in zip(rows, axes, strict=True):
        row_axes[0].set_ylabel(row.label, fontsize=8, rotation=0, ha="right", va="center")
        for group, axis in zip(row.groups, row_axes, strict=True):
            show_image(axis, _tile(group))
            axis.spines[:].set_visible(False)
    save_figure(figure, path)


def _tile(images: Tensor) -> Tensor:
    """Images (N, C, S, S) side by side with white gaps: (C, S, N·(S + 2))."""
    return torch.cat(list(pad(images.clamp(0, 1), (0, GAP), value=1.0)), dim=2)
