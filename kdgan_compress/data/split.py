"""The images of one experiment, in memory as uint8: normals to train on, a labelled test split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.data.prepare import resize, to_channels
from kdgan_compress.data.protocols import IndexSplit, coil100, gpnd_5fold, held_out, miso_8020, ocgan_p1, simo
from kdgan_compress.data.settings import DEFAULT_NORMAL, DataSettings
from kdgan_compress.data.sources import CLASS_NAMES, RawDataset, load_arrays
from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.images import find_images, is_grey, read_image

GOOD = "good"
COLOURED = ("cifar10", "coil100")


@dataclass(frozen=True, eq=False)
class Split:
    """Images at the network's size.

    Attributes:
        train: Normal images to train on, uint8 (N, C, S, S).
        calibration: Normal images to find the threshold on: the protocol's validation images; where it has none, those
            held out of a small set, else ``train`` itself.
        test: uint8 (M, C, S, S); M may be 0 where a folder has no ``test``.
        test_is_anomalous: (M,) whether a test image is novel.
        test_classes: (M,) the name of each test image's class.
        split_sha256: Fingerprint of which images are where; None for a folder.
    """

    train: Tensor
    calibration: Tensor
    test: Tensor
    test_is_anomalous: NDArray[np.bool_]
    test_classes: NDArray[np.str_]
    split_sha256: str | None = None

    @property
    def holds_out(self) -> bool:
        """Whether training never sees the images that the threshold is found on."""
        return self.calibration is not self.train

    @property
    def is_labelled(self) -> bool:
        """Whether the test split has both normal and novel images, so that an AUC exists."""
        return bool(self.test_is_anomalous.any() and not self.test_is_anomalous.all())


def load_split(data: DataSettings, image_size: int, image_channels: int) -> Split:
    """Read the images of an experiment under its protocol; only those it uses are resized.

    Raises:
        KdganError: Whatever is wrong with the source, its files, the class or the split.
    """
    if data.source.startswith("folder:"):
        return _folder_split(_folder(data), image_size, image_channels)
    arrays = load_arrays(data.source, Path(data.root).expanduser() if data.root else None)
    names = CLASS_NAMES.get(data.source, ())
    labels = np.concatenate([arrays.y_train, arrays.y_test])
    if names and len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise KdganError(
            f"Labels of {data.source} must be 0 to {len(names) - 1}",
            f"got {labels.min()} to {labels.max()}",
            "Give a set with other classes as npz:PATH",
        )
    chosen = _choose(data, labels, len(arrays.y_train), names)
    train, validation, test = (
        _images(arrays, indices, image_size, image_channels)
        for indices in (chosen.train, chosen.validation, chosen.test)
    )
    normals, calibration = (train, validation) if len(validation) else _calibrated(train)
    return Split(
        train=normals,
        calibration=calibration,
        test=test,
        test_is_anomalous=chosen.test_is_anomalous,
        test_classes=np.array([names[label] if names else str(label) for label in labels[chosen.test]], dtype=np.str_),
        split_sha256=chosen.sha256,
    )


def native_channels(data: DataSettings) -> int:
    """1 or 3: how many channels the source's images are stored with (of a folder, its first training image)."""
    if data.source.startswith("folder:"):
        return 1 if is_grey(find_images(_folder(data) / "train" / GOOD)[0]) else 3
    if data.source.startswith("npz:"):
        images = load_arrays(data.source, None).x_train
        return 1 if images.ndim == 3 else int(images.shape[3])
    return 3 if data.source in COLOURED else 1


def _choose(
    data: DataSettings, labels: NDArray[np.int64], num_official_train: int, names: tuple[str, ...]
) -> IndexSplit:
    """Which images of the pool the protocol takes."""
    match data.protocol:
        case "miso-8020":
            return miso_8020(labels, _class_number(data, names, "novel"), data.trial)
        case "gpnd-5fold":
            return gpnd_5fold(labels, _class_number(data, names, "normal"), data.outlier_fraction, data.trial)
        case "coil100":
            return coil100(labels, data.num_categories or 1, data.outlier_fraction, data.trial)
        case "ocgan-p1":
            return ocgan_p1(labels, _class_number(data, names, "normal"), data.trial)
        case _:
            return simo(labels, num_official_train, _class_number(data, names, "normal"))


def _images(arrays: RawDataset, indices: NDArray[np.int64], size: int, channels: int) -> Tensor:
    """Images of the pool at the network's size; the official splits may differ in theirs."""
    images = torch.empty((len(indices), channels, size, size), dtype=torch.uint8)
    num_train = len(arrays.x_train)
    in_test = indices >= num_train
    for pixels, here, start in ((arrays.x_train, ~in_test, 0), (arrays.x_test, in_test, num_train)):
        if here.any():
            images[torch.from_numpy(here)] = resize(to_channels(pixels[indices[here] - start], channels), size)
    return images


def _folder(data: DataSettings) -> Path:
    folder = Path(data.source.removeprefix("folder:")).expanduser()
    if data.normal not in (None, GOOD):
        raise KdganError(
            "A folder's normal class must be its train/good", f"got --normal {data.normal}", "Leave --normal out"
        )
    if not (folder / "train" / GOOD).is_dir():
        raise KdganError(
            "A data folder must have train/good (and, to measure AUC, test/good and test/<defect>)",
            f"found no {folder / 'train' / GOOD}",
            "Put photos of good parts there",
        )
    return folder


def _folder_split(folder: Path, size: int, channels: int) -> Split:
    train, calibration = _calibrated(_read_folder(folder / "train" / GOOD, size, channels))
    classes = sorted(path for path in (folder / "test").glob("*") if path.is_dir() and not path.name.startswith("."))
    tests = [_read_folder(path, size, channels) for path in classes]
    names = [path.name for path, images in zip(classes, tests, strict=True) for _ in images]
    return Split(
        train=train,
        calibration=calibration,
        test=torch.cat([train[:0], *tests]),
        test_is_anomalous=np.array([name != GOOD for name in names], dtype=np.bool_),
        test_classes=np.array(names, dtype=np.str_),
    )


def _calibrated(normals: Tensor) -> tuple[Tensor, Tensor]:
    """Training normals, and those to find the threshold on."""
    held = torch.from_numpy(held_out(len(normals)))
    return (normals[~held], normals[held]) if held.any() else (normals, normals)


def _read_folder(folder: Path, size: int, channels: int) -> Tensor:
    resized = []
    for path in find_images(folder):
        pixels = read_image(path, channels)
        try:
            resized.append(resize(pixels[None], size))
        except KdganError as error:
            raise KdganError(error.problem, f"{path}: {error.found}", error.hint) from None
    return torch.cat(resized)


def _class_number(data: DataSettings, names: tuple[str, ...], kind: Literal["normal", "novel"]) -> int:
    wanted = data.novel if kind == "novel" else data.normal or DEFAULT_NORMAL.get(data.source)
    if wanted is None:
        raise KdganError(
            f"Training on {data.source} must have a {kind} class", "got none", f"Give --{kind}, for example --{kind} 5"
        )
    if wanted in names:
        return names.index(wanted)
    if not wanted.isdecimal() or (names and int(wanted) >= len(names)):
        raise KdganError(
            f"The {kind} class of {data.source} must be one of its classes",
            f"got {wanted!r}",
            f"Choose a number{' below ' + str(len(names)) if names else ''}"
            + (f" or one of {', '.join(names)}" if names else ""),
        )
    return int(wanted)
