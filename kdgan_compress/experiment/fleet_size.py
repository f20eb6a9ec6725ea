"""How many models are trained together: as many as memory allows and a short measurement finds fastest."""

import dataclasses
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from kdgan_compress.accel.cuda_graph import NUM_WARMUP_CALLS
from kdgan_compress.accel.engine import FleetEngine, fast_engine
from kdgan_compress.distillation.stage_run import StageRun
from kdgan_compress.distillation.trainer import StageProgress, losses_used
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.job import Job
from kdgan_compress.profiling.machine import num_threads

FLEET_SIZES = (1, 2, 5, 10, 20, 30, 50, 100)
NUM_MEASURED_STEPS = {"cpu": 6, "cuda": 50}
"""Steps of a measurement; on a GPU, six take 10 ms, which is too short to compare."""

MIN_RELATIVE_TIME = 0.95
"""A larger fleet must take less than this fraction of a smaller one's time per model."""

MEMORY_FRACTION = 0.5
"""Of the memory that is free now."""

ASSUMED_FREE_BYTES = 2_000_000_000
"""Where the system doesn't say how much is free."""

FLOATS_PER_WEIGHT = 12
"""Kept per weight of a member: the weight, EMA and moments, the fleet's copies, gradient, update, margin."""

FLOATS_PER_PIXEL = 60
"""Kept per pixel and outermost channel of a batch: activations, patches and their gradients."""


def check_fleet_size(jobs: Sequence[Job], requested: int | None) -> None:
    """Check the shape of the jobs and a requested fleet size, before anything is computed or written.

    Args:
        jobs: One or more.
        requested: None if the size is to be measured.

    Raises:
        KdganError: The jobs differ in shape, ``requested`` is below 1, or so many models do not fit into memory.
    """
    check_requested(requested)
    _check_one_shape(jobs)
    max_size = max_fleet_size(jobs[0])
    if requested is not None and min(requested, len(jobs)) > max_size:
        hint = f"Give --fleet {max_size} or less"
        raise KdganError("A fleet must fit into half of the free memory", f"got {requested}, {max_size} fit", hint)


def check_requested(requested: int | None) -> None:
    """Check that a requested fleet size is positive.

    Raises:
        KdganError: It is not.
    """
    if requested is not None and requested < 1:
        raise KdganError("A fleet needs at least 1 model", f"got {requested}", "Give --fleet 1 or more")


def choose_fleet_size(jobs: Sequence[Job], requested: int | None) -> tuple[int, str | None]:
    """The number of models to train together, and why it is 1 if they cannot be.

    Args:
        jobs: One or more that passed ``check_fleet_size``.
        requested: None to measure which is fastest.

    Raises:
        KdganError: The jobs cannot be trained in fleets of the requested size.
    """
    if len(jobs) == 1 or requested == 1:
        return 1, None
    if requested is not None:
        size = min(requested, len(jobs))
        _check_fleets(jobs, size)
        return size, None
    try:
        _check_fleets(jobs[:2], 2)
        size = _fastest_size(jobs, max_fleet_size(jobs[0]))
        _check_fleets(jobs, size)
    except KdganError as error:
        return 1, f"{error.problem}; {error.found}"
    return size, None


def max_fleet_size(job: Job) -> int:
    """How many models like this job's fit into half of the memory that is free now, at least 1."""
    weights = sum(
        parameter.numel()
        for state in job.trained
        for network in state.gan.networks().values()
        for parameter in network.parameters()
    )
    pixels = job.split.train[0].numel() * max(job.architecture.channels[0], 4) * job.training.batch_size
    bytes_per_member = 4 * (FLOATS_PER_WEIGHT * weights + FLOATS_PER_PIXEL * pixels)
    return max(1, int(MEMORY_FRACTION * _free_bytes(job.scheduler.student.gan.device) / bytes_per_member))


def _check_one_shape(jobs: Sequence[Job]) -> None:
    first = jobs[0]
    for job in jobs[1:]:
        for name in ("architecture", "teacher_architecture"):
            a, b = getattr(first, name), getattr(job, name)
            if a != b:
                fields = [] if None in (a, b) else [field.name for field in dataclasses.fields(a)]
                differing = [field for field in fields if getattr(a, field) != getattr(b, field)]
                raise KdganError(
                    "Models of one command need one shape, and their teachers too",
                    f"{first.folder.path} and {job.folder.path} differ in "
                    f"{', '.join(differing) or 'having a teacher'} ({name.replace('_', ' ')})",
                    "Use one command for each shape",
                )


def _check_fleets(jobs: Sequence[Job], size: int) -> None:
    """Check, on copies, that each ``size`` jobs can be trained together in all stages."""
    for start in range(0, len(jobs), size):
        fleet = jobs[start : start + size]
        for stage_index in range(max(len(job.scheduler.stages) for job in fleet)):
            groups: dict[tuple[bool, ...], list[StageRun]] = defaultdict(list)
            for job in fleet:
                if stage_index < len(job.scheduler.stages):
                    run = _sample(job, stage_index)
                    groups[losses_used(run)].append(run)
            for group in groups.values():
                with ExitStack() as stack, torch.random.fork_rng(devices=[]):
                    if len(group) > 1:
                        FleetEngine(_begin(group), stack)


def _fastest_size(jobs: Sequence[Job], max_size: int) -> int:
    """The size with the least time per model over some steps of each stage."""
    losses = [[losses_used(job.scheduler.stage_run(i)) for i in range(len(job.scheduler.stages))] for job in jobs]
    jobs = [job for job, used in zip(jobs, losses, strict=True) if used == losses[0]]
    if len(jobs) == 1:
        return 1
    largest = min(max_size, len(jobs))
    fastest, least = 1, float("inf")
    with num_threads(jobs[0].training.threads or 1), torch.random.fork_rng(devices=[]):
        for size in (*(size for size in FLEET_SIZES if size < largest), largest):
            seconds = _seconds_per_model(jobs[:size])
            if seconds > MIN_RELATIVE_TIME * least:
                break
            fastest, least = size, seconds
    return fastest


def _seconds_per_model(jobs: Sequence[Job]) -> float:
    """Time per model of one step of each stage, as often as it has epochs, without the time to set up the fleet.

    Of each stage, the better of two attempts.
    """
    stages = jobs[0].scheduler.stages
    times = [stage.epochs * min(_time_step(jobs, index) for _ in range(2)) for index, stage in enumerate(stages)]
    return sum(times) / len(jobs)


def _time_step(jobs: Sequence[Job], stage_index: int) -> float:
    runs = _begin([_sample(job, stage_index) for job in jobs])
    models, is_cuda = [StageProgress(run) for run in runs], runs[0].images.is_cuda
    num_measured = NUM_MEASURED_STEPS["cuda" if is_cuda else "cpu"]
    with ExitStack() as stack:
        engine = fast_engine(runs, stack)
        num_warmup = NUM_WARMUP_CALLS + 1 if is_cuda else 1  # a CUDA graph is captured after its warm-up
        for step in range(num_warmup + num_measured):
            if step == num_warmup:
                if is_cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
            indices = engine.begin_step([model.next_batch() for model in models], [1.0] * len(models))
            engine.train_step(engine.models, indices, step)
        if is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / num_measured


def _sample(job: Job, stage_index: int) -> StageRun:
    """One epoch of a stage of a job, on copies of its GANs."""
    run = job.scheduler.stage_run(stage_index)
    return dataclasses.replace(
        run,
        stage=dataclasses.replace(run.stage, epochs=1),
        student=run.student.fresh_copy(),
        teacher=None if run.teacher is None else run.teacher.fresh_copy(),
        epochs_done=0,
    )


def _begin(runs: Sequence[StageRun]) -> Sequence[StageRun]:
    for run in runs:
        run.begin()
    return runs


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    if not hasattr(os, "sysconf"):  # Windows
        return ASSUMED_FREE_BYTES
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
