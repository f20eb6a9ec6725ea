"""Images in matplotlib axes, and figures as PNG files."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdgan_compress.files import atomic_path


def show_image(axis: Axes, image: Tensor) -> None:
    """Show an image (C, H, W) in [0, 1], grey or RGB, without ticks; values outside the range are clipped."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
