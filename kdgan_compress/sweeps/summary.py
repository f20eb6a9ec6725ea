"""The results of a sweep as a table: mean AUC per row and column, with the paper's figure next to it."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from kdgan_compress.sweeps.grid import Plan


def summarize(plan: Plan, aucs: Mapping[str, float | None]) -> list[list[str]]:
    """Rows of a text table, its header first.

    Args:
        plan: Its ``report`` names the axes of rows and columns; the others are averaged over.
        aucs: AUC by run; None for a cell without one.
    """
    row_axes, column_axes = list(plan.report.rows), list(plan.report.columns)
    cells: dict[tuple[tuple[str, ...], tuple[str, ...]], list[float | None]] = {}
    for cell in plan.cells:
        key = _labels(cell.axes, row_axes), _labels(cell.axes, column_axes)
        cells.setdefault(key, []).append(aucs.get(cell.run))
    rows, columns = (list(dict.fromkeys(key[part] for key in cells)) for part in (0, 1))
    paper = {
        (_labels(figure, row_axes), _labels(figure, column_axes)): figure["auc"]
        for figure in plan.report.paper
        if "auc" in figure and figure.keys() - {"auc", "best_f1"} == {*row_axes, *column_axes}
    }
    header = [*row_axes, *(" ".join(column) or "AUC" for column in columns)]
    body = [
        [*row, *(_figure(cells.get((row, column), []), paper.get((row, column))) for column in columns)] for row in rows
    ]
    return [header, *body]


def _labels(axes: Mapping[str, Any], names: list[str]) -> tuple[str, ...]:
    return tuple(str(axes.get(name)) for name in names)


def _figure(aucs: list[float | None], paper: float | None) -> str:
    values = [auc for auc in aucs if auc is not None]
    text = f"{100 * fmean(values):.2f}" if values else "–"
    missing = f" ({len(values)} of {len(aucs)})" if aucs and len(values) < len(aucs) else ""
    return text + missing + ("" if paper is None else f" (paper {100 * paper:.2f})")
