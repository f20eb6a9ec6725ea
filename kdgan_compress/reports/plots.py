"""Plots: losses per epoch, histograms of anomaly scores, and times of the benchmark."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from kdgan_compress.reports.grids import save_figure

NOT_A_LOSS = frozenset({"stage_index", "stage", "epoch", "num_images", "seconds", "images_per_s", "auc", "auc_raw"})
TEACHER_PREFIX = "teacher_"
NUM_BINS = 60
LINEAR_BELOW = 0.01


def plot_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Write ``curves_figure`` as PNG."""
    save_figure(curves_figure(metrics), path)


def curves_figure(metrics: Sequence[dict[str, Any]]) -> Figure:
    """Plot the losses and, if it was tracked, the AUC in the lines of ``metrics.jsonl`` over the epochs of all stages.

    The loss axis is logarithmic; with a negative loss, symmetric logarithmic.
    """
    epochs = np.arange(1, len(metrics) + 1)
    is_tracked = any(line.get("auc") is not None for line in metrics)
    figure = Figure(figsize=(11 if is_tracked else 7, 4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, 1 + is_tracked))
    names = sorted({key for line in metrics for key in line} - NOT_A_LOSS)
    terms = sorted({name.removeprefix(TEACHER_PREFIX) for name in names})
    for name in names:
        values = [line.get(name, np.nan) for line in metrics]
        style = ".--" if name.startswith(TEACHER_PREFIX) else ".-"
        axes[0].plot(epochs, values, style, color=f"C{terms.index(name.removeprefix(TEACHER_PREFIX))}", label=name)
    axes[0].set(title="losses, unweighted means", xlabel="epoch")
    if any(line.get(name, 0.0) < 0 for line in metrics for name in names):
        axes[0].set_yscale("symlog", linthresh=LINEAR_BELOW)  # a critic's values have either sign
    else:
        axes[0].set_yscale("log")
    if names:
        axes[0].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    if is_tracked:
        for name, label in (("auc", "EMA"), ("auc_raw", "without EMA")):
            values = [np.nan if line.get(name) is None else line[name] for line in metrics]
            if not np.isnan(values).all():
                axes[1].plot(epochs, values, ".-", label=label)
        axes[1].set(title="AUC on the test split", xlabel="epoch")
        axes[1].legend(fontsize="small")
    stage_ends = [
        number
        for number, (line, following) in enumerate(itertools.pairwise(metrics), start=1)
        if line["stage_index"] != following["stage_index"]
    ]
    for axis in axes:
        for epoch in stage_ends:
            axis.axvline(epoch + 0.5, color="grey", linestyle="--", linewidth=1)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if len(metrics) == 1:
            axis.set_xticks([1])
    return figure


def plot_scores(
    calibration_scores: NDArray[np.float64],
    test_scores: NDArray[np.float64],
    is_anomalous: NDArray[np.bool_],
    threshold: float,
    path: Path,
) -> None:
    """Write ``scores_figure`` as PNG."""
    save_figure(scores_figure(calibration_scores, test_scores, is_anomalous, threshold), path)


def scores_figure(
    calibration_scores: NDArray[np.float64],
    test_scores: NDArray[np.float64],
    is_anomalous: NDArray[np.bool_],
    threshold: float,
) -> Figure:
    """Plot histograms of the scores of calibration, normal and anomalous test images, and the threshold.

    The highest 0.5 % of all scores are counted in the last bin.

    Args:
        calibration_scores: Scores (V,) of the normal images that set the threshold, V ≥ 1.
        test_scores: Scores (M,) of the test split; M may be 0.
        is_anomalous: Labels (M,) of the test split.
        threshold: Scores above it are anomalies.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    scores = np.concatenate([calibration_scores, test_scores])
    low, high = min(0.0, float(scores.min())), float(np.quantile(scores, 0.995))
    if high <= low:  # equal scores
        high = low + max(1.0, abs(low))
    edges = np.linspace(low, high, NUM_BINS).tolist()
    groups = (
        ("calibration, normal", calibration_scores),
        ("test, normal", test_scores[~is_anomalous]),
        ("test, anomalous", test_scores[is_anomalous]),
    )
    for label, group in groups:
        if len(group):
            values = np.minimum(group, high)
            axis.hist(values, bins=edges, density=True, histtype="stepfilled", alpha=0.45, label=label)
    axis.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
    axis.set(title="anomaly scores", xlabel="score", ylabel="density")
    axis.legend(fontsize="small")
    return figure


def plot_speed(times: Sequence[tuple[str, str, float]], path: Path) -> None:
    """Plot a bar per time (log scale), grouped by the work that was measured.

    Args:
        times: Work, path and microseconds per image and model; the times of one kind of work are consecutive.
        path: The PNG to write.
    """
    groups, paths = (list(dict.fromkeys(names)) for names in zip(*[entry[:2] for entry in times], strict=True))
    figure = Figure(figsize=(9, 1.5 + 0.22 * len(times) + 0.2 * len(groups)), layout="constrained")
    axis = figure.subplots()
    ticks: list[float] = []
    top = 0
    for group in groups:
        bars = [(name, us) for work, name, us in times if work == group]
        for y, (name, us) in enumerate(bars, start=top):
            axis.barh(y, us, color=f"C{paths.index(name)}", height=0.9)
            axis.text(us, y, f" {us:,.0f}", va="center", fontsize="x-small")
        ticks.append(top + (len(bars) - 1) / 2)
        top += len(bars) + 1
    axis.set_yticks(ticks, labels=groups)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xmargin(0.12)
    axis.set(title="time per image and model", xlabel="µs")
    handles = [Patch(color=f"C{number}", label=name) for number, name in enumerate(paths)]
    figure.legend(handles=handles, fontsize="small", loc="outside lower center", ncols=len(paths))
    save_figure(figure, path)
