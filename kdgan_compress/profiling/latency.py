"""Measure the latency of detectors in turns, so that a machine whose speed drifts does not favour one of them."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.session import create_session

NUM_ROUNDS = 30
CALLS_PER_ROUND = 10
MAX_BUSY_RATIO = 2.0
NUM_WARMUP_CALLS = 10
IDENTITY_OPSET, IDENTITY_IR = 18, 8


@dataclass(frozen=True)
class Latency:
    """Time of one call with one image, in microseconds.

    ``median`` is the typical time; ``p10`` (10 % quantile) is the time on a machine without other load.
    """

    median: float
    p10: float


def busy_warning(latencies: Iterable[Latency]) -> str | None:
    """A sentence for figures of a machine with other load; None if medians and 10 % quantiles are near each other."""
    ratio = max(latency.median / latency.p10 for latency in latencies)
    if ratio <= MAX_BUSY_RATIO:
        return None
    return f"The machine was busy (a median is {ratio:.1f} times its 10 % quantile): measure again without other load."


def detector_call(detector: Detector) -> Callable[[], object]:
    """A call that scores one image of the size to which the detector resizes, or of its fixed input size."""
    shape = (1, *(detector.input_size or working_size(detector)), detector.image_channels)
    image = detector.to_model_input(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return lambda: detector.session.run(["score", "is_anomaly"], {"image": image})


def working_size(detector: Detector) -> tuple[int, int]:
    """Height and width to which a detector resizes: the frame of its tiles, or the network's image size."""
    return detector.frame or (detector.image_size, detector.image_size)


def identity_model_call(size: tuple[int, int], image_channels: int) -> Callable[[], object]:
    """A call of a graph that returns its uint8 image: the cost of a call without any computation."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W", image_channels])
        for name in ("image", "same")
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["same"])], "identity", values[:1], values[1:])
    opset = helper.make_opsetid("", IDENTITY_OPSET)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=IDENTITY_IR)
    session = create_session(model.SerializeToString())
    image = np.zeros((1, *size, image_channels), np.uint8)
    return lambda: session.run(["same"], {"image": image})


def measure_latency(calls: Sequence[Callable[[], object]]) -> list[Latency]:
    """Time several functions in turns.

    Returns:
        The latency of each, over 300 calls.
    """
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(NUM_WARMUP_CALLS):
            call()
    for _ in range(NUM_ROUNDS):
        for call, samples in zip(calls, times, strict=True):
            for _ in range(CALLS_PER_ROUND):
                start = time.perf_counter()
                call()
                samples.append((time.perf_counter() - start) * 1e6)
    return [Latency(float(np.median(samples)), float(np.quantile(samples, 0.1))) for samples in times]
