"""Training and scoring speed on this machine, as ratios: the same work by several paths in alternation.

Each path runs in its own process with one thread and waits while the others run. So its peak memory is its own, and all
paths are measured under the same load.
"""

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kdgan_compress.bench.cases import CASES, Case
from kdgan_compress.bench.paths import NUM_PHASES, Prepare, macs_per_image, prepare_path
from kdgan_compress.distillation.precision import precision_context
from kdgan_compress.errors import KdganError
from kdgan_compress.profiling.machine import check_device, machine_name, num_threads, peak_rss_mb

NUM_ROUNDS = 7
SECONDS_PER_ROUND = 2.0
MATRIX_SIZE = 1024


@dataclass(frozen=True)
class Times:
    """Microseconds per image and model over all rounds."""

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
        channels: Channels of the model.
        batch: Batch size per model.
        fleet: Number of models trained together.
        us_per_image: Time per image and model, in microseconds.
        speedup: Over ``plain`` of the same case: the median of the rounds' ratios.
        macs_per_image: Multiply-accumulates of all convolutions and matrix products per image and model; None for
            ``plain``.
        fraction_of_peak: Rate of these operations as a fraction of the machine's matrix rate.
        peak_rss_mb: Peak memory of the process that ran this path, in MB; None if the system does not report it.
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
    fraction_of_peak: float | None
    peak_rss_mb: float | None


@dataclass(frozen=True)
class BenchReport:
    """All rows, measured with one thread.

    Attributes:
        machine: The processor or GPU.
        matrix_gmacs: Rate of a float32 product of two 1024 × 1024 matrices in the same run, 10⁹ multiply-accumulates
            per second.
        rows: In the order of the cases.
    """

    machine: str
    matrix_gmacs: float
    rows: list[BenchRow]


def bench(
    cases: Sequence[Case] = CASES,
    *,
    rounds: int = NUM_ROUNDS,
    seconds_per_round: float = SECONDS_PER_ROUND,
    device: str = "cpu",
    plot: str | Path | None = None,
    announce: Callable[[BenchRow], None] | None = None,
) -> BenchReport:
    """Measure cases; the paths of a case alternate.

    Args:
        cases: All of them take about 15 minutes.
        rounds: Measurements of each path.
        seconds_per_round: Approximate length of a measurement.
        device: ``cpu`` or ``cuda``.
        plot: A PNG to write.
        announce: Called with each row when it is measured.

    Raises:
        KdganError: There is no such device, or the plot can't be written.
    """
    check_device(device)
    rate = matrix_rate(device)
    rows: list[BenchRow] = []
    for case in cases:
        for row in _measure(case, rounds, seconds_per_round, device, rate):
            rows.append(row)
            if announce:
                announce(row)
    if plot is not None:
        from kdgan_compress.reports import plot_speed

        plot_speed(
            [(f"{r.work} {r.structure} {r.channels}, batch {r.batch}", _name(r), r.us_per_image.median) for r in rows],
            Path(plot),
        )
    return BenchReport(machine_name(device), rate / 1e9, rows)


def matrix_rate(device: str) -> float:
    """Multiply-accumulates per second of a square float32 matrix product with one thread, the best of five."""
    with num_threads(1):
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


def _measure(case: Case, rounds: int, seconds_per_round: float, device: str, rate: float) -> list[BenchRow]:
    with contextlib.ExitStack() as stack:
        workers = {path: stack.enter_context(_worker(case, path, seconds_per_round, device)) for path in case.paths}
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
                "A path of the benchmark ended early",
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
            us_per_image=Times(*(pick(times) * 1e6 for pick in (median, min, max))),
            speedup=median(plain / other for plain, other in zip(seconds["plain"], times, strict=True)),
            macs_per_image=macs[path],
            fraction_of_peak=None if macs[path] is None else macs[path] / rate / median(times),
            peak_rss_mb=peaks[path],
        )
        for path, times in seconds.items()
    ]


@contextlib.contextmanager
def _worker(case: Case, path: str, seconds_per_round: float, device: str) -> Iterator["Connection[Any, Any]"]:
    """A process that runs one path, one round per message."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_work, args=(child, case, path, seconds_per_round, device), daemon=True)
    process.start()
    child.close()  # so that waiting for a worker that died ends
    try:
        yield parent
    finally:
        parent.close()
        process.join(timeout=5)
        process.kill()


def _work(connection: "Connection[Any, Any]", case: Case, path: str, seconds_per_round: float, device: str) -> None:
    torch.set_num_threads(1)
    with precision_context("float32", device):  # the plain loop, too
        prepare = prepare_path(case, path, device)
        steps = _num_steps(prepare, seconds_per_round, device)
        connection.send(None if path == "plain" else macs_per_image(case, path))
        while connection.recv() == "go":
            connection.send(_time(prepare(steps), device) / (steps * case.batch * case.fleet(path)))
        connection.send(peak_rss_mb())


def _num_steps(prepare: Prepare, seconds: float, device: str) -> int:
    """How many steps take about ``seconds``, from a run of at least a quarter of that, without its constant part."""
    _time(prepare(NUM_PHASES), device)
    constant, cycles, measured = _time(prepare(NUM_PHASES), device), 1, 0.0
    while measured < seconds / 4:
        cycles *= 4
        measured = _time(prepare((cycles + 1) * NUM_PHASES), device) - constant
    return NUM_PHASES * max(1, round(cycles * seconds / measured))


def _time(run: Callable[[], object], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
