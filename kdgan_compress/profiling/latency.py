"""Measured latency of detectors, in turns, so that a machine whose speed drifts does not favour one of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from kdgan_compress.runtime import Detector

ROUNDS = 30
CALLS_PER_ROUND = 10
WARMUP_CALLS = 10
IDENTITY_OPSET, IDENTITY_IR = 18, 8


@dataclass(frozen=True)
class Latency:
    """Time of one call with one image, in microseconds: ``p10`` is what the machine can do, ``median`` what it did."""

    median: float
    p10: float


def scoring(detector: Detector) -> Callable[[], object]:
    """One image of the network's size (or the detector's frame) through ONNX Runtime, from pixels to verdict."""
    height, width = detector.frame or (detector.image_size, detector.image_size)
    shape = (1, height, width, detector.image_channels)
    image = detector.as_taken(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return lambda: detector.session.run(["score", "is_anomaly"], {"image": image})


def passing_through(image_size: int, image_channels: int) -> Callable[[], object]:
    """One uint8 image through a graph that gives it out as it is: what a call costs before anything is computed."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W", image_channels])
        for name in ("image", "same")
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["same"])], "identity", values[:1], values[1:])
    opset = helper.make_opsetid("", IDENTITY_OPSET)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=IDENTITY_IR)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    image = np.zeros((1, image_size, image_size, image_channels), np.uint8)
    return lambda: session.run(["same"], {"image": image})


def measure_latency(calls: Sequence[Callable[[], object]]) -> list[Latency]:
    """Time calls, round robin.

    Returns:
        One figure each, over 300 calls.
    """
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        for _ in range(WARMUP_CALLS):
            call()
    for _ in range(ROUNDS):
        for call, own in zip(calls, times, strict=True):
            for _ in range(CALLS_PER_ROUND):
                start = time.perf_counter()
                call()
                own.append((time.perf_counter() - start) * 1e6)
    return [Latency(float(np.median(own)), float(np.quantile(own, 0.1))) for own in times]
