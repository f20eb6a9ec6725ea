"""Plots of a run: its losses an epoch, and where normal and novel scores lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from kdgan_compress.files import atomic_path

NOT_A_LOSS = frozenset({"stage_index", "stage", "epoch", "num_images", "seconds", "images_per_s", "auc", "auc_raw"})
TEACHER = "teacher_"
BINS = 60
SMALLEST_SHOWN = 0.01


def plot_curves(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses (log scale, linear about 0 if one is negative) and, where it was tracked, AUC over all stages' epochs.

    Args:
        lines: Of ``metrics.jsonl``.
        path: The PNG to write.
    """
    epochs = np.arange(1, len(lines) + 1)
    tracked = any(line.get("auc") is not None for line in lines)
    figure = Figure(figsize=(11 if tracked else 7, 4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, 1 + tracked))
    names = sorted({key for line in lines for key in line} - NOT_A_LOSS)
    terms = sorted({name.removeprefix(TEACHER) for name in names})
    for name in names:
        style = "--" if name.startswith(TEACHER) else "-"
        values = [line.get(name, np.nan) for line in lines]
        axes[0].plot(epochs, values, style, marker=".", color=f"C{terms.index(name.removeprefix(TEACHER))}", label=name)
    axes[0].set(title="losses, unweighted means", xlabel="epoch")
    if any(line.get(name, 0.0) < 0 for line in lines for name in names):
        axes[0].set_yscale("symlog", linthresh=SMALLEST_SHOWN)  # a critic's values have either sign
    else:
        axes[0].set_yscale("log")
    axes[0].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    if tracked:
        for name, label in (("auc", "averaged weights"), ("auc_raw", "raw weights")):
            axes[1].plot(epochs, [np.nan if line[name] is None else line[name] for line in lines], ".-", label=label)
        axes[1].set(title="AUC on the test split", xlabel="epoch")
        axes[1].legend(fontsize="small")
    for axis in axes:
        for number, line in enumerate(lines[1:], start=1):
            if line["stage_index"] != lines[number - 1]["stage_index"]:
                axis.axvline(number + 0.5, color="grey", linestyle="--", linewidth=1)
        axis.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def plot_scores(
    calibration: NDArray[np.float64],
    test: NDArray[np.float64],
    is_anomalous: NDArray[np.bool_],
    threshold: float,
    path: Path,
) -> None:
    """Histograms of calibration normals', test normals' and novel images' scores, and the threshold.

    Args:
        calibration: Scores of the normals that the threshold was found on.
        test: Scores of the test split; may be empty.
        is_anomalous: Whether each test image is novel.
        threshold: Scores above it are anomalies.
        path: The PNG to write.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    edges = np.linspace(0, np.quantile(np.concatenate([calibration, test]), 0.995), BINS).tolist()
    groups = (
        ("normals for the threshold", calibration),
        ("test normals", test[~is_anomalous]),
        ("test novel", test[is_anomalous]),
    )
    for label, scores in groups:
        if len(scores):
            axis.hist(scores, bins=edges, density=True, histtype="stepfilled", alpha=0.45, label=label)
    axis.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
    axis.set(title="anomaly scores", xlabel="score", ylabel="density")
    axis.legend(fontsize="small")
    _save(figure, path)


def plot_speed(times: Sequence[tuple[str, str, float]], path: Path) -> None:
    """Bars of the time an image and model takes (log scale), grouped by the work.

    Args:
        times: What was done, by which path, and microseconds; what belongs together stands together.
        path: The PNG to write.
    """
    groups, paths = (list(dict.fromkeys(names)) for names in zip(*[entry[:2] for entry in times], strict=True))
    figure = Figure(figsize=(9, 1.5 + 0.22 * len(times) + 0.2 * len(groups)), layout="constrained")
    axis = figure.subplots()
    ticks: list[float] = []
    place = 0.0
    for group in groups:
        own = [entry for entry in times if entry[0] == group]
        for number, (_, name, us) in enumerate(own):
            axis.barh(place + number, us, color=f"C{paths.index(name)}", height=0.9)
            axis.text(us, place + number, f" {us:,.0f}", va="center", fontsize="x-small")
        ticks.append(place + (len(own) - 1) / 2)
        place += len(own) + 1
    axis.set_yticks(ticks, labels=groups)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xmargin(0.12)
    axis.set(title="time of an image and model", xlabel="µs")
    handles = [Patch(color=f"C{number}", label=name) for number, name in enumerate(paths)]
    figure.legend(handles=handles, fontsize="small", loc="outside lower center", ncols=len(paths))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
