"""Run command lines in forks of a process that has imported everything, and kill them at a write or at a time.

Python tells an audit hook about each file that is opened for writing, renamed or removed, so the package needs no
hooks of its own. A kill ends the whole process group, as a lack of power or memory would.
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
from pathlib import Path

PRELOADED = (
    *("kdgan_compress.cli.main", "kdgan_compress.api.train", "kdgan_compress.api.distill", "kdgan_compress.api.sweep"),
    *("kdgan_compress.api.export", "kdgan_compress.api.calibrate", "kdgan_compress.api.resume", "kdgan_compress.runtime"),
    *("matplotlib.backends.backend_agg", "sklearn.metrics", "onnxscript", "onnx", "onnxruntime", "pytest"),
)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
TORN_LINE = b'{"stage_index": 0, "sta'
MAX_SECONDS = 120


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


def run_command(
    arguments: list[str], watched: Path, kill_at: int | None = None, kill_after: float | None = None
) -> Ended:
    """Run a command; kill it before its n-th write in a folder (1 is the first), or after so many seconds."""
    log = watched.with_name(f"{watched.name}.log")
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_command, args=(arguments, str(watched), kill_at, str(log), sender))
    process.start()
    sender.close()
    receiver.recv()  # it has been prepared
    start = time.perf_counter()
    try:
        if kill_after is not None:
            process.join(kill_after)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)  # alone: processes that it has started must end by themselves
        process.join(MAX_SECONDS)
        seconds = time.perf_counter() - start
        assert not process.is_alive(), f"{arguments} hangs: {log.read_text()}"
        num_writes = receiver.recv() if receiver.poll() else 0
    except EOFError:  # killed
        num_writes = 0
    finally:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return Ended(process.exitcode, num_writes, seconds, log.read_text())


def _command(arguments: list[str], watched: str, kill_at: int | None, log: str, sender) -> None:
    from kdgan_compress.cli.main import run
    from kdgan_compress.distillation import train_log
    from kdgan_compress.experiment import training_run
    from kdgan_compress.sweeps import workers

    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    train_log.RECORD_EVERY_IMAGES = 8
    training_run.SAVE_SECONDS, training_run.MAX_SAVE_FRACTION = 0.0, 1.0  # as many saves as a long run
    forking = multiprocessing.get_context("fork")
    workers.multiprocessing.get_context = lambda _: forking  # its workers need not import everything again
    tempfile.tempdir = os.path.join(watched, "tmp")
    os.makedirs(tempfile.tempdir, exist_ok=True)
    counter = mmap.mmap(-1, 8)  # also counts the writes of its workers
    sender.send(None)
    sys.addaudithook(lambda event, values: _count(event, values, watched, counter, kill_at))
    code = run(arguments)
    sender.send(_get(counter))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _get(counter: mmap.mmap) -> int:
    return struct.unpack("q", counter[:8])[0]


def _count(event: str, values: tuple, watched: str, counter: mmap.mmap, kill_at: int | None) -> None:
    is_open = event == "open"
    if not is_open and event not in CHANGES:
        return
    if is_open and not values[2] & WRITING:
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
