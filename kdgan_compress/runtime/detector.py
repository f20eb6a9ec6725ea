"""Load an exported detector file and score images with it; imports numpy, Pillow and onnxruntime, never torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import read_bytes
from kdgan_compress.runtime.checksum import CHECKSUM_KEY, is_intact, read_checksum
from kdgan_compress.runtime.images import read_image
from kdgan_compress.runtime.model_check import check_model
from kdgan_compress.runtime.onnx_file import has_external_data
from kdgan_compress.runtime.scores import REQUIRED_OUTPUTS, Scores, make_scores
from kdgan_compress.runtime.session import create_session, onnxruntime, run_session, usable_threads

SCHEMA_VERSION = 2
MAX_FILE_BYTES = 200_000_000
MAX_SIDE, MAX_FRAME_PIXELS = 16_384, 100_000_000
"""Of the images that a file resizes to."""

EXPORT_HINT = "Give a file that `kdgan-compress export` wrote"
MAP_OUTPUTS = {"reconstruction": "reconstruction", "anomaly_map": "anomaly_map", "error_map": "anomaly_map"}
"""Optional outputs of a file and their names in ``Scores``; older files call the anomaly map ``error_map``."""
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(bool)": "bool"}
MAX_THRESHOLD = float(np.finfo(np.float32).max)

MIN_NEAR = 128
"""Height and width that photos are read for if the file resizes to fewer pixels, so that they stay fit to look at."""


class Detector:
    """An ``.onnx`` file that ``kdgan-compress export`` wrote. It can be pickled; the copy loads the file again.

    Args:
        path: The file.
        threads: CPU threads of one call, ≥ 1, at most one per processor; narrow students are fastest with 1.
        threshold: Scores above it are anomalies; None for the threshold stored in the file.

    Attributes:
        metadata: The file's metadata: family, channels, norm, threshold and its rule, counts, checksums.
        image_channels: 1 (grey) or 3 (RGB).
        image_size: Side of the square image that the network processes, in pixels; of a tile if there is a frame.
        frame: Height and width to which the file resizes every photo before it cuts it into tiles; None if the file
            resizes to a square of ``image_size``.
        map_unit: ``"score"`` if the anomaly map is in units of the score, so that the threshold applies to it.
        input: Input type of the file: ``"uint8"`` (N, H, W, C), or ``"float"`` (N, C, H, W) from 0 to 1.
        input_size: Height and width that images need to have; None if any size is accepted.
        threshold: Scores above it are anomalies.
        image_shape: Shape of the file's input, as text.
        outputs: Name, dtype and shape of each output, as text.
        session: The ONNX Runtime session.

    Raises:
        KdganError: The file is missing, empty, truncated, modified, or not a detector of this schema; or the threshold
            is not a finite number.

    Example:
        >>> detector = Detector("student.onnx")  # doctest: +SKIP
        >>> score, is_anomaly = detector.score_file("photo.jpg")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, threads: int = 1, threshold: float | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise KdganError("The detector must be a file", f"there is no file {path}", EXPORT_HINT)
        try:
            content = read_bytes(path, MAX_FILE_BYTES)
        except (OSError, ValueError) as error:
            raise KdganError("The detector must be readable", f"{path}: {first_line(error)}", EXPORT_HINT) from None
        checksum = read_checksum(content)
        found = f"{path} was changed after its export"
        modified = KdganError("The detector file must be unmodified", found, "Export the model again")
        if checksum is not None and not is_intact(content, checksum):
            raise modified
        self.session, self.metadata = _load(content, path, usable_threads(threads))
        self._read_metadata(path, threshold)
        if checksum is None or self.metadata.get(CHECKSUM_KEY) != checksum:
            raise modified
        self._reload = (path.absolute(), threads, threshold, checksum)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        dtypes = {each.name: DTYPES.get(each.type, each.type) for each in outputs}
        is_export = dtypes.items() >= REQUIRED_OUTPUTS.items() and len(inputs) == 1
        if not is_export or DTYPES.get(inputs[0].type) not in ("uint8", "float32") or len(inputs[0].shape) != 4:
            found = f"{path} has {_interface_text(inputs)} and returns {_interface_text(outputs)}"
            raise KdganError("The detector needs the inputs and outputs of an export", found, EXPORT_HINT)
        (image,) = inputs
        self.input = "uint8" if image.type == "tensor(uint8)" else "float"
        self._batch_is_1 = image.shape[0] == 1
        height, width = image.shape[1:3] if self.input == "uint8" else image.shape[2:4]
        self.input_size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self.image_shape = _shape_text(image.shape)
        self.outputs = [(each.name, dtypes[each.name], _shape_text(each.shape)) for each in outputs]

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _load_again, self._reload

    @property
    def has_anomaly_map(self) -> bool:
        """Whether the file has an anomaly map."""
        return any(MAP_OUTPUTS.get(name) == "anomaly_map" for name, _, _ in self.outputs)

    def _read_metadata(self, path: Path, threshold: float | None) -> None:
        metadata = self.metadata
        try:
            version = int(metadata["schema_version"])
            self.image_channels = int(metadata["image_channels"])
            self.image_size = int(metadata["image_size"])
            self.frame = _read_frame(metadata)
            if not 1 <= self.image_size <= MAX_SIDE or self.image_channels not in (1, 3):
                raise ValueError("image size or channels")
            stored = float(metadata["threshold"])
        except (KeyError, ValueError) as error:
            found = f"{path} has no valid {error.args[0]}"
            raise KdganError("The detector needs this package's metadata", found, EXPORT_HINT) from None
        if version != SCHEMA_VERSION:
            hint = "Upgrade kdgan-compress" if version > SCHEMA_VERSION else "Export the model again"
            raise KdganError(f"The detector needs schema {SCHEMA_VERSION}", f"{path} has schema {version}", hint)
        self.threshold = stored if threshold is None else float(threshold)
        check_threshold(self.threshold, str(path) if threshold is None else None)
        self.map_unit = metadata.get("map_unit")

    def score(self, images: NDArray[np.uint8], maps: bool = False) -> Scores:
        """Score images.

        Args:
            images: uint8 (N, H, W, C) of one size (``input_size`` if the detector has one); C is ``image_channels``,
                RGB order.
            maps: Also return the reconstructions and anomaly maps that the file has.

        Raises:
            KdganError: Wrong dtype, rank, number of channels or size, or the file has no maps, or it does not give one
                number per image.
        """
        self._check_images(images)
        names = {name: name for name in REQUIRED_OUTPUTS} | (self._map_names() if maps else {})
        threshold = np.array(self.threshold, dtype=np.float32)
        batches = [images[i : i + 1] for i in range(len(images))] if self._is_single else [images]
        feeds = ({"image": self.to_model_input(batch), "threshold": threshold} for batch in batches)
        results = [run_session(self.session, list(names), feed) for feed in feeds]
        if any(array.ndim == 0 for result in results for array in result):
            found = "an output is a single number"
            raise KdganError("The detector must give one result per image", found, EXPORT_HINT)
        arrays = dict(zip(names.values(), map(np.concatenate, zip(*results, strict=True)), strict=True))
        return make_scores(arrays, len(images), np.float32(threshold), self.frame)

    @property
    def _is_single(self) -> bool:
        """Whether each call has one image: the file fixes it, or the image's tiles already are a batch."""
        return self._batch_is_1 or self.frame is not None

    def _check_images(self, images: NDArray[np.uint8]) -> None:
        height, width = self.input_size or ("H", "W")
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] != self.image_channels
            or 0 in images.shape[0 if self._is_single else 1 :]
            or (self.input_size is not None and images.shape[1:3] != self.input_size)
        ):
            raise KdganError(
                f"Images must be uint8 (N, {height}, {width}, {self.image_channels})",
                f"got {images.dtype} {images.shape}",
                "Convert them: grey for 1 channel, RGB for 3" + ("" if self.input_size is None else ", of that size"),
            )

    def _map_names(self) -> dict[str, str]:
        """The file's maps: name of the output → attribute of ``Scores``."""
        outputs = [name for name, _, _ in self.outputs]
        names = {name: MAP_OUTPUTS[name] for name in outputs if name in MAP_OUTPUTS}
        if not names:
            hint = "Export it with --reconstruction or --anomaly-map"
            raise KdganError("The detector has no maps", f"its outputs are {', '.join(outputs)}", hint)
        return names

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

        A large photo is shrunk while it is decoded, to several times the size that the file resizes to.

        Raises:
            KdganError: The file cannot be read as an image.
        """
        height, width = self.frame or (self.image_size, self.image_size)
        near = None if self.input_size else (max(height, MIN_NEAR), max(width, MIN_NEAR))
        return read_image(Path(path), self.image_channels, self.input_size, near=near)


def check_threshold(threshold: float, source: str | None = None) -> None:
    """Check that a threshold is a finite float32, since no score is above NaN or infinity.

    Raises:
        KdganError: It is not; the message names ``source``, the file that contains it.
    """
    if not abs(threshold) <= MAX_THRESHOLD:
        found = f"got {threshold}" if source is None else f"{source} has {threshold}"
        raise KdganError("The threshold must be a finite number", found, "Give another threshold")


def _load(content: bytes, path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, dict[str, str]]:
    """Create the session of a file whose checksum is right; returns its metadata too."""
    problem = "The detector must be a complete ONNX file"
    if not content:
        raise KdganError(problem, f"{path} is empty", EXPORT_HINT)
    try:
        if has_external_data(content):
            raise ValueError("it keeps weights in another file")
        check_model(content)
        session = create_session(content, threads)
        return session, dict(session.get_modelmeta().custom_metadata_map)
    except ValueError as error:  # no protobuf, or metadata that is not UTF-8
        reason = error.found if isinstance(error, KdganError) else first_line(error)
        raise KdganError(problem, f"{path}: {reason}", EXPORT_HINT) from None


def _load_again(path: Path, threads: int, threshold: float | None, checksum: str) -> Detector:
    """A pickled detector in another process."""
    detector = Detector(path, threads, threshold)
    if detector.metadata[CHECKSUM_KEY] != checksum:
        found = f"{path} is another detector now"
        raise KdganError("A pickled detector needs its file unchanged", found, "Load the detector again")
    return detector


def _read_frame(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """``"256x192"`` → ``(256, 192)``."""
    if "frame" not in metadata:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", metadata["frame"])
    height, width = (int(match[1]), int(match[2])) if match else (0, 0)
    if match is None or max(height, width) > MAX_SIDE or height * width > MAX_FRAME_PIXELS:
        raise ValueError("frame")
    return height, width


def _interface_text(values: list[Any]) -> str:
    return ", ".join(f"{each.name} {each.type} {_shape_text(each.shape)}" for each in values)


def _shape_text(dimensions: list[int | str]) -> str:
    return f"({', '.join(map(str, dimensions))})"
