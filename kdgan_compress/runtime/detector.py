"""Load an exported detector file and score images with it; imports numpy, Pillow and onnxruntime, never torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.runtime.checksum import CHECKSUM_KEY, is_intact, read_checksum
from kdgan_compress.runtime.images import read_image
from kdgan_compress.runtime.session import create_session

SCHEMA_VERSION = 2
EXPORT_HINT = "Give a file that `kdgan-compress export` wrote"
MAP_OUTPUTS = {"reconstruction": "reconstruction", "anomaly_map": "anomaly_map", "error_map": "anomaly_map"}
"""Optional outputs of a file and their names in ``Scores``; older files call the anomaly map ``error_map``."""
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(bool)": "bool"}


@dataclass(frozen=True, eq=False)
class Scores:
    """A detector's outputs for N images.

    Attributes:
        score: (N,) float32, higher is more anomalous.
        is_anomaly: (N,) bool, whether each score is above the threshold.
        reconstruction: The generator's reconstruction: uint8 (N, S, S, C), or float32 (N, C, S, S) from 0 to 1 if the
            detector takes floats. None if not requested.
        anomaly_map: float32 (N, S, S) from 0 to 1: absolute difference of image and reconstruction, averaged over the
            channels. None if not requested.
    """

    score: NDArray[np.float32]
    is_anomaly: NDArray[np.bool_]
    reconstruction: NDArray[np.generic] | None = None
    anomaly_map: NDArray[np.float32] | None = None


class Detector:
    """An ``.onnx`` file that ``kdgan-compress export`` wrote.

    Args:
        path: The file.
        threads: CPU threads of one call, ≥ 1; narrow students are fastest with 1.
        threshold: Scores above it are anomalies; None for the threshold stored in the file.

    Attributes:
        metadata: The file's metadata: family, channels, norm, threshold and its rule, counts, checksums.
        image_channels: 1 (grey) or 3 (RGB).
        image_size: Side of the square image that the network processes, in pixels.
        input: Input type of the file: ``"uint8"`` (N, H, W, C), or ``"float"`` (N, C, H, W) from 0 to 1.
        input_size: Height and width that images need to have; None if any size is accepted.
        threshold: Scores above it are anomalies.
        image_shape: Shape of the file's input, as text.
        outputs: Name, dtype and shape of each output, as text.
        session: The ONNX Runtime session.

    Raises:
        KdganError: The file is missing, empty, truncated, modified, or not a detector of this schema.

    Example:
        >>> detector = Detector("student.onnx")  # doctest: +SKIP
        >>> score, is_anomaly = detector.score_file("photo.jpg")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, threads: int = 1, threshold: float | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise KdganError("The detector must be a file", f"there is no file {path}", EXPORT_HINT)
        content = path.read_bytes()
        problem = "The detector must be a complete ONNX file"
        if not content:
            raise KdganError(problem, f"{path} is empty", EXPORT_HINT)
        checksum = read_checksum(content)
        found = f"{path} was changed after its export"
        modified = KdganError("The detector file must be unmodified", found, "Export the model again")
        if checksum is not None and not is_intact(content, checksum):
            raise modified
        try:
            self.session = create_session(content, threads)
            self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        except ValueError as error:  # a KdganError, or metadata that is not UTF-8
            reason = error.found if isinstance(error, KdganError) else first_line(error)
            raise KdganError(problem, f"{path}: {reason}", EXPORT_HINT) from None
        self._read_metadata(path, threshold)
        if checksum is None or self.metadata.get(CHECKSUM_KEY) != checksum:
            raise modified
        (image,) = self.session.get_inputs()
        self.input = "uint8" if image.type == "tensor(uint8)" else "float"
        self._batch_is_1 = image.shape[0] == 1
        height, width = image.shape[1:3] if self.input == "uint8" else image.shape[2:4]
        self.input_size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self.image_shape = _shape_text(image.shape)
        self.outputs = [(each.name, DTYPES[each.type], _shape_text(each.shape)) for each in self.session.get_outputs()]

    def _read_metadata(self, path: Path, threshold: float | None) -> None:
        try:
            version = int(self.metadata["schema_version"])
            self.image_channels = int(self.metadata["image_channels"])
            self.image_size = int(self.metadata["image_size"])
            self.threshold = float(self.metadata["threshold"]) if threshold is None else threshold
        except (KeyError, ValueError) as error:
            found = f"{path} has no valid {error.args[0]}"
            raise KdganError("The detector needs this package's metadata", found, EXPORT_HINT) from None
        if version != SCHEMA_VERSION:
            hint = "Upgrade kdgan-compress" if version > SCHEMA_VERSION else "Export the model again"
            raise KdganError(f"The detector needs schema {SCHEMA_VERSION}", f"{path} has schema {version}", hint)

    def score(self, images: NDArray[np.uint8], maps: bool = False) -> Scores:
        """Score images.

        Args:
            images: uint8 (N, H, W, C) of one size (``input_size`` if the detector has one); C is ``image_channels``,
                RGB order.
            maps: Also return the reconstructions and anomaly maps that the file has.

        Raises:
            KdganError: Wrong dtype, rank, number of channels or size, or the file has no maps.
        """
        height, width = self.input_size or ("H", "W")
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] != self.image_channels
            or 0 in images.shape[0 if self._batch_is_1 else 1 :]
            or (self.input_size is not None and images.shape[1:3] != self.input_size)
        ):
            raise KdganError(
                f"Images must be uint8 (N, {height}, {width}, {self.image_channels})",
                f"got {images.dtype} {images.shape}",
                "Convert them: grey for 1 channel, RGB for 3" + ("" if self.input_size is None else ", of that size"),
            )
        names = {"score": "score", "is_anomaly": "is_anomaly"}
        if maps:
            outputs = [name for name, _, _ in self.outputs]
            names |= {name: MAP_OUTPUTS[name] for name in outputs if name in MAP_OUTPUTS}
            if len(names) == 2:
                hint = "Export it with --reconstruction or --anomaly-map"
                raise KdganError("The detector has no maps", f"its outputs are {', '.join(outputs)}", hint)
        inputs = self.to_model_input(images)
        threshold = np.asarray(self.threshold, dtype=np.float32)
        batches = [inputs[i : i + 1] for i in range(len(inputs))] if self._batch_is_1 else [inputs]
        results = [self.session.run(list(names), {"image": batch, "threshold": threshold}) for batch in batches]
        arrays = [np.concatenate(parts) for parts in zip(*results, strict=True)]
        return Scores(**dict(zip(names.values(), arrays, strict=True)))

    def to_model_input(self, images: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Convert images (N, H, W, C) uint8 to the file's input type: unchanged, or floats (N, C, H, W) in [0, 1]."""
        return images if self.input == "uint8" else (images.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)

    def score_file(self, path: str | Path) -> tuple[float, bool]:
        """Score one image file; returns the score and whether it is an anomaly.

        Raises:
            KdganError: The file cannot be read as an image.
        """
        scores = self.score(self.read(path)[None])
        return float(scores.score[0]), bool(scores.is_anomaly[0])

    def read(self, path: str | Path) -> NDArray[np.uint8]:
        """Read an image file as pixels (H, W, C), resized to ``input_size`` if the detector has one.

        Raises:
            KdganError: The file cannot be read as an image.
        """
        return read_image(Path(path), self.image_channels, self.input_size)


def _shape_text(dimensions: list[int | str]) -> str:
    return f"({', '.join(map(str, dimensions))})"
