"""The running of a sweep: fleets go to the workers as soon as their teachers are finished, and failures stay local."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass, replace

from kdgan_compress.experiment.results import RunResult
from kdgan_compress.sweeps.estimate import TimeEstimate
from kdgan_compress.sweeps.fleets import Fleet
from kdgan_compress.sweeps.grid import Cell
from kdgan_compress.sweeps.sweep_folder import SweepFolder
from kdgan_compress.sweeps.worker import CellError, FleetOutcome, FleetTask, run_fleet
from kdgan_compress.sweeps.workers import Workers

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class FinishedCell:
    """A cell that ended: its result, or its error and where the error is written."""

    cell: Cell
    result: RunResult | None
    error: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class SweepProgress:
    """A sweep at one moment.

    Attributes:
        total: Cells, with those that had been finished before.
        done: Cells that are finished.
        running: Cells in the hands of workers.
        failed: Cells that failed.
        seconds_left: An estimate; None at first.
        ended: The cells that ended since the last report.
    """

    total: int
    done: int
    running: int
    failed: int
    seconds_left: float | None
    ended: tuple[FinishedCell, ...] = ()


@dataclass(frozen=True)
class _Running:
    fleet: Fleet
    task: FleetTask
    start: float
    is_suspect: bool


ShowSweep = Callable[[SweepProgress], None]


class SweepExecution:
    """The fleets of a sweep on their way.

    Args:
        folder: Of the sweep.
        fleets: Those that are still to be trained; teachers before their students.
        workers: Where they run.
        num_finished: Cells that had been finished before.
        task: Settings of every task; its cells are replaced.
        show: Called about twice per second, and with every cell that ends.
    """

    def __init__(
        self,
        folder: SweepFolder,
        fleets: Sequence[Fleet],
        workers: Workers,
        num_finished: int,
        task: FleetTask,
        show: ShowSweep | None = None,
    ) -> None:
        self._folder, self._workers, self._task, self._show = folder, workers, task, show
        self._waiting = list(fleets)
        self._suspects: list[Fleet] = []
        self._running: dict[Future[FleetOutcome], _Running] = {}
        self._unfinished = {cell.run for fleet in fleets for cell in fleet.cells}
        self._failed: set[str] = set()
        self._num_finished, self._total = num_finished, num_finished + len(self._unfinished)
        self._estimate = TimeEstimate()

    def run(self) -> list[FinishedCell]:
        """Run all fleets and return the cells that ended, in the order in which they did."""
        ended: list[FinishedCell] = []
        while self._waiting or self._suspects or self._running:
            now = list(self._orphans())
            self._submit()
            now += self._collect()
            ended += now
            if self._show:
                self._show(self._progress(tuple(now)))
        return ended

    def _submit(self) -> None:
        """Give fleets to free workers; one that may have ended a worker process runs alone."""
        if self._suspects:
            if not self._running:
                self._start(self._suspects.pop(0), is_suspect=True)
            return
        num_free = self._workers.num - len(self._running)
        ready = [fleet for fleet in self._waiting if not fleet.needs & self._unfinished]
        for fleet in ready[: max(0, num_free)]:
            self._waiting.remove(fleet)
            self._start(fleet)

    def _start(self, fleet: Fleet, is_suspect: bool = False) -> None:
        task = replace(self._task, cells=fleet.cells)
        try:
            future = self._workers.executor.submit(run_fleet, task)
        except BrokenExecutor:  # a process that had nothing to do has ended
            self._workers.reopen()
            future = self._workers.executor.submit(run_fleet, task)
        self._running[future] = _Running(fleet, task, time.perf_counter(), is_suspect)

    def _orphans(self) -> Iterator[FinishedCell]:
        """Take the cells whose teacher, or whose training, failed out of the fleets."""
        waiting = []
        for fleet in self._waiting:
            lost = {cell.run: needed for cell in fleet.cells if (needed := self._failed_need(cell))}
            for cell in fleet.cells:
                if cell.run in lost:
                    yield self._end(cell, CellError(lost[cell.run], ""))
            cells = tuple(cell for cell in fleet.cells if cell.run not in lost)
            waiting += [replace(fleet, cells=cells)] if cells else []
        self._waiting = waiting

    def _failed_need(self, cell: Cell) -> str | None:
        """What a cell can't be trained without, if that failed."""
        for kind, run in (("teacher", cell.teacher), ("training", cell.trained_in)):
            if run in self._failed:
                return f"its {kind} {self._folder.path / str(run)} failed"
        return None

    def _collect(self) -> Iterator[FinishedCell]:
        done, _ = wait(self._running, POLL_SECONDS, FIRST_COMPLETED)
        is_broken = any(isinstance(_error_of(future), BrokenExecutor) for future in done)
        for future in list(self._running) if is_broken else done:
            yield from self._outcome(future, self._running.pop(future))
        if is_broken:
            self._workers.reopen()

    def _outcome(self, future: Future[FleetOutcome], running: _Running) -> Iterator[FinishedCell]:
        fleet, error = running.fleet, _error_of(future)
        if error is None:
            outcome = future.result()
            results = [] if fleet.shares_trainings else outcome.by_run.values()
            training = sum(each.seconds for each in results if isinstance(each, RunResult))
            self._estimate.add(fleet, outcome.seconds, training)
            for cell in fleet.cells:
                yield self._end(cell, outcome.by_run[cell.run])
            return
        if isinstance(error, KeyboardInterrupt):  # a signal to the worker alone
            self._waiting.insert(0, fleet)
            return
        is_broken = isinstance(error, BrokenExecutor)
        if is_broken and not running.is_suspect:
            self._suspects.append(fleet)
            return
        reason = "the worker process ended, perhaps for lack of memory" if is_broken else repr(error)
        for cell in fleet.cells:
            yield self._end(cell, CellError(reason, repr(error)))

    def _end(self, cell: Cell, outcome: RunResult | CellError) -> FinishedCell:
        self._unfinished.discard(cell.run)
        if isinstance(outcome, CellError):
            self._failed.add(cell.run)
            return FinishedCell(cell, None, outcome.message, str(self._folder.write_log(cell.run, outcome)))
        self._folder.log_path(cell.run).unlink(missing_ok=True)
        return FinishedCell(cell, outcome)

    def _progress(self, ended: tuple[FinishedCell, ...]) -> SweepProgress:
        now = time.perf_counter()
        running = [(each.fleet, now - each.start, each.task.read_progress()) for each in self._running.values()]
        return SweepProgress(
            total=self._total,
            done=self._total - len(self._unfinished) - len(self._failed),
            running=sum(len(fleet.cells) for fleet, _, _ in running),
            failed=len(self._failed),
            seconds_left=self._estimate.seconds_left([*self._waiting, *self._suspects], running, self._workers.num),
            ended=ended,
        )


def _error_of(future: Future[FleetOutcome]) -> BaseException | None:
    try:
        return future.exception()
    except CancelledError as error:  # a Dask scheduler that has ended
        return error
