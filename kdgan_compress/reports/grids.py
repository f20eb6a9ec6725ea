"""Pictures of many small images: rows of tiles with a label each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from kdgan_compress.files import atomic_path

GAP = 2
ROW_INCHES, TILE_INCHES, LABEL_INCHES = 0.6, 0.6, 1.4


@dataclass(frozen=True, eq=False)
class Row:
    """Groups of images beside each other, with a wider gap between groups.

    Attributes:
        label: Written before the row.
        groups: Each (N, C, S, S) in [0, 1].
    """

    label: str
    groups: Sequence[Tensor]


def plot_rows(rows: Sequence[Row], titles: Sequence[str], path: Path) -> None:
    """Draw rows of one layout below each other.

    Args:
        rows: At least one; all have as many groups as the first and these as many images.
        titles: One a group, written above it.
        path: The PNG to write.
    """
    counts = [len(group) for group in rows[0].groups]
    tiles = sum(counts) + 0.5 * (len(counts) - 1)
    size = (LABEL_INCHES + TILE_INCHES * max(tiles, 4), 0.5 + ROW_INCHES * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(counts), squeeze=False, gridspec_kw={"width_ratios": counts})
    for title, axis in zip(titles, axes[0], strict=True):
        axis.set_title(title, fontsize=8)
    for row, line in zip(rows, axes, strict=True):
        line[0].set_ylabel(row.label, fontsize=8, rotation=0, ha="right", va="center")
        for group, axis in zip(row.groups, line, strict=True):
            pixels = _tiled(group.clamp(0, 1)).permute(1, 2, 0).numpy()
            axis.imshow(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _tiled(images: Tensor) -> Tensor:
    """Images (N, C, S, S) beside each other, white between them: (C, S, N·(S + 2))."""
    return torch.cat(list(pad(images, (0, GAP), value=1.0)), dim=2)
