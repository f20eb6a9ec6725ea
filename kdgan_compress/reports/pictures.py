"""Pictures of images and what detectors make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.files import atomic_path


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One detector's view of some images.

    Attributes:
        name: Row label, such as ``student``.
        x_hat: Reconstructions (N, C, S, S) in [−1, 1].
        scores: (N,).
        threshold: Scores above it are anomalies and are written in red.
    """

    name: str
    x_hat: Tensor
    scores: NDArray[np.float64]
    threshold: float


def plot_reconstructions(
    images: Tensor, classes: Sequence[str], rows: Sequence[Reconstruction], title: str, path: Path
) -> None:
    """A row of inputs over a row of reconstructions and scores for each detector.

    Args:
        images: uint8 (N, C, S, S).
        classes: Each image's class, the column titles.
        rows: The detectors.
        title: Of the whole picture.
        path: The PNG to write.
    """
    figure = Figure(figsize=(1.05 * len(images) + 1.2, 1.35 * (len(rows) + 1) + 0.4), layout="constrained")
    axes = figure.subplots(1 + len(rows), len(images), squeeze=False)
    figure.suptitle(title, fontsize=10)
    for column, (image, label) in enumerate(zip(images, classes, strict=True)):
        _show(axes[0, column], image.float() / 255)
        axes[0, column].set_title(label, fontsize=8)
        for number, row in enumerate(rows, start=1):
            score = row.scores[column]
            _show(axes[number, column], (row.x_hat[column] + 1) / 2)
            axes[number, column].set_xlabel(
                f"{score:.2f}", fontsize=8, color="tab:red" if score > row.threshold else "black"
            )
    for axis, name in zip(axes[:, 0], ("input", *(f"{row.name}\n> {row.threshold:.2f}" for row in rows)), strict=True):
        axis.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _show(axis: Axes, image: Tensor) -> None:
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
