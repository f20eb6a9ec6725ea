"""What a worker process does: it trains the cells of one fleet, and reports each cell's result or error."""

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.job import Job, distillation_job, resumed_job, training_job
from kdgan_compress.experiment.results import Progress, RunResult, read_result
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.run_lock import remove_leftovers
from kdgan_compress.experiment.runner import run_jobs
from kdgan_compress.experiment.teacher_caches import TeacherCaches
from kdgan_compress.files import write_text
from kdgan_compress.gans import load_family
from kdgan_compress.sweeps.grid import Cell

Value = TypeVar("Value")

ONE_FLEET = threading.Lock()
"""A process trains one fleet at a time, since torch's threads and random numbers belong to the process."""

PROGRESS_SECONDS = 2

MAX_NARROW = 16
"""Networks of at most this many channels are certainly faster in a fleet; for others the fastest size is measured."""


@dataclass(frozen=True)
class FleetTask:
    """One fleet, as it is sent to a worker.

    Attributes:
        out: The sweep's folder, absolute; the worker sees the same files.
        cells: Of one shape.
        track_auc: Measure AUC after every epoch.
        families: The user's own families, as ``module:name``.
    """

    out: str
    cells: tuple[Cell, ...]
    track_auc: bool = False
    families: tuple[str, ...] = ()

    @property
    def progress_path(self) -> Path:
        """Where the worker writes the fraction that is done."""
        return Path(self.out) / "progress" / f"{self.cells[0].run.replace('/', '-')}.txt"

    def read_progress(self) -> float:
        """The fraction that is done, 0 to 1."""
        try:
            return float(self.progress_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not begun
            return 0.0


@dataclass(frozen=True)
class CellError:
    """Why a cell failed: one line, and the whole traceback."""

    message: str
    details: str


@dataclass(frozen=True)
class FleetOutcome:
    """Results or errors by run folder, and the seconds of the whole fleet with loading and evaluation."""

    by_run: dict[str, RunResult | CellError]
    seconds: float


def run_fleet(task: FleetTask) -> FleetOutcome:
    """Train the cells of a fleet: new ones start, interrupted ones continue, finished ones are only read."""
    with ONE_FLEET:
        start = time.perf_counter()
        for family in task.families:
            load_family(family)
        by_run: dict[str, RunResult | CellError] = {}
        caches, unfinished, jobs = TeacherCaches(), [], []
        for cell in task.cells:
            prepared = _guard(lambda cell=cell: _prepare(task, cell, caches))  # type: ignore[misc]
            if isinstance(prepared, Job):
                unfinished.append(cell)
                jobs.append(prepared)
            else:
                by_run[cell.run] = prepared
        if jobs:
            by_run |= _run(task, unfinished, jobs, caches)
        task.progress_path.unlink(missing_ok=True)
        ordered = {cell.run: by_run[cell.run] for cell in task.cells}
        return FleetOutcome(ordered, time.perf_counter() - start)


def _prepare(task: FleetTask, cell: Cell, caches: TeacherCaches) -> Job | RunResult:
    out = Path(task.out)
    folder = RunFolder(out / cell.run)
    result = read_result(folder)
    if result is not None:
        remove_leftovers(folder.path)
        return result
    if folder.recipe.exists():
        job = resumed_job(folder, caches)
    elif cell.teacher is None:
        job = training_job(cell.recipe, folder.path)
    else:
        job = distillation_job(out / cell.teacher, cell.recipe, folder.path, caches=caches)
    if cell.trained_in is None or folder.state.exists():
        return job
    source = RunFolder(out / cell.trained_in)
    return replace(job, trained_in=source, shares_score=cell.shares_score, attach_cache=None)


def _run(
    task: FleetTask, cells: list[Cell], jobs: list[Job], caches: TeacherCaches
) -> dict[str, RunResult | CellError]:
    """Train the jobs together; if they can't be trained together, one after the other."""

    def run() -> dict[str, RunResult | KdganError]:
        is_narrow = jobs[0].max_channels <= MAX_NARROW
        size = 1 if jobs[0].trained_in else len(jobs) if is_narrow else None
        results = run_jobs(jobs, fleet_size=size, track_auc=task.track_auc, show_progress=_progress_writer(task))
        return dict(results.by_run)

    results = _guard(run)
    if isinstance(results, dict):
        return {
            cell.run: _as_error(result) if isinstance(result, KdganError) else result
            for cell, result in zip(cells, results.values(), strict=True)
        }
    if len(jobs) == 1:
        return {cells[0].run: results}
    one_by_one: dict[str, RunResult | CellError] = {}
    for cell in cells:
        prepared = _guard(lambda cell=cell: _prepare(task, cell, caches))  # type: ignore[misc]
        one_by_one |= _run(task, [cell], [prepared], caches) if isinstance(prepared, Job) else {cell.run: prepared}
    return one_by_one


def _progress_writer(task: FleetTask) -> Callable[[Progress], None]:
    """Write the progress now and then, for the sweep's estimate of the time left."""
    next_write = time.perf_counter() + PROGRESS_SECONDS

    def write(progress: Progress) -> None:
        nonlocal next_write
        if time.perf_counter() >= next_write:
            next_write = time.perf_counter() + PROGRESS_SECONDS
            write_text(task.progress_path, f"{progress.images_done / progress.images_total:.4f}\n")

    return write


def _guard(step: Callable[[], Value]) -> Value | CellError:
    """The value of a step, or its error, whatever kind it is: the other cells are still to be trained."""
    try:
        return step()
    except Exception as error:
        return _as_error(error)


def _as_error(error: Exception) -> CellError:
    message = str(error) if isinstance(error, KdganError) else f"{type(error).__name__}: {error}"
    return CellError(message, "".join(traceback.format_exception(error)))
