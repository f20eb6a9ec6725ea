"""How a report arranges runs: which rows and columns they belong to, and which figures of the paper."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.finished_runs import FinishedRun, find_runs, is_run, read_run
from kdgan_compress.experiment.run_settings import (
    MODEL,
    class_label,
    data_label,
    distinguishing,
    repeat_label,
    run_settings,
    schedule_label,
)
from kdgan_compress.experiment.sweep_file import SWEEP_FILE, CellEntry, SweepFile, load_sweep

CLASS_AXES = frozenset({"normal", "novel", "data.normal", "data.novel"})
SCHEDULE_AXES = frozenset({"structure", "schedule", "distillation.schedule"})
TEACHER, WITHOUT_TEACHER = "teacher", "without a teacher"


@dataclass(frozen=True)
class PlacedRun:
    """A finished run and where it belongs.

    Attributes:
        run: The run.
        labels: Its row: one value per axis.
        column: Its column; empty if there is only one.
        data: Data set and protocol, without the class.
        class_name: The normal class; empty where there is none to choose.
        repeat: Seed and trial, unique among the runs of one cell and class.
        settings: Its settings by dotted name.
    """

    run: FinishedRun
    labels: tuple[str, ...]
    column: str
    data: str
    class_name: str
    repeat: str
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Arrangement:
    """All runs of a report.

    Attributes:
        title: Name of the sweep, or of the folders.
        description: What the sweep is, in words.
        variant: ``quick`` or ``full``; empty if the runs are not a sweep's.
        axes: Names of the row labels.
        column_axes: Names of the column labels.
        runs: In order of the rows.
        problems: One line per run that is missing or cannot be used.
        paper: The paper's AUC by row, column and class; the class is empty for the mean.
    """

    title: str
    description: str
    variant: str
    axes: list[str]
    column_axes: list[str]
    runs: list[PlacedRun]
    problems: list[str]
    paper: Mapping[tuple[tuple[str, ...], str, str], float] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.column for run in self.runs))


def arrange_runs(folders: Sequence[Path]) -> Arrangement:
    """Read run folders, folders of them, or one sweep's folder, which says itself how it is arranged.

    Raises:
        KdganError: There is not a single finished run, a folder is missing, or a sweep is given together with others.
    """
    sweeps = [folder for folder in folders if (folder / SWEEP_FILE).is_file()]
    if not sweeps:
        return _by_settings(folders)
    if len(folders) > 1:
        hint = "Report it alone, or give its folder of runs"
        raise KdganError("A sweep needs a report of its own", f"got {sweeps[0]} and other folders", hint)
    sweep = load_sweep(folders[0])
    assert sweep is not None
    return _by_sweep(folders[0], sweep)


def _by_settings(folders: Sequence[Path]) -> Arrangement:
    """One row per combination of settings that differ; seeds, trials and classes are averaged over."""
    found = find_runs(folders)
    settings = [run_settings(run.recipe) for run in found.runs]
    _name_models(found.runs, settings)
    _add_teachers_training(found.runs, settings)
    axes = distinguishing(settings, without=["data"]) or [MODEL]
    placed = [
        _place(run, tuple(each.get(axis, "–") for axis in axes), "", each)
        for run, each in zip(found.runs, settings, strict=True)
    ]
    order = {TEACHER: 0, WITHOUT_TEACHER: 1}
    placed.sort(key=lambda each: (each.data, order.get(each.settings[MODEL], 2)))
    title = folders[0].resolve().name if len(folders) == 1 else ", ".join(dict.fromkeys(run.data for run in placed))
    return Arrangement(title, "", "", axes, [], _unique_repeats(placed), found.problems)


def _name_models(runs: Sequence[FinishedRun], settings: Sequence[dict[str, str]]) -> None:
    """Call those that students were distilled from teachers, and others of a student's shape models without one."""
    teachers = {run.teacher for run in runs} - {None}
    shapes = [
        {name: each[name] for name in ("channels", "family")}
        for run, each in zip(runs, settings, strict=True)
        if run.teacher is not None
    ]
    for run, each in zip(runs, settings, strict=True):
        if run.path.resolve() in teachers:
            each[MODEL] = TEACHER
        elif run.teacher is None and {name: each[name] for name in ("channels", "family")} in shapes:
            each[MODEL] = WITHOUT_TEACHER


def _add_teachers_training(runs: Sequence[FinishedRun], settings: Sequence[dict[str, str]]) -> None:
    """Add how a student's teacher was trained to its settings, where the teacher's folder still exists."""
    for run, each in zip(runs, settings, strict=True):
        if run.teacher is None:
            continue
        with contextlib.suppress(KdganError):
            teacher = run_settings(read_run(run.teacher).recipe)
            each |= {
                f"teacher.{name}": teacher[name] for name in teacher if name.startswith(("training.", "objective."))
            }


def _by_sweep(folder: Path, sweep: SweepFile) -> Arrangement:
    """The rows and columns that the sweep names; classes are averaged over even if it names them."""
    rows, columns = (
        [axis for axis in axes if axis not in CLASS_AXES] for axes in (sweep.report.rows, sweep.report.columns)
    )
    placed, problems = [], []
    teachers: dict[tuple[str, str], PlacedRun] = {}
    for cell in sweep.cells:
        try:
            column = ", ".join(_axis_values(cell, columns))
            labels = tuple(_axis_values(cell, rows)) or (sweep.name,)
            run = read_run(folder / cell.run)
            placed.append(_place(run, labels, column, run_settings(run.recipe)))
            if cell.teacher is not None and (cell.teacher, column) not in teachers and is_run(folder / cell.teacher):
                teacher, blank = read_run(folder / cell.teacher), [""] * (len(labels) - 1)
                settings = run_settings(teacher.recipe) | {MODEL: TEACHER}
                teachers[cell.teacher, column] = _place(teacher, (TEACHER, *blank), column, settings)
        except KdganError as error:
            problems.append(f"{cell.run}: {error.found}")
    if not placed:
        found = problems[0].rstrip(".") if problems else f"{folder} has no cells"
        raise KdganError("A report needs at least one finished run", found, "Continue the sweep")
    if problems:
        problems.insert(0, f"{len(problems)} of {len(sweep.cells)} cells are not finished")
    paper = {}
    for each in placed:
        row = dict(zip(rows, each.labels, strict=False))
        for class_name in ("", each.class_name):
            figure = _paper_figure(sweep.report.paper, row, columns, each, class_name)
            if figure is not None:
                paper[each.labels, each.column, class_name] = figure
    runs = _unique_repeats([*teachers.values(), *placed])
    return Arrangement(sweep.name, sweep.description, sweep.variant, rows or [MODEL], columns, runs, problems, paper)


def _axis_values(cell: CellEntry, axes: Sequence[str]) -> list[str]:
    missing = [axis for axis in axes if axis not in cell.axes]
    if missing:
        hint = "Run the sweep again"
        raise KdganError("Each cell needs a value on each axis", f"{cell.run} has none for {missing[0]}", hint)
    return [schedule_label(str(cell.axes[axis])) if axis in SCHEDULE_AXES else str(cell.axes[axis]) for axis in axes]


def _paper_figure(
    figures: Sequence[Mapping[str, Any]],
    row: Mapping[str, str],
    columns: Sequence[str],
    run: PlacedRun,
    class_name: str,
) -> float | None:
    """The figure whose axes all have the run's values; those with a class belong to that class alone."""
    values = dict(row) | dict(zip(columns, run.column.split(", "), strict=False))
    for figure in figures:
        axes = {axis: str(value) for axis, value in figure.items() if axis != "auc"}
        axes |= {axis: schedule_label(axes[axis]) for axis in axes.keys() & SCHEDULE_AXES}
        classes = [axes[axis] for axis in axes if axis in CLASS_AXES]
        if (classes[0] if classes else "") != class_name.removeprefix("not "):
            continue
        if all(values.get(axis, value) == value for axis, value in axes.items() if axis not in CLASS_AXES):
            return float(figure["auc"])
    return None


def _place(run: FinishedRun, labels: tuple[str, ...], column: str, settings: Mapping[str, str]) -> PlacedRun:
    data = run.recipe.data
    return PlacedRun(run, labels, column, data_label(data), class_label(data), repeat_label(run.recipe), settings)


def _unique_repeats(runs: Sequence[PlacedRun]) -> list[PlacedRun]:
    """The runs with a number after the repeat where a cell has several of one class and seed."""
    seen: dict[tuple[Any, ...], int] = {}
    unique = []
    for run in runs:
        key = (run.labels, run.column, run.data, run.class_name, run.repeat)
        seen[key] = seen.get(key, 0) + 1
        repeat = run.repeat if seen[key] == 1 else f"{run.repeat} ({seen[key]})"
        unique.append(dataclasses.replace(run, repeat=repeat))
    return unique
