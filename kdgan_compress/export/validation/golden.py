"""Golden vectors: images with the scores that a detector gives them, to test it in any language on any device.

The images are synthetic (fixed seed), so no user image is shipped with the file.
"""

import base64
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.export.precisions import find_precision
from kdgan_compress.files import atomic_path
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY

SCHEMA_VERSION = 1
IMAGES_PER_SIZE = 2
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of all zip entries, so that the same vectors always give the same file."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Test images of one detector file, with its outputs.

    Attributes:
        file_sha256: Checksum of the detector.
        images: n images of several sizes, each uint8 (H, W, C).
        score: (n,) float32.
        is_anomaly: (n,) bool, at the file's threshold.
        tolerance: Relative difference of scores that another device may show.
    """

    file_sha256: str
    images: list[NDArray[np.uint8]]
    score: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]
    tolerance: float


def sample_sizes(side: int, input_size: tuple[int, int] | None) -> tuple[tuple[int, int], ...]:
    """Heights and widths of test images: the fixed input size, or the network's size and two unusual ones."""
    if input_size is not None:
        return (input_size,)
    return ((side, side), (side - 3, side + 5), (3 * side + 1, 2 * side))


def sample_images(height: int, width: int, channels: int, number: int = 4) -> NDArray[np.uint8]:
    """Synthetic images with structure on several scales, uint8 (number, H, W, C): integrated noise, fixed seed."""
    generator = np.random.default_rng(height * width)
    waves = np.cumsum(np.cumsum(generator.normal(size=(number, height, width, channels)), 1), 2)
    low, high = waves.min((1, 2, 3), keepdims=True), waves.max((1, 2, 3), keepdims=True)
    return np.asarray((waves - low) / np.maximum(high - low, np.finfo(float).tiny) * 255, dtype=np.uint8)


def make_golden(detector: Detector) -> Golden:
    """Score synthetic images one by one."""
    channels = detector.image_channels
    sizes = sample_sizes(detector.image_size, detector.input_size)
    images = [image for size in sizes for image in sample_images(*size, channels, IMAGES_PER_SIZE)]
    scores = [detector.score(image[None]) for image in images]
    return Golden(
        detector.metadata[CHECKSUM_KEY],
        images,
        np.concatenate([each.score for each in scores]),
        np.concatenate([each.is_anomaly for each in scores]),
        find_precision(detector.metadata["precision"]).golden_tolerance,
    )


def write_golden(npz: Path, as_json: Path, detector: Detector, name: str, golden: Golden | None = None) -> Golden:
    """Write a detector's golden vectors as ``.npz`` for NumPy and as JSON for other languages.

    Args:
        npz: Path of the arrays ``image_0``, …, ``score``, ``is_anomaly``, ``tolerance``, ``file_sha256``.
        as_json: Path of the same as JSON (pixels in base64), with what a program needs to call the detector.
        detector: The loaded detector.
        name: Its file name.
        golden: The vectors; None makes them.
    """
    golden = golden or make_golden(detector)
    arrays: dict[str, Any] = {f"image_{i}": image for i, image in enumerate(golden.images)}
    arrays |= {name: value for name, value in vars(golden).items() if name != "images"}
    with atomic_path(npz) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy", ZIP_EPOCH), stream.getvalue())
    cases = [
        dict(zip(("height", "width", "channels"), image.shape, strict=True))
        | {"pixels": base64.b64encode(image.tobytes()).decode(), "score": float(score), "is_anomaly": bool(is_anomaly)}
        for image, score, is_anomaly in zip(golden.images, golden.score, golden.is_anomaly, strict=True)
    ]
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "detector": name,
        "file_sha256": golden.file_sha256,
        "precision": detector.metadata["precision"],
        "input": detector.input,
        "frame": detector.input_size,
        "image_channels": detector.image_channels,
        "image_size": detector.image_size,
        "threshold": detector.threshold,
        "threshold_rule": detector.metadata["threshold_rule"],
        "tolerance": golden.tolerance,
        "cases": cases,
    }
    with atomic_path(as_json) as temporary:
        temporary.write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    return golden


def read_golden(path: Path) -> Golden:
    """Read a ``golden.npz``.

    Raises:
        KdganError: The file is missing, truncated or of another kind.
    """
    hint = "Export the model again, which writes its golden vectors too"
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            number = len(arrays["score"])
            return Golden(
                str(arrays["file_sha256"]),
                [arrays[f"image_{i}"] for i in range(number)],
                arrays["score"],
                arrays["is_anomaly"],
                float(arrays["tolerance"]),
            )
    except FileNotFoundError:
        raise KdganError("The golden vectors of the detector are missing", f"there is no {path}", hint) from None
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise KdganError("Golden vectors must be complete", f"{path}: {first_line(error)}", hint) from None
