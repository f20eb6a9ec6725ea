"""Many runs of one shape: cut into fleets of a width that memory allows and a short measurement chose."""

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import StageRun, TrainingSettings, begin_stage, run_fleet
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.job import Job, Progress, RunResult, ShowProgress, read_result, with_cache
from kdgan_compress.experiment.recipe import Recipe
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.runner import execute_fleet
from kdgan_compress.gans.objective import merge_settings
from kdgan_compress.profiling.machine import threads

WIDTHS = (1, 2, 5, 10, 20, 30, 50, 100)
STEPS_MEASURED = 6
GAIN = 0.95
"""A wider fleet must take less than this share of a narrower one's time a model."""

USABLE = 0.5
"""Of the memory that is free now."""

NUMBERS_A_WEIGHT = 12
"""Kept for each weight of a member: its own value, average and moments, the fleet's, gradient, last move, room."""

NUMBERS_A_PIXEL = 60
"""Kept for each pixel and outermost channel of a batch: activations, patches and their gradients."""


@dataclass(frozen=True)
class FleetResult:
    """What many runs came to.

    Attributes:
        members: Of every run that ended well, in their order.
        failed: What went wrong, by run folder.
        fleet: How many were trained as one, at most.
        num_images: Of all of them together.
        seconds: The same; fleets run one after the other.
        images_per_s: ``num_images / seconds``.
    """

    members: list[RunResult]
    failed: dict[str, str]
    fleet: int
    num_images: int
    seconds: float
    images_per_s: float


def run_jobs(
    jobs: Sequence[Job], *, width: int | None, track_auc: bool, show_progress: ShowProgress | None
) -> FleetResult:
    """Run all jobs, each in its own folder.

    Args:
        jobs: One or more.
        width: Models trained as one; None to choose it.
        track_auc: As in ``train``.
        show_progress: Called about every 512 images of a model, with the progress of all of them.

    Raises:
        KdganError: They differ in shape, a new one's folder has a run in it, or so many don't fit into memory; nothing
            is written then.
    """
    if not jobs:
        raise KdganError("A fleet must have at least one model", "got none", "Name a recipe or a teacher")
    _check_one_shape(jobs)
    _check_own_folders(jobs)
    for job in jobs:
        if not job.resume:
            job.folder.check_is_new()
    if width is not None:
        _check_width(width, jobs)
    jobs = [with_cache(job) for job in jobs]
    width = min(width or _fastest_width(jobs, num_that_fit(jobs[0])), len(jobs))
    for job in jobs:
        job.begin()  # all of them now, so that --resume finds those too whose turn didn't come
    members: list[RunResult] = []
    failed: dict[str, str] = {}
    total = sum(job.num_images for job in jobs)
    for start in range(0, len(jobs), width):
        fleet = jobs[start : start + width]
        before = sum(job.num_images for job in jobs[:start])
        show = _shifted(show_progress, before, total) if show_progress else None
        results = execute_fleet(fleet, is_named=True, track_auc=track_auc, show_progress=show)
        for job, result in zip(fleet, results, strict=True):
            if isinstance(result, KdganError):
                failed[str(job.folder.path)] = str(result)
            else:
                members.append(result)
    return _result(members, failed, width)


def finish_runs(
    folder: Path,
    recipe_of: Callable[[RunFolder], Recipe],
    prepare: Callable[[RunFolder, Recipe], Job],
    *,
    width: int | None,
    track_auc: bool,
    show_progress: ShowProgress | None,
) -> FleetResult:
    """Run what isn't finished of the runs right below a folder.

    Args:
        folder: Where the run folders are.
        recipe_of: Reads a run's recipe and checks that it is one of the command's.
        prepare: Makes the job that finishes a run.
        width: As in ``run_jobs``.
        track_auc: As there.
        show_progress: As there.

    Returns:
        The result of all, by name; the finished ones' as they were.

    Raises:
        KdganError: There is no run, or one that can't be finished.
    """
    recipes = {run: recipe_of(run) for run in _runs_below(folder)}
    results = {run: read_result(run) for run in recipes}
    done = [result for result in results.values() if result is not None]
    jobs = [prepare(run, recipe) for run, recipe in recipes.items() if results[run] is None]
    if not jobs:
        return _result(done, {}, 1)
    rest = run_jobs(jobs, width=width, track_auc=track_auc, show_progress=show_progress)
    return _result(sorted([*done, *rest.members], key=lambda member: member.run), rest.failed, rest.fleet)


def _result(members: list[RunResult], failed: dict[str, str], width: int) -> FleetResult:
    num_images, seconds = sum(m.num_images for m in members), sum(m.seconds for m in members)
    return FleetResult(members, failed, width, num_images, seconds, num_images / seconds if seconds else 0.0)


def _runs_below(folder: Path) -> list[RunFolder]:
    runs = [RunFolder(path.parent) for path in sorted(folder.glob("*/recipe.yaml"))]
    if not runs:
        raise KdganError(
            "--resume must be given a run folder, or a folder of runs", f"found no run in {folder}", "Check the path"
        )
    return runs


def num_that_fit(job: Job) -> int:
    """How many models like this job's can be trained as one in half of the memory that is free now, at least 1."""
    schedule = job.schedule
    trained = [schedule.student, schedule.teacher] if schedule.trains_teacher else [schedule.student]
    weights = sum(
        parameter.numel()
        for learner in trained
        if learner is not None
        for network in learner.gan.networks().values()
        for parameter in network.parameters()
    )
    pixels = job.split.train[0].numel() * max(job.architecture.channels[0], 4) * _batch_size(job)
    bytes_a_member = 4 * (NUMBERS_A_WEIGHT * weights + NUMBERS_A_PIXEL * pixels)
    return max(1, int(USABLE * _free_bytes(schedule.student.gan.device) / bytes_a_member))


def _check_one_shape(jobs: Sequence[Job]) -> None:
    first = jobs[0]
    for job in jobs[1:]:
        for name in ("architecture", "teacher_architecture"):
            ours, theirs = getattr(first, name), getattr(job, name)
            if ours != theirs:
                fields = [] if None in (ours, theirs) else [f.name for f in dataclasses.fields(ours)]
                differing = [field for field in fields if getattr(ours, field) != getattr(theirs, field)]
                raise KdganError(
                    "Models trained as one must be of one shape, and their teachers too",
                    f"{first.folder.path} and {job.folder.path} differ in "
                    f"{', '.join(differing) or 'having a teacher'} ({name.replace('_', ' ')})",
                    "Train those of one shape together",
                )


def _check_own_folders(jobs: Sequence[Job]) -> None:
    paths = [job.folder.path.resolve() for job in jobs]
    for job, path in zip(jobs, paths, strict=True):
        if paths.count(path) > 1:
            raise KdganError(
                "Every model must have a run folder of its own",
                f"{job.folder.path} is that of {paths.count(path)}",
                "Give runs of one name to commands with another --out each",
            )


def _has_fleet_form(job: Job) -> bool:
    """Whether all that a job trains can be trained as one with others."""
    schedule = job.schedule
    trained = [schedule.student, schedule.teacher] if schedule.trains_teacher else [schedule.student]
    return all(learner.gan.build_fleet is not None for learner in trained if learner is not None)


def _check_width(wanted: int, jobs: Sequence[Job]) -> None:
    """Check, before anything is written, that these can be trained so many at once."""
    if wanted < 1:
        raise KdganError("A fleet must have at least 1 model", f"got {wanted}", "Give --fleet 1 or more")
    width, most = min(wanted, len(jobs)), num_that_fit(jobs[0])
    if width > 1 and not _has_fleet_form(jobs[0]):
        raise KdganError(
            "A fleet must be of a family that has one, with norm per_image, and so must a teacher that it trains",
            f"got {jobs[0].architecture.family} with norm {jobs[0].architecture.norm}",
            "Leave --fleet out: these are trained one after the other",
        )
    if width > most:
        raise KdganError(
            "A fleet must fit into half of the free memory", f"got {wanted}, {most} fit", f"Give --fleet {most} or less"
        )
    for start in range(0, len(jobs), width):
        runs = [job.schedule.stage_run(0) for job in jobs[start : start + width]]
        TrainState.stack([run.student for run in runs])
        merge_settings([run.distillation for run in runs])


def _fastest_width(jobs: Sequence[Job], most: int) -> int:
    """The width that takes the least time a model over some steps of the first stage, taken on copies."""
    if len(jobs) < 2 or not _has_fleet_form(jobs[0]):
        return 1
    chosen, best = 1, float("inf")
    with threads(jobs[0].num_threads), torch.random.fork_rng(devices=[]):
        for width in (*(w for w in WIDTHS if w < min(most, len(jobs))), min(most, len(jobs))):
            seconds = _seconds_a_model(jobs[:width])
            if seconds > GAIN * best:
                break
            chosen, best = width, seconds
    return chosen


def _seconds_a_model(jobs: Sequence[Job]) -> float:
    """Time of some steps, the better of two tries."""
    times = []
    for _ in range(2):
        runs = [_sample(job) for job in jobs]
        for run in runs:
            begin_stage(run)
        start = time.perf_counter()
        for _ in run_fleet(runs):
            pass
        times.append((time.perf_counter() - start) / len(runs))
    return min(times)


def _sample(job: Job) -> StageRun:
    """A few steps of a job's first stage, on copies of its learners."""
    schedule = job.schedule
    run = schedule.stage_run(0)
    images = run.images[: STEPS_MEASURED * _batch_size(job)]
    return dataclasses.replace(
        run,
        stage=dataclasses.replace(run.stage, epochs=1),
        student=copy.deepcopy(run.student),
        teacher=copy.deepcopy(run.teacher),
        images=images,
        settings=TrainingSettings(_batch_size(job)),
        epochs_done=0,
    )


def _batch_size(job: Job) -> int:
    section = job.recipe.training if job.teacher_architecture is None else job.recipe.distillation.training
    return section.batch_size


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _shifted(show_progress: ShowProgress, before: int, total: int) -> ShowProgress:
    """Progress of one fleet told as that of all of them."""

    def show(progress: Progress) -> None:
        show_progress(dataclasses.replace(progress, images_done=before + progress.images_done, images_total=total))

    return show
