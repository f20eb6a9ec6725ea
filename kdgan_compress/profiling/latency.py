"""Measured latency of detector files, in turns, so that a machine whose speed drifts does not favour one of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdgan_compress.runtime import Detector

ROUNDS = 30
CALLS_PER_ROUND = 10
WARMUP_CALLS = 10


@dataclass(frozen=True)
class Latency:
    """Time of one call with one image, in microseconds: ``p10`` is what the machine can do, ``median`` what it did."""

    median: float
    p10: float


def measure_latency(detectors: Sequence[Detector], image_sizes: Sequence[int]) -> list[Latency]:
    """Time detectors on one uint8 image each (batch 1), round robin, one thread if they were opened so.

    Args:
        detectors: Opened detector files.
        image_sizes: Side of the square image that each is given, pixels.

    Returns:
        One figure a detector, over 300 calls.
    """
    generator = np.random.default_rng(0)
    images = [
        generator.integers(0, 256, (1, size, size, detector.image_channels), dtype=np.uint8)
        for detector, size in zip(detectors, image_sizes, strict=True)
    ]
    times: list[list[float]] = [[] for _ in detectors]
    for detector, image in zip(detectors, images, strict=True):
        for _ in range(WARMUP_CALLS):
            detector.score(image)
    for _ in range(ROUNDS):
        for detector, image, own in zip(detectors, images, times, strict=True):
            for _ in range(CALLS_PER_ROUND):
                start = time.perf_counter()
                detector.score(image)
                own.append((time.perf_counter() - start) * 1e6)
    return [Latency(float(np.median(own)), float(np.quantile(own, 0.1))) for own in times]
