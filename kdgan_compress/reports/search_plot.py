"""The picture of a search: AUC drop against bytes of every file, the limits and the chosen one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from kdgan_compress.reports.charts import COLORS, MARKERS
from kdgan_compress.reports.grids import save_figure


class Measured(Protocol):
    """A file: its name, precision, bytes, and the drop of AUC from the teacher's."""

    @property
    def network(self) -> str:
        """Name of the student."""

    @property
    def precision(self) -> str:
        """Precision of the file."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""

    @property
    def auc_drop(self) -> float:
        """The teacher's AUC minus this one, in [-1, 1]."""


def plot_search(
    path: Path,
    candidates: Sequence[Measured],
    winner: Measured,
    max_kb: float | None,
    max_auc_drop: float | None,
) -> str:
    """Write the picture as PNG and return its path.

    Args:
        path: The PNG file.
        candidates: Files of the fully trained students, at least one.
        winner: The chosen one.
        max_kb: Limit of kilobytes; None for none.
        max_auc_drop: Limit of the drop; None for none.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    precisions = list(dict.fromkeys(each.precision for each in candidates))
    for number, precision in enumerate(precisions):
        chosen = [each for each in candidates if each.precision == precision]
        axis.plot(
            [each.size_bytes for each in chosen],
            [100 * each.auc_drop for each in chosen],
            MARKERS[number % len(MARKERS)],
            color=COLORS[number % len(COLORS)],
            linestyle="none",
            label=precision,
        )
    for each in candidates:
        axis.annotate(
            each.network, (each.size_bytes, 100 * each.auc_drop), (4, 4), textcoords="offset points", fontsize=7
        )
    axis.plot(
        winner.size_bytes,
        100 * winner.auc_drop,
        "o",
        markersize=15,
        markerfacecolor="none",
        color="black",
        label="chosen",
    )
    if max_kb is not None:
        axis.axvline(1000 * max_kb, color="grey", linestyle="--", linewidth=1, label="limits")
    if max_auc_drop is not None:
        label = None if max_kb is not None else "limits"
        axis.axhline(100 * max_auc_drop, color="grey", linestyle="--", linewidth=1, label=label)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(EngFormatter("B"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="bytes of the file", ylabel="AUC below the teacher's, in points")
    axis.margins(0.12)
    axis.grid(color="grey", alpha=0.25, linewidth=0.6)
    axis.legend(fontsize=8)
    save_figure(figure, path)
    return str(path)
