"""Test images with their reconstructions and scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.reports.figures import save_figure, show_image


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


def plot_reconstructions(
    images: Tensor, classes: Sequence[str], rows: Sequence[Reconstruction], title: str, path: Path
) -> None:
    """Plot a row of inputs above one row of reconstructions and scores per detector.

    Args:
        images: uint8 (N, C, S, S).
        classes: Column titles: the class of each image.
        rows: One per detector.
        title: Title of the figure.
        path: The PNG to write.
    """
    figure = Figure(figsize=(1.05 * len(images) + 1.2, 1.35 * (len(rows) + 1) + 0.4), layout="constrained")
    axes = figure.subplots(1 + len(rows), len(images), squeeze=False)
    figure.suptitle(title, fontsize=10)
    for column, (image, label) in enumerate(zip(images, classes, strict=True)):
        show_image(axes[0, column], image.float() / 255)
        axes[0, column].set_title(label, fontsize=8)
        for number, row in enumerate(rows, start=1):
            score = row.scores[column]
            show_image(axes[number, column], (row.x_hat[column] + 1) / 2)
            axes[number, column].set_xlabel(
                f"{score:.2f}", fontsize=8, color="tab:red" if score > row.threshold else "black"
            )
    for axis, name in zip(axes[:, 0], ("input", *(f"{row.name}\n> {row.threshold:.2f}" for row in rows)), strict=True):
        axis.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    save_figure(figure, path)
