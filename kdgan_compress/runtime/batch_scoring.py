"""Score any number of image files: they stream through the detector in batches; unreadable files are reported."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.detector import Detector

MAX_BATCH_BYTES = 1 << 22
"""Large photographs are scored one at a time, so that a batch does not fill the memory."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class FileScore:
    """The result for one image file: score and decision, or the error message if it cannot be read."""

    path: Path
    score: float | None = None
    is_anomaly: bool | None = None
    error: str | None = None


def score_files(detector: Detector, paths: Iterable[Path], batch: int = 32, threads: int = 1) -> Iterator[FileScore]:
    """Score image files in the given order; memory use does not grow with their number.

    Args:
        detector: The loaded detector.
        paths: Image files.
        batch: Maximum number of consecutive images of one size that are scored together, ≥ 1.
        threads: Number of files that are read at the same time, ≥ 1.
    """
    pending: list[tuple[Path, Pixels]] = []
    for path, image in _read_ahead(detector, paths, threads):
        if pending and (
            isinstance(image, str)
            or image.shape != pending[0][1].shape
            or len(pending) == batch
            or (len(pending) + 1) * image.size > MAX_BATCH_BYTES
        ):
            yield from _score_batch(detector, pending)
            pending = []
        if isinstance(image, str):
            yield FileScore(path, error=image)
        else:
            pending.append((path, image))
    if pending:
        yield from _score_batch(detector, pending)


def _read_ahead(detector: Detector, paths: Iterable[Path], threads: int) -> Iterator[tuple[Path, Pixels | str]]:
    """Images in order, or the message why one cannot be read; at most ``threads`` files are read ahead."""
    futures: deque[tuple[Path, Future[Pixels | str]]] = deque()
    with ThreadPoolExecutor(threads) as readers:
        for path in paths:
            futures.append((path, readers.submit(_read, detector, path)))
            if len(futures) > threads:
                first, image = futures.popleft()
                yield first, image.result()
        for first, image in futures:
            yield first, image.result()


def _read(detector: Detector, path: Path) -> Pixels | str:
    try:
        return detector.read(path)
    except KdganError as error:
        return str(error)


def _score_batch(detector: Detector, images: list[tuple[Path, Pixels]]) -> Iterator[FileScore]:
    scores = detector.score(np.stack([pixels for _, pixels in images]))
    for (path, _), score, is_anomaly in zip(images, scores.score, scores.is_anomaly, strict=True):
        yield FileScore(path, float(score), bool(is_anomaly))
