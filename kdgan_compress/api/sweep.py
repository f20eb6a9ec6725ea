"""Run a grid of experiments: GANs, or students of teachers that are trained once each."""

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import RunResult
from kdgan_compress.gans import FAMILIES, is_entry_point
from kdgan_compress.sweeps.axes import parse_axes
from kdgan_compress.sweeps.downloads import download_data
from kdgan_compress.sweeps.execution import ShowSweep, SweepExecution
from kdgan_compress.sweeps.grid import Cell, Plan, plan_sweep
from kdgan_compress.sweeps.shared_trainings import share_trainings
from kdgan_compress.sweeps.sweep_folder import SweepFolder
from kdgan_compress.sweeps.teachers import reuse_teachers
from kdgan_compress.sweeps.worker import FleetTask
from kdgan_compress.sweeps.workers import count_cores, dask_cluster, given_executor, local_processes


@dataclass(frozen=True)
class SweepCell:
    """One cell of a finished sweep: its run folder, its teacher's, its axes and its result; a failed one has none."""

    run: str
    teacher: str | None
    axes: dict[str, Any]
    result: RunResult | None


@dataclass(frozen=True)
class SweepReport:
    """A sweep that has ended.

    Attributes:
        out: Its folder.
        name: Of its recipe.
        variant: ``quick`` or ``full``.
        cells: All cells in the order of the grid.
        num_teachers: Distinct teachers.
        num_reused: Cells and teachers that had been finished before.
        failed: Error messages by run folder.
        logs: Files with the whole errors by run folder.
        seconds: Of this command.
        training_seconds: Training of what this command finished, summed over cells and teachers.
    """

    out: str
    name: str
    variant: Literal["quick", "full"]
    cells: list[SweepCell]
    num_teachers: int
    num_reused: int
    failed: dict[str, str]
    logs: dict[str, str]
    seconds: float
    training_seconds: float
    plan: Plan = field(repr=False, compare=False)


def sweep(
    recipe: Recipe | str = "default",
    out: str | Path | None = None,
    *,
    axes: Mapping[str, object] | None = None,
    settings: dict[str, Any] | None = None,
    quick: bool = True,
    distill: bool = False,
    data_root: str | None = None,
    teachers: str | Path | None = None,
    track_auc: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    executor: Executor | None = None,
    show_progress: ShowSweep | None = None,
) -> SweepReport:
    """Train every cell of a grid; finished cells in ``out`` are kept, interrupted ones continue.

    Args:
        recipe: A recipe, or the name or path of one; its ``sweep`` section is the grid to start from.
        out: Folder of the sweep; by default ``runs/<recipe>``, with ``-quick`` for the quick variant.
        axes: Values by axis, as a list or a text such as ``"1,2,8"`` or ``"0..9"``.
        settings: Fixed settings by dotted recipe key.
        quick: The recipe's quick variant, if it has one.
        distill: Train students though the recipe's ``sweep`` section does not say so.
        data_root: Where named data sets are.
        teachers: A folder of finished runs, or another sweep; equal teachers in it are used.
        track_auc: Measure AUC after every epoch.
        workers: Local processes, each with one fleet; by default one per core.
        scheduler: Address of a Dask scheduler, whose workers see the same files.
        executor: An executor to use instead; it runs ``workers`` fleets at once.
        show_progress: Called about twice per second.

    Raises:
        KdganError: The recipe or an axis is invalid, ``out`` holds another sweep, or the scheduler can't be reached.
    """
    name = recipe if isinstance(recipe, str) else "sweep"
    loaded = load_recipe(recipe) if isinstance(recipe, str) else recipe
    name = Path(name).stem if Path(name).suffix else name
    plan = plan_sweep(loaded, name, parse_axes(axes or {}), settings, quick=quick, distill=distill, data_root=data_root)
    start = time.perf_counter()
    is_quick = plan.variant == "quick"
    folder = SweepFolder(Path(out or Path("runs") / (f"{name}-quick" if is_quick else name)).resolve())
    if teachers is not None:
        plan = reuse_teachers(plan, Path(teachers), folder.path)
    track_auc = track_auc or plan.track_auc
    plan = plan if track_auc else share_trainings(plan, folder.has_training)
    num_workers = count_cores() if workers is None else workers
    open_workers = (
        given_executor(executor, num_workers)
        if executor
        else dask_cluster(scheduler)
        if scheduler
        else local_processes(num_workers)
    )
    with open_workers as opened:
        folder.write(plan)
        everything = [*plan.teachers, *plan.cells]
        unfinished = [_with_absolute_data(cell) for cell in everything if folder.result(cell) is None]
        families = tuple(name for name in FAMILIES if is_entry_point(name))
        task = FleetTask(str(folder.path), (), track_auc, families)
        download_data(unfinished)
        fleets = folder.cut_into_fleets(unfinished, opened.num)
        num_finished = len(everything) - len(unfinished)
        ended = SweepExecution(folder, fleets, opened, num_finished, task, show_progress).run()
    trained = [each.result for each in ended if each.result is not None and each.cell.trained_in is None]
    return SweepReport(
        out=str(folder.path),
        name=plan.name,
        variant=plan.variant,
        cells=[SweepCell(cell.run, cell.teacher, cell.axes, folder.result(cell)) for cell in plan.cells],
        num_teachers=len({cell.teacher for cell in plan.cells} - {None}),
        num_reused=num_finished,
        failed={str(folder.path / each.cell.run): each.error for each in ended if each.error is not None},
        logs={str(folder.path / each.cell.run): each.log for each in ended if each.log is not None},
        seconds=time.perf_counter() - start,
        training_seconds=sum(result.seconds for result in trained),
        plan=plan,
    )


def _with_absolute_data(cell: Cell) -> Cell:
    """A cell whose images are found from any working directory: that of a cluster's worker may be another."""
    recipe = cell.recipe
    return replace(cell, recipe=recipe.model_copy(update={"data": recipe.data.absolute()}))
