"""Hardware, threads and versions, which are reported with every measurement."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from kdgan_compress.errors import KdganError

SINGLE_THREAD_BELOW_CHANNELS = 64
MAX_THREADS = 4


def machine_name(device: str = "cpu") -> str:
    """Name of the processor and number of cores, such as ``AMD EPYC (x86_64), 2 cores``; or the name of the GPU."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return f"{model or platform.processor() or 'CPU'} ({platform.machine()}), {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {"kdgan-compress": version("kdgan-compress"), "torch": str(torch.__version__)}


def choose_threads(widest_trained: int) -> int:
    """Number of threads for training: 1 if the widest trained layer has fewer than 64 channels."""
    return 1 if widest_trained < SINGLE_THREAD_BELOW_CHANNELS else min(MAX_THREADS, torch.get_num_threads())


def check_device(device: str) -> None:
    """Check that torch can use the device.

    Raises:
        KdganError: It cannot.
    """
    if device == "cuda" and not torch.cuda.is_available():
        hint = "Leave --device out, or install torch for your GPU"
        raise KdganError("The device must be there", "torch finds no CUDA GPU", hint)


def peak_rss_mb() -> float | None:
    """Peak resident memory of this process in MB; None if the system does not report it."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Let torch use this many threads inside ``with``."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
