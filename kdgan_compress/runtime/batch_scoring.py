"""Score any number of image files: they stream through the detector in batches; unreadable files are reported."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.detector import Detector

MAX_BATCH_BYTES = 1 << 22
"""Large photographs are scored one at a time, so that a batch does not fill the memory."""

MAX_READERS = 64
"""Files that are read at the same time, whatever ``threads`` says: each takes memory."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class FileScore:
    """The result for one image file: score and decision, or the error message if it cannot be read or scored.

    Attributes:
        path: The file.
        score: Its score; None after an error.
        is_anomaly: Whether the score is above the threshold.
        error: The error message; None if there is a score.
        relative: Score divided by the threshold: above 1 is an anomaly. None if the threshold is not positive.
        pixels: The image as the detector got it, uint8 (H, W, C); None if maps were not requested.
        anomaly_map: Its anomaly map as in ``Scores``, without N; None if maps were not requested.
    """

    path: Path
    score: float | None = None
    is_anomaly: bool | None = None
    error: str | None = None
    relative: float | None = None
    pixels: Pixels | None = field(default=None, repr=False, compare=False)
    anomaly_map: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


def score_files(
    detector: Detector, paths: Iterable[Path], batch: int = 32, threads: int = 1, maps: bool = False
) -> Iterator[FileScore]:
    """Score image files in the given order; memory use does not grow with their number.

    Args:
        detector: The loaded detector.
        paths: Image files.
        batch: Maximum number of consecutive images of one size that are scored together, ≥ 1.
        threads: Number of files that are read at the same time, ≥ 1.
        maps: Also return each image's pixels and anomaly map.

    Raises:
        KdganError: Maps are requested and the detector has none.
    """
    if maps and not detector.has_anomaly_map:
        found = f"its outputs are {', '.join(name for name, _, _ in detector.outputs)}"
        raise KdganError("The detector has no anomaly map", found, "Export it with --anomaly-map")
    if detector.frame is not None:
        batch = 1  # a photo's tiles are a batch
    return _score_in_batches(detector, _read_ahead(detector, paths, min(threads, MAX_READERS)), batch, maps)


def _score_in_batches(
    detector: Detector, images: Iterable[tuple[Path, Pixels | str]], batch: int, maps: bool
) -> Iterator[FileScore]:
    pending: list[tuple[Path, Pixels]] = []
    for path, image in images:
        if pending and (
            isinstance(image, str)
            or image.shape != pending[0][1].shape
            or len(pending) == batch
            or (len(pending) + 1) * image.size > MAX_BATCH_BYTES
        ):
            yield from _score_batch(detector, pending, maps)
            pending = []
        if isinstance(image, str):
            yield FileScore(path, error=image)
        else:
            pending.append((path, image))
    if pending:
        yield from _score_batch(detector, pending, maps)


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


def _score_batch(detector: Detector, images: list[tuple[Path, Pixels]], maps: bool) -> Iterator[FileScore]:
    try:
        scores = detector.score(np.stack([pixels for _, pixels in images]), maps)
    except KdganError as error:
        if len(images) == 1:
            yield FileScore(images[0][0], error=str(error))
        else:  # find the image that the detector refuses
            for each in images:
                yield from _score_batch(detector, [each], maps)
        return
    for index, (path, pixels) in enumerate(images):
        yield FileScore(
            path,
            float(scores.score[index]),
            bool(scores.is_anomaly[index]),
            relative=None if scores.relative is None else float(scores.relative[index]),
            pixels=pixels if maps else None,
            anomaly_map=None if scores.anomaly_map is None else scores.anomaly_map[index],
        )
