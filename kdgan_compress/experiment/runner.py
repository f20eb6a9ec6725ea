"""The runner: takes jobs to finished run folders. One job and many run the same way."""

import logging
from collections.abc import Sequence
from typing import TypedDict

import torch

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.distillation.train_log import DivergedError
from kdgan_compress.distillation.trainer import train_schedulers
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.fleet_size import check_fleet_size, choose_fleet_size
from kdgan_compress.experiment.job import Job
from kdgan_compress.experiment.results import Progress, RunResult, RunResults, ShowProgress
from kdgan_compress.experiment.training_run import TrainingRun
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
    for message in dict.fromkeys(message for job in jobs for message in job.messages):
        logger.info(message)
    jobs = [job.attach_teacher_cache() for job in jobs]
    fleet_size, note = choose_fleet_size(jobs, fleet_size)
    for job in jobs:  # all folders now, so that --resume finds those too that have not started
        if not job.resume:
            job.folder.create(job.recipe.to_yaml())

    results: dict[str, RunResult | KdganError] = {}
    total, done_before = sum(job.num_images for job in jobs), 0
    for start in range(0, len(jobs), fleet_size):
        fleet = jobs[start : start + fleet_size]
        with num_threads(fleet[0].training.threads or 1), torch.random.fork_rng(devices=[]):
            torch.manual_seed(fleet[0].training.seed)
            runs = [TrainingRun(job, track_auc, raw) for job in fleet]
            for member, record in train_schedulers([job.scheduler for job in fleet], fast_engine):
                run = runs[member]
                path = str(run.job.folder.path)
                if isinstance(record, DivergedError):
                    results[path] = run.fail(record)
                    continue
                auc = run.on_record(record)
                if run.job.scheduler.is_finished:
                    results[path] = run.finish(len(fleet))
                if show_progress:
                    images, seconds = (sum(values) for values in zip(*(r.progress for r in runs), strict=True))
                    name = run.job.folder.path.name if len(jobs) > 1 else None
                    show_progress(Progress(record, done_before + images, total, images / seconds, auc, name))
            for run in runs:  # a run that was resumed at its end yields no record
                if str(run.job.folder.path) not in results:
                    results[str(run.job.folder.path)] = run.finish(len(fleet))
        done_before += sum(job.num_images for job in fleet)

    return RunResults({str(job.folder.path): results[str(job.folder.path)] for job in jobs}, fleet_size, note)


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
            job.folder.check_is_new()
    for job in jobs:
        job.scheduler.check()
