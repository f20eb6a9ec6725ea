"""The plan of a sweep: every cell of the grid with its recipe, and every distinct teacher once."""

import dataclasses
import hashlib
import itertools
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import Recipe
from kdgan_compress.experiment.recipe_sections import DistillationSection, ModelSection, TrainingSection
from kdgan_compress.experiment.student import student_architecture
from kdgan_compress.experiment.sweep_section import Axes, AxisValues, ReportSection, SweepSection
from kdgan_compress.sweeps.axes import ALIASES, STUDENT, Command, axis_keys, axis_settings, check_axes, nested

NO_TEACHER = "none"
"""The schedule of a student that is trained without a teacher."""

MAX_NAME_LENGTH = 40
"""Longer values of an axis are shortened in folder names."""

REPEATS = tuple(
    name for alias in ("normal", "novel", "seed", "trial") for name in dict.fromkeys((alias, *ALIASES[alias]))
)
"""Axes that a report averages over unless its recipe says otherwise: classes, seeds and trials."""

Variant = Literal["quick", "full"]


@dataclass(frozen=True)
class Cell:
    """One training of a sweep.

    Attributes:
        run: Its run folder, relative to the sweep's: ``runs/…`` or ``teachers/…``.
        axes: Its value of each axis; a teacher's has only those that change it.
        recipe: What it is trained by.
        teacher: The teacher's run folder, relative to the sweep's or absolute; None without a teacher.
        trained_in: Run folder, relative to the sweep's, of the cell whose training this one shares because they differ
            only in how they are evaluated; None if it trains itself.
        shares_score: Whether it shares that cell's fitted score and threshold too: only their test images differ.
    """

    run: str
    axes: dict[str, Any]
    recipe: Recipe
    teacher: str | None = None
    trained_in: str | None = None
    shares_score: bool = False


@dataclass(frozen=True)
class Plan:
    """A sweep before it runs.

    Attributes:
        name: Of the recipe.
        description: Of the recipe.
        variant: ``quick`` or ``full``.
        command: ``train``, or ``distill`` for students and their teachers.
        axes: Values by axis.
        settings: Fixed settings by dotted key.
        report: Layout of the report and the paper's figures.
        track_auc: Whether AUC is measured after every epoch.
        cells: The grid, the last axis fastest.
        teachers: The distinct teachers of the cells.
    """

    name: str
    description: str
    variant: Variant
    command: Command
    axes: dict[str, list[Any]]
    settings: dict[str, Any]
    report: ReportSection
    track_auc: bool
    cells: tuple[Cell, ...]
    teachers: tuple[Cell, ...]


def plan_sweep(
    recipe: Recipe,
    name: str,
    axes: Axes | None = None,
    settings: dict[str, Any] | None = None,
    *,
    quick: bool = True,
    distill: bool = False,
    data_root: str | None = None,
) -> Plan:
    """Expand a recipe's ``sweep`` section and further axes into cells.

    Args:
        recipe: With or without a ``sweep`` section.
        name: Of the sweep.
        axes: Further axes, or other values of the recipe's axes.
        settings: Fixed settings by dotted key.
        quick: The recipe's quick variant, if it has one.
        distill: Train students of teachers though the recipe's ``sweep`` section does not say so.
        data_root: Where named data sets are.

    Raises:
        KdganError: An axis names no setting, or a value is invalid.
    """
    section = recipe.sweep or SweepSection()
    variant = section.quick if quick else None
    command: Command = "distill" if distill else section.command
    known: Axes = section.axes | (variant.axes if variant else {})
    grid = known | {name: _with_settings(name, each, known.get(name), command) for name, each in (axes or {}).items()}
    check_axes(grid, command)
    fixed = (variant.set if variant else {}) | (settings or {})
    base = recipe.model_copy(update={"sweep": None, "data": recipe.data.relocate(None, data_root)})
    base = _with_one_thread(_change(base, fixed))
    planned = [
        _plan_cell(base, command, grid, dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    ]
    teacher_axes = {
        axis for settings, cell in planned if cell.teacher for axis in settings if _is_for_teacher(settings[axis])
    }
    cells: list[Cell] = []
    teachers: dict[str, Cell] = {}
    for _, cell in planned:
        if cell.teacher is None:
            cells.append(cell)
            continue
        teacher = _teacher_of(cell, [axis for axis in grid if axis in teacher_axes])
        teacher = teachers.setdefault(recipe_fingerprint(teacher.recipe), teacher)
        cells.append(dataclasses.replace(cell, teacher=teacher.run))
    _check_names([*cells, *teachers.values()])
    return Plan(
        name=name,
        description=recipe.description,
        variant="quick" if variant else "full",
        command=command,
        axes={axis: list(values) for axis, values in grid.items()},
        settings=fixed,
        report=_report(section, list(grid)),
        track_auc=section.track_auc,
        cells=tuple(cells),
        teachers=tuple(teachers.values()),
    )


def _with_settings(name: str, values: AxisValues, known: AxisValues | None, command: Command) -> AxisValues:
    """Values that replace those of a recipe's axis, with the settings to which the recipe maps them.

    Raises:
        KdganError: A list next to a value that the recipe maps to settings.
    """
    if isinstance(values, dict) or not isinstance(known, dict):
        return values
    mapped = {str(key): key for key in known}
    num_mapped = sum(str(value) in mapped for value in values)
    if num_mapped == 0 or (num_mapped < len(values) and not axis_keys(name, command)):
        return values
    lists = [value for value in values if isinstance(value, list | dict)]
    if lists:
        problem = f"The recipe gives values of the axis {name} settings of their own, which lists can't have"
        raise KdganError(problem, f"got {lists[0]}", "Run the lists as a sweep of their own, or write a recipe")
    keys: list[Any] = [mapped.get(str(value), value) for value in values]
    return {key: known.get(key, {}) for key in keys}


def _report(section: SweepSection, axes: list[str]) -> ReportSection:
    """The recipe's layout with rows for the axes that it does not know; classes, seeds and trials are averaged over."""
    further = [axis for axis in axes if axis not in section.axes and axis not in REPEATS]
    rows, columns = section.report.rows, section.report.columns
    if not rows and not columns:
        further = [axis for axis in axes if axis not in (*REPEATS, "data")]
        further = further or [axis for axis in axes if axis not in ("seed", "trial", "data")]
        columns = ("data",) if "data" in axes else ()
    return section.report.model_copy(update={"rows": (*rows, *further), "columns": columns})


def recipe_fingerprint(recipe: Recipe) -> str:
    """A hash of everything that decides a training's result, to tell whether a run folder is this cell's."""
    content = recipe.model_dump(mode="json", exclude={"description", "sweep"})
    content["data"].pop("root")
    for training in (content["training"], content["distillation"]["training"]):
        training.pop("threads"), training.pop("device")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _plan_cell(
    base: Recipe, command: Command, grid: Axes, values: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], Cell]:
    """A cell, and its settings by axis; its teacher is a mark until the teachers are known."""
    settings = {axis: axis_settings(axis, value, grid[axis], command) for axis, value in values.items()}
    changes = {key: value for each in settings.values() for key, value in each.items()}
    run = f"runs/{_folder_name(values)}"
    if changes.get("distillation.schedule") == NO_TEACHER:
        del changes["distillation.schedule"]
        return settings, Cell(run, values, without_teacher(_change(base, changes)))
    recipe = _change(base, changes)
    if command == "train":
        return settings, Cell(run, values, recipe.model_copy(update={"distillation": DistillationSection()}))
    return settings, Cell(run, values, recipe, teacher="teachers")


def _teacher_of(student: Cell, teacher_axes: list[str]) -> Cell:
    recipe = student.recipe.model_copy(update={"distillation": DistillationSection()})
    axes = {axis: student.axes[axis] for axis in teacher_axes}
    return Cell(f"teachers/{_folder_name(axes)}", axes, recipe)


def without_teacher(recipe: Recipe) -> Recipe:
    """The student of a recipe as a GAN that trains on its own losses, on as many images as all stages together.

    Raises:
        KdganError: Only some of the stages have their length in epochs.
    """
    section = recipe.distillation
    teacher = recipe.model.architecture(recipe.model.image_channels or 1)
    student = student_architecture(section, teacher, recipe.data.used_tiles is not None)
    model = dataclasses.asdict(student) | {"image_channels": recipe.model.image_channels}
    stages = section.stages(section.training.num_images)  # a length in images is one epoch of that many
    lengths = {"num_images": section.training.num_images * len(stages)}
    epochs = [] if isinstance(section.schedule, str) else [stage.epochs for stage in section.schedule]
    if section.training.epochs or any(epochs):
        if section.training.epochs is None and not all(epochs):
            found = "some stages have epochs and others num_images"
            raise KdganError("A student without a teacher needs one length", found, "Give every stage its epochs")
        lengths = {"epochs": sum(stage.epochs for stage in stages)}
    training = TrainingSection(**section.training.model_dump() | lengths)
    return recipe.model_copy(
        update={
            "model": ModelSection(**model),
            "objective": recipe.student_objective(),
            "training": training,
            "distillation": DistillationSection(),
        }
    )


def _change(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """A copy of a recipe with settings by dotted key; another data source clears the classes."""
    source = settings.get("data.source")
    if isinstance(source, str) and source != recipe.data.source:
        recipe = recipe.model_copy(update={"data": recipe.data.override(source)})
    return recipe.replace(*nested(settings)) if settings else recipe


def _with_one_thread(recipe: Recipe) -> Recipe:
    """One thread where the recipe leaves the number open, so that a result does not depend on the workers."""
    teacher, student = recipe.training.threads or 1, recipe.distillation.training.threads or 1
    return recipe.replace({"training": {"threads": teacher}, "distillation": {"training": {"threads": student}}})


def _is_for_teacher(settings: dict[str, Any]) -> bool:
    return any(not key.startswith(STUDENT) for key in settings)


def _folder_name(values: dict[str, Any]) -> str:
    """A readable folder name: ``width-2_normal-0``; ``all`` without axes."""
    return "_".join(f"{axis}-{_name_of(value)}" for axis, value in values.items()) or "all"


def _name_of(value: Any) -> str:
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "value"
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[-MAX_NAME_LENGTH:]}-{zlib.crc32(text.encode()):08x}"


def _check_names(cells: list[Cell]) -> None:
    axes_of: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if axes_of.setdefault(cell.run, cell.axes) != cell.axes:
            found = f"{axes_of[cell.run]} and {cell.axes} would share {cell.run}"
            raise KdganError("Values of an axis need different folder names", found, "Rename one of them")
