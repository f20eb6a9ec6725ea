"""Scoring image files, however many: they stream through in batches, and those that can't be read are told."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.detector import Detector

LARGEST_BATCH_BYTES = 1 << 22
"""A batch is no larger, so that photographs go through one by one and don't fill the memory."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class FileScore:
    """One image file: its score and whether that is an anomaly, or what is wrong with the file."""

    path: Path
    score: float | None = None
    is_anomaly: bool | None = None
    error: str | None = None


def score_files(detector: Detector, paths: Iterable[Path], batch: int = 32, threads: int = 1) -> Iterator[FileScore]:
    """Score image files in their order; what is in memory doesn't grow with their number.

    Args:
        detector: Opened.
        paths: Files.
        batch: Neighbours of one size that go through the detector together, ≥ 1.
        threads: Files read at once, ≥ 1.
    """
    waiting: list[tuple[Path, Pixels]] = []
    for path, image in _read_ahead(detector, paths, threads):
        if waiting and (
            isinstance(image, str)
            or image.shape != waiting[0][1].shape
            or len(waiting) == batch
            or (len(waiting) + 1) * image.size > LARGEST_BATCH_BYTES
        ):
            yield from _score(detector, waiting)
            waiting = []
        if isinstance(image, str):
            yield FileScore(path, error=image)
        else:
            waiting.append((path, image))
    if waiting:
        yield from _score(detector, waiting)


def _read_ahead(detector: Detector, paths: Iterable[Path], threads: int) -> Iterator[tuple[Path, Pixels | str]]:
    """Images in their order, or why one can't be read; as many are being read as there are threads."""
    pending: deque[tuple[Path, Future[Pixels | str]]] = deque()
    with ThreadPoolExecutor(threads) as readers:
        for path in paths:
            pending.append((path, readers.submit(_read, detector, path)))
            if len(pending) > threads:
                first, image = pending.popleft()
                yield first, image.result()
        for first, image in pending:
            yield first, image.result()


def _read(detector: Detector, path: Path) -> Pixels | str:
    try:
        return detector.read(path)
    except KdganError as error:
        return str(error)


def _score(detector: Detector, images: list[tuple[Path, Pixels]]) -> Iterator[FileScore]:
    scores = detector.score(np.stack([pixels for _, pixels in images]))
    for (path, _), score, is_anomaly in zip(images, scores.score, scores.is_anomaly, strict=True):
        yield FileScore(path, float(score), bool(is_anomaly))
