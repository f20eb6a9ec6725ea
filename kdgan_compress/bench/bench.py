"""Training and inference speed on the machine at hand, as ratios: the same work by several paths, in turns.

Each path runs in a process of its own with one thread, which waits while the others run, so that its peak memory is its
own and no path is measured in a quieter hour than another.
"""

import contextlib
import functools
import itertools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kdgan_compress.accel.teacher_cache import TeacherCache
from kdgan_compress.bench.reference_loops import plain_loop
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import StageRun, TrainingSettings, begin_stage, run_fleet
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import score_images
from kdgan_compress.gans import Architecture, Gan, anomaly_score, build, normalize_images, to_device
from kdgan_compress.gans.objectives import OBJECTIVES
from kdgan_compress.profiling.machine import check_device, machine_name, peak_rss_mb, threads
from kdgan_compress.reports import plot_speed

TEACHER = (64, 128, 256)
TRAINED = ("plain", "engine", "fleet 10", "fleet 30")
TAUGHT = ("plain", "engine", "cache", "fleet 10", "fleet 30")


@dataclass(frozen=True)
class Case:
    """One piece of work, and the paths that do it.

    Attributes:
        work: ``train`` or ``infer``.
        family: Of the model, and of its teacher.
        structure: ``alone``, a structure's number, or ``score``.
        channels: The model's plan.
        batch: Images a step.
        paths: ``plain`` (a bare loop on torch's layers), ``engine``, ``cache`` (engine with a teacher cache) and
            ``fleet K`` (K models as one; with a cache where there is a frozen teacher).
    """

    work: str
    family: str
    structure: str
    channels: tuple[int, ...]
    batch: int
    paths: tuple[str, ...]

    @property
    def channels_str(self) -> str:
        """The channel plan as people write it."""
        return "-".join(map(str, self.channels))

    def fleet(self, path: str) -> int:
        """How many models a path trains at once."""
        return int(path.partition(" ")[2] or 1)


CASES = (
    *(Case("train", "ede", "alone", TEACHER, batch, TRAINED) for batch in (1, 8)),
    *(Case("train", "ede", "2", (8, 16, 64), batch, TAUGHT) for batch in (1, 8)),
    *(Case("train", "ede", "2", (2, 4, 8), batch, TAUGHT) for batch in (1, 8, 16)),
    *(Case("train", "ede", "2", (1, 2, 4), batch, TAUGHT) for batch in (1, 8)),
    Case("train", "ede", "3", (2, 4, 8), 16, ("plain", "engine")),
    Case("train", "cvgad", "alone", TEACHER, 64, ("plain", "engine")),
    Case("train", "cvgad", "alone", (16, 32, 64), 64, ("plain", "engine")),
    *(
        Case("infer", "ede", "score", channels, batch, ("plain", "engine"))
        for channels in (TEACHER, (8, 16, 64), (2, 4, 8), (1, 2, 4))
        for batch in (1, 8)
    ),
)

Prepare = Callable[[int], Callable[[], object]]

SHAPES = {"z1": (256,), "x_hat": (1, 32, 32), "z2": (256,)}
NUM_COLUMNS = sum(map(math.prod, SHAPES.values()))

CYCLE = 6
"""Steps after which CVGAD's Algorithm 1 begins anew; a round has a multiple of them, whatever the family."""

ROUNDS = 7
SECONDS_A_ROUND = 2.0
RATE, TEACHER_RATE = 4e-3, 1e-4
MATRIX_SIZE = 1024


@dataclass(frozen=True)
class Times:
    """Microseconds an image and model over all rounds."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class BenchRow:
    """One path of one case.

    Attributes:
        work: As in ``Case``.
        path: ``plain``, ``engine``, ``cache`` or ``fleet``.
        family: As in ``Case``.
        structure: As in ``Case``.
        channels: The model's plan.
        batch: Images a step and model.
        fleet: Models trained at once.
        us_per_image: Time of an image and model.
        speedup: Over ``plain`` of the same case: the median of the rounds' ratios.
        macs_per_image: Multiply-accumulates of all convolutions and matrix products that the path makes for an image
            and model; None for ``plain``.
        limit_share: Which part of the measured time the machine would need for these at its matrix rate.
        peak_rss_mb: Peak memory of the process that ran this path alone, in MB; None where the system doesn't tell.
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
    macs_per_image: float | None
    limit_share: float | None
    peak_rss_mb: float | None


@dataclass(frozen=True)
class BenchReport:
    """All rows, and what they were measured on, with one thread.

    Attributes:
        machine: The processor or GPU.
        matrix_gmacs: Rate of a float32 product of two 1024 × 1024 matrices in the same run, 10⁹ multiply-accumulates
            a second.
        rows: In the order of the cases.
    """

    machine: str
    matrix_gmacs: float
    rows: list[BenchRow]


def bench(
    cases: Sequence[Case] = CASES,
    *,
    rounds: int = ROUNDS,
    seconds_a_round: float = SECONDS_A_ROUND,
    device: str = "cpu",
    plot: str | Path | None = None,
    announce: Callable[[BenchRow], None] | None = None,
) -> BenchReport:
    """Measure cases, their paths in turns.

    Args:
        cases: All of them take about a quarter of an hour.
        rounds: How often each path has its turn.
        seconds_a_round: How long a turn is, about.
        device: ``cpu`` or ``cuda``.
        plot: A PNG to write.
        announce: Told each row when it is measured.

    Raises:
        KdganError: There is no such device, or the plot can't be written.
    """
    check_device(device)
    rate = matrix_rate(device)
    rows: list[BenchRow] = []
    for case in cases:
        for row in _measure(case, rounds, seconds_a_round, device, rate):
            rows.append(row)
            if announce:
                announce(row)
    if plot is not None:
        plot_speed(
            [(f"{r.work} {r.structure} {r.channels}, batch {r.batch}", _name(r), r.us_per_image.median) for r in rows],
            Path(plot),
        )
    return BenchReport(machine_name(device), rate / 1e9, rows)


def matrix_rate(device: str) -> float:
    """Multiply-accumulates a second of a square float32 matrix product with one thread, the best of five tries."""
    with threads(1):
        left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device) for _ in range(2))
        times = []
        for _ in range(5):
            _wait(device)
            start = time.perf_counter()
            torch.mm(left, right)
            _wait(device)
            times.append(time.perf_counter() - start)
    return MATRIX_SIZE**3 / min(times)


def _name(row: BenchRow) -> str:
    return f"{row.path} {row.fleet}" if row.path == "fleet" else row.path


def _measure(case: Case, rounds: int, seconds_a_round: float, device: str, rate: float) -> list[BenchRow]:
    with contextlib.ExitStack() as stack:
        workers = {path: stack.enter_context(_worker(case, path, seconds_a_round, device)) for path in case.paths}
        try:
            macs = {path: worker.recv() for path, worker in workers.items()}
            seconds: dict[str, list[float]] = {path: [] for path in workers}
            for _, (path, worker) in itertools.product(range(rounds), workers.items()):
                worker.send("go")
                seconds[path].append(worker.recv())
            for worker in workers.values():
                worker.send("end")
            peaks = {path: worker.recv() for path, worker in workers.items()}
        except (EOFError, ConnectionError):
            raise KdganError(
                "Every path of a case must end",
                f"one of {case.structure} {case.channels_str}, batch {case.batch}, did not",
                "Free memory, or leave this case out by --channels or --batch",
            ) from None
    return [
        BenchRow(
            work=case.work,
            path=path.partition(" ")[0],
            family=case.family,
            structure=case.structure,
            channels=case.channels_str,
            batch=case.batch,
            fleet=case.fleet(path),
            us_per_image=Times(*(pick(own) * 1e6 for pick in (median, min, max))),
            speedup=median(plain / other for plain, other in zip(seconds["plain"], own, strict=True)),
            macs_per_image=macs[path],
            limit_share=None if macs[path] is None else macs[path] / rate / median(own),
            peak_rss_mb=peaks[path],
        )
        for path, own in seconds.items()
    ]


@contextlib.contextmanager
def _worker(case: Case, path: str, seconds_a_round: float, device: str) -> Iterator["Connection[Any, Any]"]:
    """A process that runs one path, a round at each word."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, case, path, seconds_a_round, device), daemon=True)
    process.start()
    there.close()  # so that a worker that dies ends the wait for it
    try:
        yield here
    finally:
        here.close()
        process.join(timeout=5)
        process.kill()


def _work(connection: "Connection[Any, Any]", case: Case, path: str, seconds_a_round: float, device: str) -> None:
    torch.set_num_threads(1)
    prepare = _path(case, path, device)
    _time(prepare(CYCLE), device)
    few, many = (_time(prepare(cycles * CYCLE), device) for cycles in (1, 3))
    steps = CYCLE * max(1, round(seconds_a_round / max((many - few) / 2, 1e-4)))  # what comes once is no part of a step
    connection.send(None if path == "plain" else _macs_per_image(case, path, device))
    while connection.recv() == "go":
        connection.send(_time(prepare(steps), device) / (steps * case.batch * case.fleet(path)))
    connection.send(peak_rss_mb())


def _time(run: Callable[[], object], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _macs_per_image(case: Case, path: str, device: str) -> float:
    """Counted on one model, as torch's formulas take a grouped convolution's gradient for an ungrouped one's."""
    single = "cache" if case.fleet(path) > 1 else path
    return _count_macs(_path(case, single, device)(CYCLE)) / (CYCLE * case.batch)


def _count_macs(run: Callable[[], object]) -> float:
    with _FlopCounter() as counter:
        run()
    return float(counter.flops) / 2


class _FlopCounter(TorchDispatchMode):
    """torch's formulas without its tracking of modules, which forbids the critic's gradient penalty."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: float = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output


def _path(case: Case, path: str, device: str) -> Prepare:
    """What gets a number of steps ready, and then makes them."""
    if case.work == "infer":
        return _scoring(case, path, device)
    losses = FROM_SCRATCH if case.structure == "alone" else STRUCTURES[int(case.structure)]
    stage = Stage(case.structure, losses, epochs=1, learning_rate=RATE, teacher_learning_rate=TEACHER_RATE)
    if path != "plain":
        return _engine(case, path, stage, device)
    loop = plain_loop(case.family, stage, _build(case, device), _build(case, device, TEACHER), case.batch)
    return lambda steps: functools.partial(loop, _images(steps * case.batch, device))


def _build(case: Case, device: str, channels: tuple[int, ...] | None = None, seed: int = 0) -> Gan:
    return to_device(build(Architecture(family=case.family, channels=channels or case.channels), seed), device)


def _images(number: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 1, 32, 32), generator=generator).to(torch.uint8).to(device)


def _scoring(case: Case, path: str, device: str) -> Prepare:
    generator = _build(case, device).generator.eval()

    def batch_by_batch(images: Tensor) -> None:
        with torch.no_grad():
            for batch in images.split(case.batch):
                anomaly_score(generator, normalize_images(batch))

    score = batch_by_batch if path == "plain" else functools.partial(score_images, generator)
    return lambda steps: functools.partial(score, _images(steps * case.batch, device))


def _engine(case: Case, path: str, stage: Stage, device: str) -> Prepare:
    """The engine on models of their own; where a teacher is cached, its outputs are any numbers."""
    objective = OBJECTIVES[case.family]
    losses, members = stage.loss_set, range(case.fleet(path))
    is_cached = losses.needs_teacher and not losses.trains_teacher and path != "engine"
    students = [TrainState(_build(case, device, seed=k), objective=objective()) for k in members]
    teachers = [
        TrainState(_build(case, device, TEACHER), objective=objective())
        if losses.needs_teacher and not is_cached
        else None
        for _ in members
    ]

    def prepare(steps: int) -> Callable[[], object]:
        images = _images(steps * case.batch, device)
        cache = TeacherCache(torch.rand(len(images), NUM_COLUMNS, device=device), SHAPES) if is_cached else None
        runs = [
            StageRun(
                stage=stage,
                stage_index=0,
                student=students[k],
                teacher=teachers[k],
                images=images,
                distillation=Distillation(),
                settings=TrainingSettings(case.batch, seed=k),
                cache=cache,
            )
            for k in members
        ]
        for run in runs:
            begin_stage(run)
        return lambda: list(run_fleet(runs))

    return prepare
