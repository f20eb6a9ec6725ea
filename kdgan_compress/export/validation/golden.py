"""Golden vectors: images with a detector's scores and maps of them, to test it in any language on any device.

The images are synthetic (fixed seed), so no user image is shipped with the file.
"""

import base64
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.export.precisions import find_precision
from kdgan_compress.files import atomic_path, read_arrays
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY

SCHEMA_VERSION = 1
IMAGES_PER_SIZE = 2
MAP_STEP = 8
"""Golden vectors have every 8th value of every 8th row of an anomaly map."""

MAX_BYTES, MAX_ARRAYS = 200_000_000, 100
"""Bounds on a file of golden vectors: those of the largest frame take 120 MB."""

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
        tolerance: Relative difference of scores that another device may show; of maps, relative to the largest value.
        maps: Every 8th value of every 8th row of each image's anomaly map, float32; empty if the detector has none.
    """

    file_sha256: str
    images: list[NDArray[np.uint8]]
    score: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]
    tolerance: float
    maps: list[NDArray[np.float32]] = field(default_factory=list)


def sample_sizes(size: tuple[int, int], input_size: tuple[int, int] | None) -> tuple[tuple[int, int], ...]:
    """Heights and widths of test images: the fixed input size, or the detector's working size and two unusual ones."""
    if input_size is not None:
        return (input_size,)
    height, width = size
    return (size, (height - 3, width + 5), (3 * height + 1, 2 * width))


def sample_images(height: int, width: int, channels: int, number: int = 4) -> NDArray[np.uint8]:
    """Synthetic images with structure on several scales, uint8 (number, H, W, C): integrated noise, fixed seed."""
    generator = np.random.default_rng(height * width)
    waves = np.cumsum(np.cumsum(generator.normal(size=(number, height, width, channels)), 1), 2)
    low, high = waves.min((1, 2, 3), keepdims=True), waves.max((1, 2, 3), keepdims=True)
    return np.asarray((waves - low) / np.maximum(high - low, np.finfo(float).tiny) * 255, dtype=np.uint8)


def make_golden(detector: Detector) -> Golden:
    """Score synthetic images one by one."""
    images = [
        image
        for (height, width), number in _golden_sizes(detector).items()
        for image in sample_images(height, width, detector.image_channels, number)
    ]
    scores = [detector.score(image[None], maps=detector.has_anomaly_map) for image in images]
    return Golden(
        detector.metadata[CHECKSUM_KEY],
        images,
        np.concatenate([each.score for each in scores]),
        np.concatenate([each.is_anomaly for each in scores]),
        find_precision(detector.metadata["precision"]).golden_tolerance,
        [sample_map(each.anomaly_map) for each in scores if each.anomaly_map is not None],
    )


def golden_shapes(detector: Detector) -> list[tuple[int, int, int]]:
    """Height, width and channels of each image that a detector's golden vectors have."""
    sizes = _golden_sizes(detector).items()
    return [(*size, detector.image_channels) for size, number in sizes for _ in range(number)]


def sample_map(anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values (h, w) of a map (1, H, W) that golden vectors have."""
    return anomaly_map[0, ::MAP_STEP, ::MAP_STEP]


def write_golden(npz: Path, as_json: Path, detector: Detector, name: str, golden: Golden | None = None) -> Golden:
    """Write a detector's golden vectors as ``.npz`` for NumPy and as JSON for other languages.

    Args:
        npz: Path of the arrays ``image_0``, …, ``map_0``, …, ``score``, ``is_anomaly``, ``tolerance``, ``file_sha256``.
        as_json: Path of the same as JSON (pixels in base64), with what a program needs to call the detector.
        detector: The loaded detector.
        name: Its file name.
        golden: The vectors; None makes them.
    """
    golden = golden or make_golden(detector)
    arrays: dict[str, Any] = {f"image_{i}": image for i, image in enumerate(golden.images)}
    arrays |= {f"map_{i}": values for i, values in enumerate(golden.maps)}
    arrays |= {name: value for name, value in vars(golden).items() if name not in ("images", "maps")}
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
    for case, values in zip(cases, golden.maps, strict=False):
        case["anomaly_map"] = [[float(f"{value:.7g}") for value in row] for row in values]
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "detector": name,
        "file_sha256": golden.file_sha256,
        "precision": detector.metadata["precision"],
        "input": detector.input,
        "frame": detector.input_size,
        "image_channels": detector.image_channels,
        "image_size": detector.image_size,
        "working_size": detector.frame,
        "map_unit": detector.map_unit,
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
        arrays = read_arrays(path, MAX_BYTES, max_arrays=MAX_ARRAYS)
        return _golden(arrays)
    except FileNotFoundError:
        raise KdganError("The golden vectors of the detector are missing", f"there is no {path}", hint) from None
    except KeyError as error:
        raise KdganError("Golden vectors must be complete", f"{path} has no {error.args[0]}", hint) from None
    except (OSError, ValueError) as error:
        raise KdganError("Golden vectors must be complete", f"{path}: {first_line(error)}", hint) from None


def _golden(arrays: Mapping[str, NDArray[Any]]) -> Golden:
    """The vectors from a file's arrays.

    Raises:
        KeyError: An array is missing.
        ValueError: One has another shape or dtype, or a value that an export does not write.
    """
    expected: dict[str, tuple[str, int]] = {
        "score": ("<f4", 1),
        "is_anomaly": ("|b1", 1),
        "tolerance": ("<f8", 0),
        "file_sha256": ("<U64", 0),
    }
    number = len(arrays["score"]) if arrays["score"].ndim else 0
    expected |= {f"image_{i}": ("|u1", 3) for i in range(number)}
    num_maps = number if "map_0" in arrays else 0
    expected |= {f"map_{i}": ("<f4", 2) for i in range(num_maps)}
    for name, (dtype, ndim) in expected.items():
        array = arrays[name]
        if array.dtype != np.dtype(dtype) or array.ndim != ndim or 0 in array.shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
    golden = Golden(
        str(arrays["file_sha256"]),
        [arrays[f"image_{i}"] for i in range(number)],
        arrays["score"],
        arrays["is_anomaly"],
        float(arrays["tolerance"]),
        [arrays[f"map_{i}"] for i in range(num_maps)],
    )
    if len(golden.is_anomaly) != number or arrays.keys() - expected.keys():
        raise ValueError("its values do not belong together")
    if not (math.isfinite(golden.tolerance) and golden.tolerance > 0):
        raise ValueError("the tolerance is not a finite number above 0")
    if not re.fullmatch("[0-9a-f]{64}", golden.file_sha256):
        raise ValueError("file_sha256 is not a checksum")
    return golden


def _golden_sizes(detector: Detector) -> dict[tuple[int, int], int]:
    """Heights and widths of the images, and how many of each; photos are fewer, since they take much more space."""
    number = IMAGES_PER_SIZE if detector.frame is None else 1
    if detector.frame is None or detector.input_size is not None:
        return dict.fromkeys(sample_sizes((detector.image_size,) * 2, detector.input_size), number)
    height, width = detector.frame
    return {(height // 2 + 3, width // 2 + 5): number, (height * 5 // 4 + 1, width * 3 // 2): number}
