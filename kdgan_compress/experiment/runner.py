"""Running schedules into run folders, for train and distill: metrics, state to resume from, model, result."""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdgan_compress.data import Split
from kdgan_compress.distillation.scheduler import Schedule, run_together
from kdgan_compress.distillation.train_log import DivergedError, Record
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import detection_metrics, quantile_threshold, recalibrate, score_images
from kdgan_compress.experiment.checkpoint import Checkpoint, save_checkpoint
from kdgan_compress.experiment.job import Job, Progress, RunResult, ShowProgress, with_cache
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.gans import Architecture
from kdgan_compress.profiling.machine import machine_name, threads, versions
from kdgan_compress.reports import plot_curves, plot_scores

NUM_TRIED = 32
"""Normal and test images that must have finite scores for a state to be worth saving."""

THRESHOLD_RULE = "99% quantile of {} {}training normals' scores"


def execute(job: Job, *, track_auc: bool, show_progress: ShowProgress | None) -> RunResult:
    """Train to the end, or from where an interrupted run of the same job left off.

    Args:
        job: What to run.
        track_auc: Measure AUC after every epoch, for the log; it chooses nothing.
        show_progress: Called about every 512 images.
    """
    if not job.resume:
        job.folder.check_is_new()
    job = with_cache(job)
    job.begin()
    (result,) = execute_fleet([job], is_named=False, track_auc=track_auc, show_progress=show_progress)
    if isinstance(result, KdganError):
        raise result
    return result


def execute_fleet(
    jobs: Sequence[Job], *, is_named: bool, track_auc: bool, show_progress: ShowProgress | None
) -> list[RunResult | KdganError]:
    """Train several jobs of one shape as one fleet; a member that fails leaves the others to go on.

    Args:
        jobs: One or more, with their folders made; threads and seed of the process are the first one's.
        is_named: Whether progress says whose it is.
        track_auc: As in ``execute``.
        show_progress: Called about every 512 images of a member.

    Returns:
        A result, or what went wrong, for each job.
    """
    results: dict[int, RunResult | KdganError] = {}
    with threads(jobs[0].num_threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(jobs[0].seed)
        runs = [_Run(job, track_auc) for job in jobs]
        total = sum(job.num_images for job in jobs)
        for member, record in run_together([job.schedule for job in jobs]):
            run = runs[member]
            if isinstance(record, DivergedError):
                results[member] = run.fail(record)
                continue
            auc = run.follow(record)
            if run.job.schedule.is_finished:
                results[member] = run.finish(fleet=len(jobs))
            if show_progress:
                seen, spent = (sum(values) for values in zip(*(own.so_far for own in runs), strict=True))
                name = run.job.folder.path.name if is_named else None
                show_progress(Progress(record, seen, total, seen / spent, auc, name))
        for member, run in enumerate(runs):
            if member not in results:  # it was at its end when it was taken up
                results[member] = run.finish(fleet=len(jobs))
    return [results[member] for member in range(len(jobs))]


class _Run:
    """One job on its way: its folder is kept up to date."""

    def __init__(self, job: Job, track_auc: bool) -> None:
        self.job = job
        self._track_auc = track_auc
        self._done, self._seconds = 0, 0.0
        self._record: Record | None = None
        if job.resume:
            self._done, self._seconds = _take_up(job.schedule, job.folder)
        self._save = _Saver(job)

    @property
    def so_far(self) -> tuple[int, float]:
        """Images and seconds."""
        record = self._record
        return self._done + (record.num_images if record else 0), self._seconds + (record.seconds if record else 0.0)

    def follow(self, record: Record) -> float | None:
        """Write down what a record says; the AUC, where it was measured."""
        auc = auc_raw = None
        self._record = record
        if record.epoch_done:
            if self._track_auc:
                auc, auc_raw = _aucs(self.job.schedule.student, self.job.split)
            self.job.folder.append_metrics(_metrics_line(self.job.schedule, record, auc, auc_raw))
            self._save.if_due()
            self._done, self._seconds = self.so_far
            self._record = None
        return auc

    def finish(self, fleet: int) -> RunResult | KdganError:
        """Write the model and all that belongs to it."""
        job = self.job
        if not _is_good(job):
            return self.fail(
                DivergedError("Weights must stay finite", "they are not after the last step", "Lower the learning rate")
            )
        self._save.now()
        _save_models(job)
        result = _result(job, self._seconds, fleet)
        plot_curves(job.folder.read_metrics(), job.folder.path / "curves.png")
        job.folder.write_text(job.folder.result, json.dumps(dataclasses.asdict(result), indent=2) + "\n")
        return result

    def fail(self, error: DivergedError) -> KdganError:
        """Write the last good model; what there is to say."""
        return KdganError(error.problem, error.found, f"{error.hint}; {_keep_last_good(self.job)}")


class _Saver:
    """Saves the state to resume from, so often that it takes no more than a tenth of the time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._next = 0.0

    def if_due(self) -> None:
        if time.perf_counter() >= self._next:
            self.now()

    def now(self) -> None:
        if not _is_good(self._job):
            return  # an older state is better than that
        start = time.perf_counter()
        self._job.folder.save_state(self._job.schedule.state_dict())
        end = time.perf_counter()
        self._next = end + 9 * (end - start)


def _is_good(job: Job) -> bool:
    """Whether what is trained has finite weights and scores images by finite numbers."""
    schedule = job.schedule
    images = torch.cat([job.split.train[:NUM_TRIED], job.split.test[-NUM_TRIED:]])
    learners = [schedule.student, schedule.teacher] if schedule.trains_teacher else [schedule.student]
    return all(
        learner.is_finite() and np.isfinite(score_images(generator, images)).all()
        for learner in learners
        if learner is not None
        for generator in (learner.ema_generator, learner.gan.generator)
    )


def _keep_last_good(job: Job) -> str:
    """Write the model of the last saved state; in words, what there is now."""
    folder = job.folder
    if not folder.state.exists():
        return "it happened before anything was saved"
    job.schedule.load_state_dict(folder.load_state())
    _save_models(job)
    stage_index, epochs_done = job.schedule.position
    return f"{folder.model} holds the last good model, that of epoch {epochs_done} of stage {stage_index + 1}"


def _result(job: Job, seconds: float, fleet: int) -> RunResult:
    folder = job.folder
    auc, auc_raw = _aucs(job.schedule.student, job.split)
    lines = folder.read_metrics()
    num_images = sum(line["num_images"] for line in lines)
    return RunResult(
        run=str(folder.path),
        model=str(folder.model),
        auc=auc,
        auc_raw=auc_raw,
        epochs=len(lines),
        num_images=num_images,
        seconds=round(seconds, 3),
        images_per_s=round(num_images / seconds, 1),
        seed=job.seed,
        threads=torch.get_num_threads(),
        machine=machine_name(job.schedule.student.gan.device.type),
        fleet=fleet,
        teacher_cache=job.teacher_cache,
        best_epoch_auc_oracle=max((line["auc"] for line in lines if line["auc"] is not None), default=None),
    )


def _take_up(schedule: Schedule, folder: RunFolder) -> tuple[int, float]:
    """Restore the state, if one was saved, and drop metrics written after it; images and seconds so far."""
    kept = []
    if folder.state.exists():
        schedule.load_state_dict(folder.load_state())
        kept = [line for line in folder.read_metrics() if (line["stage_index"], line["epoch"]) <= schedule.position]
    folder.write_text(folder.metrics, "".join(json.dumps(line) + "\n" for line in kept))
    return sum(line["num_images"] for line in kept), sum(line["seconds"] for line in kept)


def _metrics_line(schedule: Schedule, record: Record, auc: float | None, auc_raw: float | None) -> dict[str, Any]:
    stage_index, _ = schedule.position
    return {
        "stage_index": stage_index,
        "stage": record.stage,
        "epoch": record.epoch,
        "num_images": record.num_images,
        "seconds": record.seconds,
        "images_per_s": record.num_images / record.seconds,
        **record.losses,
        "auc": auc,
        "auc_raw": auc_raw,
    }


def _aucs(learner: TrainState, split: Split) -> tuple[float | None, float | None]:
    """AUC of the averaged and of the raw generator."""
    if not split.is_labelled:
        return None, None
    _fit_on_normals(learner, split)
    averaged, raw = (
        detection_metrics(score_images(generator, split.test), split.test_is_anomalous).auc
        for generator in (learner.ema_generator, learner.gan.generator)
    )
    return averaged, raw


def _fit_on_normals(learner: TrainState, split: Split) -> None:
    for generator in {learner.ema_generator, learner.gan.generator}:
        recalibrate(generator, split.train)


def _save_models(job: Job) -> None:
    folder = job.folder
    student, teacher = job.schedule.student, job.schedule.teacher
    _fit_on_normals(student, job.split)
    normals = score_images(student.ema_generator, job.split.calibration)
    threshold = quantile_threshold(normals)
    save_checkpoint(folder.model, _checkpoint(job, student, job.architecture, threshold))
    if teacher is not None and job.teacher_architecture is not None and job.schedule.trains_teacher:
        _fit_on_normals(teacher, job.split)
        teacher_threshold = quantile_threshold(score_images(teacher.ema_generator, job.split.calibration))
        save_checkpoint(folder.teacher, _checkpoint(job, teacher, job.teacher_architecture, teacher_threshold))
    test = score_images(student.ema_generator, job.split.test)
    plot_scores(normals, test, job.split.test_is_anomalous, threshold, folder.path / "scores.png")


def _checkpoint(job: Job, learner: TrainState, architecture: Architecture, threshold: float) -> Checkpoint:
    weights = {name: network.state_dict() for name, network in learner.gan.networks().items()}
    if learner.ema_generator is not learner.gan.generator:
        weights["raw"] = weights["generator"]
        weights["generator"] = learner.ema_generator.state_dict()
    return Checkpoint(
        architecture=architecture,
        data=job.recipe.data,
        threshold=threshold,
        threshold_rule=THRESHOLD_RULE.format(len(job.split.calibration), "held-out " if job.split.has_holdout else ""),
        provenance=job.provenance | {"seed": job.seed, "split_sha256": job.split.split_sha256, "versions": versions()},
        weights=weights,
    )
