"""Where fleets run: local processes, the workers of a Dask cluster, or any executor of ``concurrent.futures``."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait

from kdgan_compress.errors import KdganError, first_line

CONNECT_SECONDS = 15
"""How long a Dask scheduler, and its first worker, may take to answer."""

DASK_EXTRA = "kdgan-compress[dask]"


class Workers:
    """An executor that can be opened again after it broke.

    Args:
        open_executor: Opens it.
        num_workers: How many fleets run at once, asked again before each submission.
    """

    def __init__(self, open_executor: Callable[[], Executor], num_workers: Callable[[], int]) -> None:
        self._open = open_executor
        self._num_workers = num_workers
        self.executor = open_executor()

    @property
    def num(self) -> int:
        """How many fleets run at once, at least 1."""
        return max(1, self._num_workers())

    def reopen(self) -> None:
        """Replace a broken executor."""
        self.executor.shutdown(wait=False)
        self.executor = self._open()


def count_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def local_processes(num_workers: int) -> Iterator[Workers]:
    """Processes on this machine; they end with this process, however it ends."""
    if num_workers < 1:
        raise KdganError("A sweep needs at least 1 worker", f"got {num_workers}", "Give --workers 1 or more")
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    workers = Workers(lambda: ProcessPoolExecutor(num_workers, context, _begin_process), lambda: num_workers)
    try:
        yield workers
        workers.executor.shutdown()
    except BaseException:  # an interruption does not wait for the fleets in training
        workers.executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise


@contextmanager
def dask_cluster(address: str) -> Iterator[Workers]:
    """The workers of a running Dask cluster, which see the same files under the same paths.

    Raises:
        KdganError: Dask is not installed, the scheduler can't be reached, or it has no workers.
    """
    try:
        from distributed import Client
    except ImportError:
        found, hint = "found no module distributed", f"Run pip install '{DASK_EXTRA}'"
        raise KdganError("--scheduler needs Dask", found, hint) from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        hint = "Start one with `dask scheduler`, and check its address"
        raise KdganError("The Dask scheduler can't be reached", f"{address}: {first_line(error)}", hint) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            hint = f"Start some with `dask worker {address} --nthreads 1`"
            raise KdganError("A Dask cluster needs workers", f"{address} has none", hint) from None
        yield Workers(lambda: client.get_executor(pure=False), lambda: len(client.nthreads()))


@contextmanager
def given_executor(executor: Executor, num_workers: int) -> Iterator[Workers]:
    """A caller's executor, which stays open."""
    yield Workers(lambda: executor, lambda: num_workers)


def _begin_process() -> None:
    """Leave Ctrl-C to the parent process, and end when it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
