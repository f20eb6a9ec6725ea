"""Charts of a report: ROC, AUC per epoch, AUC against a setting, and AUC against cost; as SVG that fits any theme."""

import io
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from kdgan_compress.reports.results import Cost, Entry, pareto_front

SIZE = (4.6, 3.4)
COLORS = ("#2f7ed8", "#e08a00", "#1a9b6c", "#d0508f", "#7a6fd0", "#c8502d", "#3ea7c2", "#8a8a2f")
"""Distinct for colour-blind readers, on light and on dark ground."""

MARKERS = "osD^vP*X"
NUM_ROC_POINTS = 501
MAX_AUC_BELOW_BEST = 0.25
"""Entries further below the best are left out of the charts of cost, so that the others can be told apart."""

COST_LABELS: dict[Cost, str] = {"size_bytes": "bytes to store", "latency_us": "latency of one image in µs"}
SVG_OPTIONS: Any = {"svg.fonttype": "none", "svg.hashsalt": "kdgan-compress"}


def svg_text(figure: Figure, alt: str) -> str:
    """A figure as an SVG element for a page: no background, black becomes the text's colour, equal for equal figures.

    Args:
        figure: A figure on white.
        alt: What it shows, for those who do not see it.
    """
    for axis in figure.axes:
        if (legend := axis.get_legend()) is not None:
            legend.set_frame_on(False)
    stream = io.StringIO()
    with mpl.rc_context(SVG_OPTIONS):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("#000000", "currentColor")
    svg = re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"\1", svg, count=1)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def mean_roc(
    scored: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The vertical mean of ROC curves: false-positive rates from 0 to 1, and the mean true-positive rate at each.

    Args:
        scored: Scores (M,) and labels (M,) of each run, with both kinds of images.
    """
    from sklearn.metrics import roc_curve

    grid = np.linspace(0, 1, NUM_ROC_POINTS)
    curves = [roc_curve(is_anomalous, scores) for scores, is_anomalous in scored]
    return grid, np.mean([np.interp(grid, fpr, tpr) for fpr, tpr, _ in curves], axis=0)


def roc_figure(scored: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]]]) -> Figure:
    """Plot the mean ROC curve of each row's runs."""
    figure, axis = _new_figure("false-positive rate", "true-positive rate")
    for number, (name, runs) in enumerate(scored.items()):
        axis.plot(*mean_roc(runs), color=COLORS[number % len(COLORS)], label=name)
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    _legend(figure, len(scored))
    return figure


def epochs_figure(aucs: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Plot the mean AUC of each row's runs per epoch; runs of one row have equally many epochs."""
    figure, axis = _new_figure("epoch", "AUC in %")
    for number, (name, runs) in enumerate(aucs.items()):
        values = 100 * np.mean(np.asarray(runs, dtype=np.float64), axis=0)
        axis.plot(np.arange(1, len(values) + 1), values, ".-", color=COLORS[number % len(COLORS)], label=name)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, len(aucs))
    return figure


def setting_figure(name: str, lines: Mapping[str, Sequence[tuple[float, Entry]]]) -> Figure:
    """Plot AUC, with its interval, against a numeric setting; one line per name."""
    figure, axis = _new_figure(name, "AUC in %")
    for number, (label, points) in enumerate(lines.items()):
        values = [x for x, _ in points]
        means = [100 * entry.auc.mean for _, entry in points]
        errors = [100 * (entry.auc.ci95 or 0.0) for _, entry in points]
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "label": label}
        axis.errorbar(values, means, errors if any(errors) else None, capsize=3, markersize=4, **style)  # type: ignore[arg-type]
    if min(x for points in lines.values() for x, _ in points) > 0:
        axis.set_xscale("log", base=2)
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axis.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    _legend(figure, len(lines))
    return figure


def pareto_figure(entries: Sequence[Entry], cost: Cost) -> Figure:
    """Plot AUC against a cost on a logarithmic axis, and a line through those that no other beats.

    Baselines are hollow. Entries of unknown cost are left out, and baselines far below the best; at least one cost has
    to be known.
    """
    known = [entry for entry in entries if getattr(entry, cost) is not None]
    lowest = max(entry.auc.mean for entry in known) - MAX_AUC_BELOW_BEST
    known = [entry for entry in known if entry.auc.mean >= lowest or not entry.is_baseline]
    figure, axis = _new_figure(COST_LABELS[cost], "AUC in %")
    axis.set_xscale("log")
    front = pareto_front(known, attrgetter(cost), lambda entry: entry.auc.mean)
    axis.step(
        [getattr(entry, cost) for entry in front],
        [100 * entry.auc.mean for entry in front],
        where="post",
        color="grey",
        linestyle="--",
        linewidth=1,
        label="not beaten by any other",
    )
    numbers = {True: 0, False: 0}
    for entry in known:
        number = numbers[entry.is_baseline]
        numbers[entry.is_baseline] += 1
        color = "grey" if entry.is_baseline else COLORS[number % len(COLORS)]
        axis.plot(
            getattr(entry, cost),
            100 * entry.auc.mean,
            MARKERS[number % len(MARKERS)],
            color=color,
            markerfacecolor="none" if entry.is_baseline else color,
            markersize=7,
            linestyle="none",
            label=entry.name,
        )
    axis.margins(0.08, 0.1)
    _label_decades(axis)
    _legend(figure, len(known) + 1)
    return figure


def _new_figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y)
    axis.grid(color="grey", alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _label_decades(axis: Axes) -> None:
    """Labels such as 20 k and 3 M on a logarithmic axis, more of them where it has few decades."""
    low, high = axis.get_xlim()
    steps = (1.0,) if np.log10(high / low) > 2 else (1.0, 2.0, 5.0)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, num_names: int) -> None:
    """A legend below the axes, in two columns; the figure grows with it."""
    if num_names > 1:
        num_rows = -(-num_names // 2)
        figure.set_figheight(SIZE[1] + 0.21 * num_rows)
        figure.legend(fontsize="small", frameon=False, loc="outside lower center", ncols=2)
