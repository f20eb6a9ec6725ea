"""Run command lines in forks of a process that has imported everything, and kill them at a write or at a time.

Python tells an audit hook about each file that is opened for writing, renamed or removed, so the package needs no
hooks of its own. A kill at a write ends the whole process group, as a loss of power would; a kill at a time ends the
command's first process alone, as somebody's ``kill -9`` does.
"""

import mmap
import multiprocessing
import os
import signal
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
TORN_LINE = b'{"stage_index": 0, "sta'
MAX_SECONDS = 120
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code (-9 if it was killed), writes in the watched folder, seconds, output."""

    code: int
    num_writes: int
    seconds: float
    output: str

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class ForkServer:
    """A process that forks for each command, so that none of them has to import torch; ``close`` ends it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,))
        self._process.start()
        other.close()

    def run(
        self, arguments: list[str], watched: Path, kill_at: int | None = None, kill_after: float | None = None
    ) -> Ended:
        """Run a command; kill it before its n-th write in a folder (1 is the first), or after so many seconds."""
        self._connection.send((list(map(str, arguments)), str(watched), kill_at, kill_after))
        return self._connection.recv()

    def warm_up(self, arguments: list[str]) -> None:
        """Run a command in the server itself, so that its forks have what it loads first; they can't train then."""
        self._connection.send((list(map(str, arguments)), None, None, None))
        self._connection.recv()

    def close(self) -> None:
        self._connection.close()
        self._process.join(10)
        self._process.kill()


def _serve(connection: Connection) -> None:
    import torch._dynamo

    import kdgan_compress.api.export
    import kdgan_compress.api.sweep  # noqa: F401
    from kdgan_compress.cli.main import run

    torch.set_num_threads(1)  # a fork has no other threads
    _prepare()
    while True:
        try:
            arguments, watched, kill_at, kill_after = connection.recv()
        except EOFError:
            return
        if watched is None:
            connection.send(run(arguments))
        else:
            connection.send(_run(arguments, watched, kill_at, kill_after))


def _prepare() -> None:
    """As many saves in a tiny run as in a long one; plots that take no time; workers that import nothing."""
    from traces import trace_once

    from kdgan_compress.distillation import train_log
    from kdgan_compress.experiment import fleet_states, teacher_caches, training_run
    from kdgan_compress.export import detector_file
    from kdgan_compress.sweeps import worker, workers

    detector_file.trace = (
        trace_once  # takes seconds, and torch forbids a backward pass in forks of a process that had one
    )
    detector_file.count = _count_once
    train_log.RECORD_EVERY_IMAGES = 8
    fleet_states.SAVE_SECONDS, fleet_states.MAX_SAVE_FRACTION = 0.0, 1.0
    worker.PROGRESS_SECONDS, teacher_caches.KEEP_SECONDS = 0, 0
    training_run.plot_curves = training_run.plot_scores = _quick_plot
    get_context = multiprocessing.get_context
    workers.multiprocessing.get_context = lambda method: FORK if method == "spawn" else get_context(method)


_COUNTS: dict[str, object] = {}


def _count_once(generator, image_format):
    from kdgan_compress.evaluation import weights_sha256
    from kdgan_compress.profiling.counts import count

    key = weights_sha256(generator)
    if key not in _COUNTS:
        _COUNTS[key] = count(generator, image_format)
    return _COUNTS[key]


def _quick_plot(*arguments) -> None:
    from PIL import Image

    from kdgan_compress.files import atomic_path

    with atomic_path(arguments[-1]) as temporary:
        Image.new("L", (1, 1)).save(temporary, "png")


def _run(arguments: list[str], watched: str, kill_at: int | None, kill_after: float | None) -> Ended:
    log = Path(f"{watched}.log")
    counter = mmap.mmap(-1, 8)  # shared with the command and its workers
    process = FORK.Process(target=_command, args=(arguments, watched, counter, kill_at, log))
    start = time.perf_counter()
    process.start()
    if kill_after is not None:
        process.join(kill_after)
        process.kill()
    process.join(MAX_SECONDS)
    seconds = time.perf_counter() - start
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return Ended(1, 0, seconds, f"it hangs: {log.read_text()}")
    return Ended(process.exitcode, _get(counter), seconds, log.read_text() if log.exists() else "")


def _command(arguments: list[str], watched: str, counter: mmap.mmap, kill_at: int | None, log: Path) -> None:
    from kdgan_compress.cli.main import run

    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    scratch = Path(watched, "tmp")
    scratch.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(scratch)
    sys.addaudithook(lambda event, values: _count(event, values, watched, counter, kill_at))
    code = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _get(counter: mmap.mmap) -> int:
    return struct.unpack("q", counter[:8])[0]


def _count(event: str, values: tuple, watched: str, counter: mmap.mmap, kill_at: int | None) -> None:
    is_open = event == "open"
    if not (values[2] & WRITING if is_open else event in CHANGES):
        return
    path = values[0]
    if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(watched):
        return
    number = _get(counter) + 1
    counter[:8] = struct.pack("q", number)
    if number == kill_at:
        if is_open and values[2] & os.O_APPEND:  # as if it were killed in the midst of a line
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, TORN_LINE)
        os.killpg(0, signal.SIGKILL)
