"""An exported detector file and its scores; imports numpy, Pillow and onnxruntime, never torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.runtime.images import read_image
from kdgan_compress.runtime.seal import SEAL_KEY, find_seal, is_intact

SCHEMA_VERSION = 2
LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.InvalidArgument,
)
FIX = "Give a file that `kdgan-compress export` wrote"
MAPS = ("reconstruction", "error_map")
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(bool)": "bool"}


@dataclass(frozen=True, eq=False)
class Scores:
    """What a detector says of N images.

    Attributes:
        score: (N,) float32, higher is more novel.
        is_anomaly: (N,) bool, whether each is above the threshold.
        reconstruction: uint8 (N, S, S, C), what the image would look like if it were normal; of a detector with float
            input float32 (N, C, S, S), 0 to 1. None if not asked for.
        error_map: float32 (N, S, S), 0 to 1: where they differ, as a mean over the channels. None if not asked for.
    """

    score: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]
    reconstruction: NDArray[np.generic] | None = None
    error_map: NDArray[np.float32] | None = None


class Detector:
    """One ``.onnx`` file that ``kdgan-compress export`` wrote.

    Args:
        path: The file.
        threads: CPU threads of one call, ≥ 1; narrow students are fastest with 1.
        threshold: Scores above it are anomalies; None for the file's own.

    Attributes:
        metadata: What the file says of itself: family, channels, norm, threshold and its rule, counts, hashes.
        image_channels: 1 (grey) or 3 (RGB).
        image_size: Side of the square that the network sees, pixels.
        input: What the file itself takes: ``"uint8"`` (N, H, W, C), or ``"float"`` (N, C, H, W) from 0 to 1.
        frame: The one height and width that images must have; None for any.
        threshold: Scores above it are anomalies.
        image_shape: Of the file's input, in words.
        outputs: Name, type and shape of each, in words.
        session: ONNX Runtime's, for what this class has no method for.

    Raises:
        KdganError: The file is missing, empty, cut short, changed, no detector of this package or of another schema.
    """

    def __init__(self, path: str | Path, threads: int = 1, threshold: float | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise KdganError("The detector must be a file", f"found none at {path}", FIX)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        content = path.read_bytes()
        if not content:
            raise KdganError("The detector must be a whole ONNX file", f"{path} is empty", FIX)
        digest = find_seal(content)
        if digest is not None and not is_intact(content, digest):
            raise _changed(path)
        try:
            self.session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        except (*LOAD_ERRORS, ValueError) as error:
            raise KdganError("The detector must be a whole ONNX file", f"{path}: {first_line(error)}", FIX) from None
        try:
            version = int(self.metadata["schema_version"])
            self.image_channels = int(self.metadata["image_channels"])
            self.image_size = int(self.metadata["image_size"])
            self.threshold = float(self.metadata["threshold"]) if threshold is None else threshold
        except (KeyError, ValueError) as error:
            found = f"{path} has no usable {first_line(error)}"
            raise KdganError("The detector must carry this package's metadata", found, FIX) from None
        if version != SCHEMA_VERSION:
            fix = "Upgrade kdgan-compress" if version > SCHEMA_VERSION else "Export the model again"
            raise KdganError(f"The detector must be of schema {SCHEMA_VERSION}", f"{path} has schema {version}", fix)
        if digest is None or self.metadata.get(SEAL_KEY) != digest:
            raise _changed(path)
        (image,) = self.session.get_inputs()
        self.input = "uint8" if image.type == "tensor(uint8)" else "float"
        self._takes_one = image.shape[0] == 1
        height, width = image.shape[1:3] if self.input == "uint8" else image.shape[2:4]
        self.frame = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self.image_shape = _shape(image.shape)
        self.outputs = [
            (output.name, TYPES[output.type], _shape(output.shape)) for output in self.session.get_outputs()
        ]

    def score(self, images: NDArray[np.uint8], maps: bool = False) -> Scores:
        """Score images (N, H, W, C) uint8 of any one size; C is the detector's ``image_channels`` (RGB order).

        Args:
            images: Of the detector's frame, where it has one.
            maps: Give reconstructions and error maps too, if the file has them.

        Raises:
            KdganError: Another type, rank, channel count or frame, or a file without maps.
        """
        wanted = self.frame or ("H", "W")
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] != self.image_channels
            or 0 in images.shape[0 if self._takes_one else 1 :]
            or (self.frame is not None and images.shape[1:3] != self.frame)
        ):
            raise KdganError(
                f"Images must be uint8 (N, {wanted[0]}, {wanted[1]}, {self.image_channels})",
                f"got {images.dtype} {images.shape}",
                "Convert them: grey for 1 channel, RGB for 3" + ("" if self.frame is None else ", of that size"),
            )
        names = ["score", "is_anomaly", *(name for name in MAPS if maps and name in self._names)]
        if maps and len(names) == 2:
            raise KdganError(
                "The detector must have maps to give them",
                f"it has {', '.join(self._names)}",
                "Export it with --reconstruction or --error-map",
            )
        given = self.as_taken(images)
        threshold = np.asarray(self.threshold, dtype=np.float32)
        batches = [given[i : i + 1] for i in range(len(given))] if self._takes_one else [given]
        parts = [self.session.run(names, {"image": batch, "threshold": threshold}) for batch in batches]
        return Scores(
            **{name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}
        )

    def as_taken(self, images: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Images (N, H, W, C) uint8 as the file's own input has them: floats (N, C, H, W) where it takes those."""
        return images if self.input == "uint8" else (images.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)

    @property
    def _names(self) -> list[str]:
        return [name for name, _, _ in self.outputs]

    def score_file(self, path: str | Path) -> tuple[float, bool]:
        """Score one image file: its score and whether that is an anomaly.

        Raises:
            KdganError: The file can't be read as an image.
        """
        scores = self.score(self.read(path)[None])
        return float(scores.score[0]), bool(scores.is_anomaly[0])

    def read(self, path: str | Path) -> NDArray[np.uint8]:
        """An image file's pixels (H, W, C) as this detector takes them, brought to its frame where it has one.

        Raises:
            KdganError: The file can't be read as an image.
        """
        return read_image(Path(path), self.image_channels, self.frame)


def _shape(dimensions: list[int | str]) -> str:
    return f"({', '.join(map(str, dimensions))})"


def _changed(path: Path) -> KdganError:
    found = f"{path} was changed after its export: its hash is another"
    return KdganError("The detector must be as it was written", found, "Export the model again")
