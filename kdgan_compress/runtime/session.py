"""The only module that creates ONNX Runtime sessions, and the first that imports onnxruntime.

ONNX Runtime 1.31 starts its telemetry when it is imported: it writes a device id and a database to the user's cache
folder. ``ORT_DISABLE_TELEMETRY=1`` prevents this; the variable is read only during the import, so it is set for that
moment and then removed. A value set by the user is respected.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError, first_line

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
FATAL_LEVEL = 4
"""ONNX Runtime's severity from which it logs: errors are raised as exceptions too."""

MAX_MEMORY_BYTES = 800_000_000
"""What all sessions of a process may take for weights and intermediate values."""

CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
"""How its messages begin."""

_is_set_by_user = TELEMETRY_VARIABLE in os.environ
os.environ.setdefault(TELEMETRY_VARIABLE, "1")
try:
    import onnxruntime as onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
finally:
    if not _is_set_by_user:
        del os.environ[TELEMETRY_VARIABLE]

_RUN_ERRORS = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.NotImplemented, ort_errors.RuntimeException)
_LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.InvalidArgument,
    ValueError,
)


@cache
def _limit_memory() -> bool:
    """Bound the memory that sessions share; False if the program that runs this has made such an allocator itself."""
    kind, default = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, default)
    same_as_requested = 1
    limits = {"max_mem": MAX_MEMORY_BYTES, "arena_extend_strategy": same_as_requested}
    try:
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(limits))
    except (RuntimeError, ValueError, *_LOAD_ERRORS):
        return False
    return True


def create_session(model: bytes | str | PathLike[str], threads: int = 1) -> onnxruntime.InferenceSession:
    """Create an ONNX Runtime session on the CPU.

    Args:
        model: The content of an ``.onnx`` or ``.ort`` file, or its path.
        threads: CPU threads of one call, ≥ 1.

    Raises:
        KdganError: ONNX Runtime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL_LEVEL
    options.add_session_config_entry("session.use_env_allocators", "1" if _limit_memory() else "0")
    content = model if isinstance(model, bytes) else fspath(model)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except _LOAD_ERRORS as error:
        hint = "Use fp32, or another version of onnxruntime"
        raise KdganError("ONNX Runtime cannot load the model", CODE.sub("", first_line(error)), hint) from None


def run_session(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Compute outputs of a session by name.

    Raises:
        KdganError: ONNX Runtime cannot compute them.
    """
    try:
        return [np.asarray(array) for array in session.run(list(outputs), dict(inputs))]
    except _RUN_ERRORS as error:
        text = first_line(error)
        if "Available memory of" in text:
            found = f"it needs more than {MAX_MEMORY_BYTES // 1_000_000} MB"
            raise KdganError(
                "The detector must fit into memory", found, "Score fewer or smaller images at once"
            ) from None
        hint = "Check the image's size, or export the model again"
        raise KdganError("ONNX Runtime cannot run the detector", CODE.sub("", text), hint) from None


def usable_threads(threads: int) -> int:
    """The number of threads, limited to the processors that this process may use.

    Raises:
        KdganError: It is below 1.
    """
    if threads < 1:
        raise KdganError("The number of threads must be at least 1", f"got {threads}", "1 is the default")
    if hasattr(os, "sched_getaffinity"):
        return min(threads, len(os.sched_getaffinity(0)))
    return min(threads, os.cpu_count() or 1)
