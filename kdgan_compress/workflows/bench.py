"""Training speed on the machine at hand: the engine against the same steps written out as a bare loop, in turns.

The bare loop (``plain_loops``) has no hooks, records or objective between it and torch.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from kdgan_compress.gans import Architecture, Gan, build
from kdgan_compress.objectives import OBJECTIVES, Distillation
from kdgan_compress.policies import ALONE, STRUCTURES, Stage
from kdgan_compress.training import Learner, TrainingSettings, begin_stage, run_stage
from kdgan_compress.workflows.machine import machine_name, peak_rss_mb, threads
from kdgan_compress.workflows.plain_loops import plain_loop

TEACHER = (64, 128, 256)
CASES: tuple[tuple[str, str, tuple[int, ...], int], ...] = (
    ("ede", "alone", TEACHER, 1),
    ("ede", "alone", TEACHER, 16),
    ("ede", "alone", (2, 4, 8), 1),
    ("ede", "alone", (2, 4, 8), 16),
    ("ede", "2", (2, 4, 8), 1),
    ("ede", "2", (2, 4, 8), 16),
    ("ede", "3", (2, 4, 8), 16),
    ("cvgad", "alone", TEACHER, 64),
    ("cvgad", "alone", (16, 32, 64), 64),
)
"""Family, structure, channels, batch size."""

CYCLE = 6
"""Steps after which CVGAD's Algorithm 1 begins anew; a round has a multiple of them, whatever the family."""

ROUNDS = 9
SECONDS_A_ROUND = 1.0
RATE, TEACHER_RATE = 4e-3, 1e-4


@dataclass(frozen=True)
class Times:
    """Microseconds an image over all rounds."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class BenchRow:
    """One way of training one model.

    Attributes:
        work: ``train``.
        path: ``plain`` (the bare loop) or ``engine``.
        family: Of the trained model, and of its teacher.
        structure: ``alone`` or a structure's number.
        channels: The trained model's plan.
        batch: Images a step.
        fleet: Models trained at once.
        us_per_image: Time of a training image and model.
        speedup: Over ``plain`` of the same case: the median of the rounds' ratios.
        peak_rss_mb: The process's peak so far, in MB; None where the system doesn't tell.
    """

    work: str
    path: str
    family: str
    structure: str
    channels: str
    batch: int
    fleet: int
    us_per_image: Times
    speedup: float
    peak_rss_mb: float | None


@dataclass(frozen=True)
class BenchReport:
    """All rows, and the machine they were measured on with one thread."""

    machine: str
    rows: list[BenchRow]


def bench(announce: Callable[[BenchRow], None] | None = None) -> BenchReport:
    """Measure every case with one thread, bare loop and engine in turns; about four minutes.

    Args:
        announce: Told each row when it is measured.
    """
    rows: list[BenchRow] = []
    with threads(1):
        for case in CASES:
            for row in _measure(*case):
                rows.append(row)
                if announce:
                    announce(row)
    return BenchReport(machine_name(), rows)


def _measure(family: str, structure: str, channels: tuple[int, ...], batch: int) -> list[BenchRow]:
    losses = ALONE if structure == "alone" else STRUCTURES[int(structure)]
    stage = Stage(structure, losses, epochs=1, learning_rate=RATE, teacher_learning_rate=TEACHER_RATE)
    architecture, teacher = (Architecture(family=family, channels=plan) for plan in (channels, TEACHER))
    paths: dict[str, Callable[[Tensor], None]] = {
        "plain": plain_loop(family, stage, build(architecture), build(teacher), batch),
        "engine": _engine(family, stage, build(architecture), build(teacher), batch),
    }
    images = torch.randint(0, 256, (batch, 1, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    paths["plain"](images)
    step_seconds = _time(paths["plain"], images.repeat(CYCLE, 1, 1, 1)) * batch
    images = images.repeat(CYCLE * max(1, round(SECONDS_A_ROUND / step_seconds / CYCLE)), 1, 1, 1)
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _, (name, run) in itertools.product(range(ROUNDS), paths.items()):
        times[name].append(_time(run, images))
    return [
        BenchRow(
            work="train",
            path=name,
            family=family,
            structure=structure,
            channels=architecture.plan,
            batch=batch,
            fleet=1,
            us_per_image=Times(*(pick(own) * 1e6 for pick in (median, min, max))),
            speedup=median(plain / other for plain, other in zip(times["plain"], own, strict=True)),
            peak_rss_mb=peak_rss_mb(),
        )
        for name, own in times.items()
    ]


def _time(run: Callable[[Tensor], None], images: Tensor) -> float:
    """Seconds an image."""
    start = time.perf_counter()
    run(images)
    return (time.perf_counter() - start) / len(images)


def _engine(family: str, stage: Stage, student: Gan, teacher: Gan, batch: int) -> Callable[[Tensor], None]:
    settings = TrainingSettings(batch_size=batch)
    learner, master = (Learner(gan, objective=OBJECTIVES[family]()) for gan in (student, teacher))
    begin_stage(stage, learner, master, torch.zeros(1, 1, 32, 32, dtype=torch.uint8), Distillation())

    def run(images: Tensor) -> None:
        for _ in run_stage(stage, 0, learner, master, images, Distillation(), settings):
            pass

    return run
