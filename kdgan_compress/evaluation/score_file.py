"""``scores.npz``: a model's anomaly scores of its data, kept in the run folder so that no image is scored twice.

The file names the weights and the test images by their hashes, so a reader knows whether its scores are still valid.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from kdgan_compress.data import DataSettings, Split
from kdgan_compress.files import atomic_path, read_arrays

DTYPE_KINDS = {"calibration_scores": "f", "test_scores": "f", "test_is_anomalous": "b", "test_classes": "U"}
"""Of the one-dimensional arrays; the other values are texts."""

MAX_BYTES = 400_000_000


@dataclass(frozen=True, eq=False)
class SavedScores:
    """The content of ``scores.npz``.

    Attributes:
        calibration_scores: Scores (V,) of the normal images that set the threshold.
        test_scores: Scores (M,) of the test split; M may be 0.
        test_is_anomalous: Labels (M,) of the test split.
        test_classes: Class names (M,) of the test split.
        weights_sha256: Hash of the scored generator's weights.
        test_sha256: Hash of the test images.
        data: Data settings and the split's hash, as JSON text.
    """

    calibration_scores: NDArray[np.float64]
    test_scores: NDArray[np.float64]
    test_is_anomalous: NDArray[np.bool_]
    test_classes: NDArray[np.str_]
    weights_sha256: str
    test_sha256: str
    data: str

    def matches(self, generator: nn.Module, split: Split) -> bool:
        """Whether these are this generator's scores of this test split."""
        return (
            len(self.test_scores) == len(self.test_is_anomalous) == len(split.test)
            and self.test_sha256 == images_sha256(split.test)
            and self.weights_sha256 == weights_sha256(generator)
        )


def save_scores(
    path: Path,
    generator: nn.Module,
    data: DataSettings,
    split: Split,
    calibration_scores: NDArray[np.float64],
    test_scores: NDArray[np.float64],
) -> None:
    """Write the scores of ``split.calibration``, (V,), and ``split.test``, (M,).

    ``generator`` has the weights that the checkpoint stores; ``split`` was loaded by ``data``.
    """
    scores = SavedScores(
        calibration_scores=calibration_scores,
        test_scores=test_scores,
        test_is_anomalous=split.test_is_anomalous,
        test_classes=split.test_classes,
        weights_sha256=weights_sha256(generator),
        test_sha256=images_sha256(split.test),
        data=json.dumps({"settings": asdict(data), "split_sha256": split.split_sha256}, ensure_ascii=False),
    )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(scores))


def load_scores(path: Path) -> SavedScores | None:
    """Read a score file; None if it is missing, damaged or not a score file. No pickle is executed."""
    try:
        read = read_arrays(path, MAX_BYTES)
        arrays: dict[str, Any] = {field.name: read[field.name] for field in fields(SavedScores)}
        if any((arrays[name].ndim, arrays[name].dtype.kind) != (1, kind) for name, kind in DTYPE_KINDS.items()):
            return None
        texts = {name: str(array) for name, array in arrays.items() if name not in DTYPE_KINDS}
        return SavedScores(**arrays | texts)
    except (OSError, ValueError, KeyError):
        return None


def weights_sha256(network: nn.Module) -> str:
    """A hash of all weights and buffers in order of their names, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def images_sha256(images: Tensor) -> str:
    """A hash of the pixels of images uint8 (N, C, H, W), in hex."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().tobytes())
    return digest.hexdigest()
