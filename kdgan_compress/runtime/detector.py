"""An exported detector file and its scores; imports numpy, Pillow and onnxruntime, never torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.images import read_image

SCHEMA_VERSION = 1
LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.InvalidArgument,
)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores (N,) float32, higher is more novel, and whether each is above the threshold (N,) bool."""

    score: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]


class Detector:
    """One ``.onnx`` file that ``kdgan-compress export`` wrote.

    Args:
        path: The file.
        threads: CPU threads of one call, ≥ 1; narrow students are fastest with 1.
        threshold: Scores above it are anomalies; None for the file's own.

    Raises:
        KdganError: The file is missing, cut short, no detector of this package or of a newer schema.
    """

    def __init__(self, path: str | Path, threads: int = 1, threshold: float | None = None) -> None:
        path = Path(path)
        fix = "Give a file that `kdgan-compress export` wrote"
        if not path.is_file():
            raise KdganError("The detector must be a file", f"found none at {path}", fix)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        except (*LOAD_ERRORS, ValueError) as error:
            raise KdganError("The detector must be a whole ONNX file", f"{path}: {first_line(error)}", fix) from None
        try:
            version = int(self.metadata["schema_version"])
            self.image_channels = int(self.metadata["image_channels"])
            self.image_size = int(self.metadata["image_size"])
            self.threshold = float(self.metadata["threshold"]) if threshold is None else threshold
        except (KeyError, ValueError) as error:
            found = f"{path} has no usable {first_line(error)}"
            raise KdganError("The detector must carry this package's metadata", found, fix) from None
        if version > SCHEMA_VERSION:
            raise KdganError(
                f"The detector must be of schema {SCHEMA_VERSION} or older",
                f"{path} has schema {version}",
                "Upgrade kdgan-compress",
            )

    def score(self, images: NDArray[np.uint8]) -> Scores:
        """Score images (N, H, W, C) uint8 of any one size; C is the detector's ``image_channels`` (RGB order).

        Raises:
            KdganError: Another type, rank or channel count.
        """
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] != self.image_channels
            or 0 in images.shape[1:]
        ):
            raise KdganError(
                f"Images must be uint8 (N, H, W, {self.image_channels})",
                f"got {images.dtype} {images.shape}",
                "Convert them: grey for 1 channel, RGB for 3",
            )
        feed = {"image": images, "threshold": np.asarray(self.threshold, dtype=np.float32)}
        score, is_anomaly = self._session.run(["score", "is_anomaly"], feed)
        return Scores(np.asarray(score), np.asarray(is_anomaly))

    def score_file(self, path: str | Path) -> tuple[float, bool]:
        """Score one image file: its score and whether that is an anomaly.

        Raises:
            KdganError: The file can't be read as an image.
        """
        scores = self.score(read_image(Path(path), self.image_channels)[None])
        return float(scores.score[0]), bool(scores.is_anomaly[0])
