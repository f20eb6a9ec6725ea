"""The runner: takes jobs to finished run folders. One job and many run the same way."""

import logging
import shlex
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypedDict

import torch

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.distillation.train_log import DivergedError, TrainRecord
from kdgan_compress.distillation.trainer import Saver, train_schedulers
from kdgan_compress.errors import Interrupted, KdganError
from kdgan_compress.experiment.fleet_record import record_fleet, recorded_fleet, restore_fleets
from kdgan_compress.experiment.fleet_size import check_fleet_size, choose_fleet_size
from kdgan_compress.experiment.fleet_states import FleetSaver, StoppedError, settle_states
from kdgan_compress.experiment.job import Job
from kdgan_compress.experiment.results import Progress, RunResult, RunResults, ShowProgress
from kdgan_compress.experiment.run_lock import locked
from kdgan_compress.experiment.stop_signals import StopSignals
from kdgan_compress.experiment.training_run import TrainingRun
from kdgan_compress.gans import is_entry_point
from kdgan_compress.profiling.machine import num_threads

logger = logging.getLogger(__name__)


class RunOptions(TypedDict, total=False):
    """Options of every training.

    Attributes:
        fleet_size: Number of models trained together; by default the fastest.
        track_auc: Measure AUC after every epoch, for logging only.
        raw: Also measure the AUC of the weights without EMA.
        show_progress: Called about every 512 images of a model with the progress of all.
    """

    fleet_size: int | None
    track_auc: bool
    raw: bool
    show_progress: ShowProgress | None


def run_jobs(
    jobs: Sequence[Job],
    *,
    fleet_size: int | None = None,
    track_auc: bool = False,
    raw: bool = False,
    show_progress: ShowProgress | None = None,
) -> RunResults:
    """Run one job, or several of one shape, each in its own folder; a job that fails does not stop the others.

    Raises:
        KdganError: The jobs differ in shape, a folder has a run already, or so many do not fit into memory; nothing is
            written then.
    """
    _check_jobs(jobs)
    check_fleet_size(jobs, fleet_size)
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(locked(job.folder.path))
        for message in dict.fromkeys(message for job in jobs for message in job.messages):
            logger.info(message)
        jobs = [job.attach_teacher_cache() for job in jobs]
        fleets, note = _cut_into_fleets(jobs, fleet_size)
        stop = stack.enter_context(StopSignals())
        results: dict[str, RunResult | KdganError] = {}
        try:
            for fleet in fleets:
                runs = [TrainingRun(job, track_auc, raw) for job in fleet]
                results |= _Fleet(runs, stop, jobs, show_progress).train()
        except StoppedError:
            raise _interrupted(stop, jobs, track_auc, raw) from None
    by_run = {str(job.folder.path): results[str(job.folder.path)] for job in jobs}
    return RunResults(by_run, max(map(len, fleets)), note)


def _cut_into_fleets(jobs: Sequence[Job], fleet_size: int | None) -> tuple[list[list[Job]], str | None]:
    """The fleets that were begun, in parts if they are too large, and new ones, noted in their folders.

    Returns:
        The fleets, and why jobs that could be a fleet are not.
    """
    begun, others = restore_fleets(jobs)
    for fleet in begun:
        settle_states([job.folder for job in fleet])
    size, note = choose_fleet_size(others, fleet_size) if others else (len(jobs), None)
    for job in others:  # all folders now, so that --resume finds those too that have not started
        if not job.resume:
            job.folder.create(job.recipe.to_yaml())
    new = [others[start : start + size] for start in range(0, len(others), size)]
    for fleet in new if len(jobs) > 1 else []:
        record_fleet([job.folder for job in fleet])
    max_size = fleet_size or len(jobs)
    parts = [fleet[start : start + max_size] for fleet in begun for start in range(0, len(fleet), max_size)]
    return sorted(parts + new, key=lambda fleet: jobs.index(fleet[0])), note


class _Fleet(Saver):
    """Runs that are trained together.

    Args:
        runs: The runs.
        stop: Catches signals.
        jobs: All jobs of the command, of which the runs are some.
        show_progress: See ``RunOptions``.
    """

    def __init__(
        self, runs: Sequence[TrainingRun], stop: StopSignals, jobs: Sequence[Job], show_progress: ShowProgress | None
    ) -> None:
        self._runs, self._show_progress = runs, show_progress
        self._saver = FleetSaver(runs, stop)
        self._total = sum(job.num_images for job in jobs)
        first = jobs.index(runs[0].job)
        self._done_before = sum(job.num_images for job in jobs[:first])
        self._has_many = len(jobs) > 1
        self._recorded: list[tuple[TrainingRun, TrainRecord, float | None]] = []

    def train(self) -> dict[str, RunResult | KdganError]:
        """Train all to the end, and only then finish them, so that after a kill none of them trains without another.

        Raises:
            StoppedError: A signal was caught.
        """
        training = self._runs[0].job.training
        results: dict[str, RunResult | KdganError] = {}
        with num_threads(training.threads or 1), torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            for run in self._runs:
                try:
                    run.restore()
                except KdganError as error:  # the others can be continued all the same
                    results[_path(run)] = error
                    self._saver.failed.append(run)
            runs = [run for run in self._runs if _path(run) not in results]
            size = self._count(runs)
            schedulers = [run.job.scheduler for run in runs]
            for member, record in train_schedulers(schedulers, fast_engine, self):
                run = runs[member]
                if isinstance(record, DivergedError):
                    self._saver.failed.append(run)
                    results[_path(run)] = run.fail(record)
                else:
                    self._recorded.append((run, record, run.on_record(record)))
            return results | {_path(run): run.finish(size) for run in runs if _path(run) not in results}

    def is_due(self, is_epoch_end: bool, is_stage_end: bool) -> bool:
        """See ``Saver``."""
        return self._saver.is_due(is_epoch_end, is_stage_end)

    def after_records(self, can_save: bool) -> None:
        """See ``Saver``; progress that is shown has been saved if it can be."""
        if can_save:
            self._saver.save()
        for recorded in self._recorded:
            self._show(*recorded)
        self._recorded.clear()

    def _count(self, runs: Sequence[TrainingRun]) -> int:
        """How many models are trained together; of runs at their end, how many were."""
        begun = len(recorded_fleet(self._runs[0].job.folder))
        if all(run.job.scheduler.is_finished for run in runs):
            return max(begun, 1)
        if begun > len(runs):
            text = "%s was trained together with %d others and continues with %d: its weights can differ by rounding"
            logger.warning(text, self._runs[0].job.folder.path, begun - 1, len(runs) - 1)
        return len(runs)

    def _show(self, run: TrainingRun, record: TrainRecord, auc: float | None) -> None:
        if self._show_progress is None:
            return
        images, seconds = (sum(values) for values in zip(*(each.progress for each in self._runs), strict=True))
        name = run.job.folder.path.name if self._has_many else None
        rate = images / seconds if seconds else 0.0
        self._show_progress(Progress(record, self._done_before + images, self._total, rate, auc, name))


def _path(run: TrainingRun) -> str:
    return str(run.job.folder.path)


def _interrupted(stop: StopSignals, jobs: Sequence[Job], track_auc: bool, raw: bool) -> Interrupted:
    """The exception that ends a command whose runs are saved, with the command that continues them."""
    number = stop.received or signal.SIGINT
    parents = {job.folder.path.parent for job in jobs}
    path = jobs[0].folder.path if len(jobs) == 1 or len(parents) > 1 else parents.pop()
    options = [f"--family {family}" for family in _own_families(jobs)]
    options += ["--track-auc"] * track_auc + ["--raw"] * raw
    command = " ".join(["kdgan-compress", jobs[0].provenance["command"], *options, "--resume", shlex.quote(str(path))])
    message = f"Stopped by {signal.Signals(number).name}; the last step is saved in {path}. Continue with: {command}"
    return Interrupted(number, message)


def _own_families(jobs: Sequence[Job]) -> list[str]:
    architectures = [each for job in jobs for each in (job.architecture, job.teacher_architecture) if each is not None]
    return sorted({each.family for each in architectures if is_entry_point(each.family)})


def _check_jobs(jobs: Sequence[Job]) -> None:
    if not jobs:
        raise KdganError("There is nothing to train", "got no recipe and no teacher", "Name one")
    paths = [job.folder.path.resolve() for job in jobs]
    for job, path in zip(jobs, paths, strict=True):
        if paths.count(path) > 1:
            raise KdganError(
                "Every model needs a run folder of its own",
                f"{job.folder.path} belongs to {paths.count(path)} of them",
                "Use one command per run name, each with another --out",
            )
        if not job.resume:
            job.folder.check_is_new(job.recipe.to_yaml())
    for job in jobs:
        job.scheduler.check()
