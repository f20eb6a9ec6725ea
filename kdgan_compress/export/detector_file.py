"""Writing a detector: the graph, its metadata, and a check against torch before the file appears."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from kdgan_compress.errors import KdganError
from kdgan_compress.export.graph import OPSET, detector_graph
from kdgan_compress.gans import ImageFormat, anomaly_score, to_network_range
from kdgan_compress.profiling import count
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.detector import SCHEMA_VERSION
from kdgan_compress.storage import atomic_path

PARITY_TOLERANCE = 1e-4
PARITY_IMAGES_A_SIZE = 4
SMALLEST_SCORE = 1e-6
"""Below it a difference counts as that of a score of this size."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file.
        precision: Of weights and arithmetic: ``fp32``.
        size_bytes: Of the whole file.
        opset: ONNX operator set, as read back from the file.
        threshold: Default of the input of that name.
        parity_max_rel: Largest relative difference of scores between torch and ONNX Runtime.
    """

    path: str
    precision: str
    size_bytes: int
    opset: int
    threshold: float
    parity_max_rel: float


def write_detector(
    path: Path, generator: nn.Module, image_format: ImageFormat, threshold: float, threshold_rule: str
) -> ExportReport:
    """Write one fp32 ``.onnx`` file that scores uint8 images (N, H, W, C) of any size.

    The file appears only after ONNX Runtime has loaded it and its scores agree with torch's on images of several sizes.

    Args:
        path: Where to.
        generator: In evaluation mode, with ``anomaly_score``.
        image_format: Of the generator; an ``Architecture`` leaves its whole description in the file.
        threshold: Score above which an image is an anomaly.
        threshold_rule: How it was found, in words.

    Raises:
        KdganError: The path can't be written, or the scores differ by more than 1e-4 relative.
    """
    model = detector_graph(generator.eval(), image_format, threshold)
    counts = count(generator, image_format)
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        **image_format.describe(),
        "preprocessing": "antialiased bilinear resize, x / 127.5 - 1",
        "precision": "fp32",
        "threshold": repr(float(threshold)),
        "threshold_rule": threshold_rule,
        "num_params": str(counts.num_params),
        "conv_macs": str(counts.conv_macs),
        "fvcore_flops": str(counts.fvcore_flops),
        "weights_sha256": weights_sha256(generator),
        "versions": f"kdgan-compress {version('kdgan-compress')}, torch {torch.__version__}, onnx {onnx.__version__}",
    }
    onnx.helper.set_model_props(model, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        difference = parity(Detector(temporary), generator, image_format)
        if not difference <= PARITY_TOLERANCE:
            raise KdganError(
                f"Scores of torch and ONNX Runtime must agree to {PARITY_TOLERANCE:g} relative",
                f"they differ by {difference:.2g}",
                "Please report this with the versions of torch and onnxruntime; no file was written",
            )
        (written,) = (opset.version for opset in onnx.load(temporary).opset_import if opset.domain == "")
        if written != OPSET:
            raise KdganError(f"The file must be of opset {OPSET}", f"got {written}", "Check the version of onnx")
    return ExportReport(str(path), "fp32", path.stat().st_size, written, threshold, difference)


def parity(detector: Detector, generator: nn.Module, image_format: ImageFormat) -> float:
    """Largest relative difference of scores between an exported detector and torch, over images of several sizes."""
    size = image_format.image_size
    differences = []
    for height, width in ((size, size), (size - 3, size + 5), (3 * size + 1, 2 * size)):
        images = _test_images(height, width, image_format.image_channels)
        chw = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            resized = interpolate(chw, (size, size), mode="bilinear", antialias=True, align_corners=False)
            expected = anomaly_score(generator, to_network_range(resized)).numpy()
        scale = np.maximum(np.abs(expected), SMALLEST_SCORE)
        differences.append(np.abs(detector.score(images).score - expected) / scale)
    return float(np.max(differences))


def weights_sha256(generator: nn.Module) -> str:
    """A hash of all weights and buffers, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _test_images(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Images with structure on several scales: noise whose spectrum falls, made from a fixed seed."""
    generator = np.random.default_rng(height * width)
    waves = np.cumsum(np.cumsum(generator.normal(size=(PARITY_IMAGES_A_SIZE, height, width, channels)), 1), 2)
    low, high = waves.min((1, 2, 3), keepdims=True), waves.max((1, 2, 3), keepdims=True)
    return np.asarray((waves - low) / (high - low) * 255, dtype=np.uint8)
