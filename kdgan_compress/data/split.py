"""The images of one experiment, in memory as uint8: normals to train on, a labelled test split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.data.prepare import resize, to_channels
from kdgan_compress.data.protocols import held_out, simo
from kdgan_compress.data.sources import CLASS_NAMES, load_arrays
from kdgan_compress.errors import KdganError
from kdgan_compress.images import find_images, is_grey, read_image

DEFAULT_NORMAL = {"sample": "sneaker"}
GOOD = "good"


@dataclass(frozen=True)
class DataSettings:
    """Which images; written into every checkpoint.

    Attributes:
        source: ``sample``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``folder:PATH`` (MVTec's layout: ``train/good``,
            ``test/good``, ``test/<defect>``) or ``npz:PATH``.
        normal: The normal class, a number or a name; a folder's is always ``good``.
        root: Where named sets are kept; None for the user's cache folder.
    """

    source: str = "sample"
    normal: str | None = None
    root: str | None = None

    def override(self, source: str | None, normal: str | None, root: str | None) -> "DataSettings":
        """These settings with what is not None replaced; another source does not keep the normal class."""
        kept = self.normal if source is None else None
        return DataSettings(source or self.source, normal or kept, root or self.root)

    def absolute(self) -> "DataSettings":
        """The same with absolute paths, so that they hold wherever a later command is started."""
        kind, _, path = self.source.partition(":")
        source = f"{kind}:{Path(path).expanduser().resolve()}" if path else self.source
        return DataSettings(source, self.normal, str(Path(self.root).expanduser().resolve()) if self.root else None)

    @property
    def name(self) -> str:
        """A short name for folders and titles: ``mnist-5``, ``bottle``."""
        kind, _, path = self.source.partition(":")
        base = Path(path).expanduser().resolve().stem if path else kind
        return base if kind == "folder" else "-".join(filter(None, (base, self.normal or DEFAULT_NORMAL.get(kind))))


@dataclass(frozen=True, eq=False)
class Split:
    """Images at the network's size.

    Attributes:
        train: Normal images to train on, uint8 (N, C, S, S).
        calibration: Normal images to find the threshold on: held out of a small set, else ``train`` itself.
        test: uint8 (M, C, S, S); M may be 0 where a folder has no ``test``.
        test_is_novel: (M,) whether a test image is novel.
        test_classes: (M,) the name of each test image's class.
    """

    train: Tensor
    calibration: Tensor
    test: Tensor
    test_is_novel: NDArray[np.bool_]
    test_classes: NDArray[np.str_]

    @property
    def holds_out(self) -> bool:
        """Whether training never sees the images that the threshold is found on."""
        return self.calibration is not self.train

    @property
    def is_labelled(self) -> bool:
        """Whether the test split has both normal and novel images, so that an AUC exists."""
        return bool(self.test_is_novel.any() and not self.test_is_novel.all())


def load_split(data: DataSettings, image_size: int, image_channels: int) -> Split:
    """Read the images of an experiment under the SIMO protocol.

    Raises:
        KdganError: Whatever is wrong with the source, its files or the normal class.
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
    train, test_is_novel = simo(arrays.y_train, arrays.y_test, _class_number(data, names))
    if len(arrays.x_test) == 0:
        test = torch.empty((0, image_channels, image_size, image_size), dtype=torch.uint8)
    else:
        test = resize(to_channels(arrays.x_test, image_channels), image_size)
    normals, calibration = _calibrated(resize(to_channels(arrays.x_train[train], image_channels), image_size))
    return Split(
        train=normals,
        calibration=calibration,
        test=test,
        test_is_novel=test_is_novel,
        test_classes=np.array([names[label] if names else str(label) for label in arrays.y_test], dtype=np.str_),
    )


def native_channels(data: DataSettings) -> int:
    """1 or 3: how many channels the source's images are stored with (of a folder, its first training image)."""
    if data.source.startswith("folder:"):
        return 1 if is_grey(find_images(_folder(data) / "train" / GOOD)[0]) else 3
    if data.source.startswith("npz:"):
        images = load_arrays(data.source, None).x_train
        return 1 if images.ndim == 3 else int(images.shape[3])
    return 3 if data.source == "cifar10" else 1


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
        test_is_novel=np.array([name != GOOD for name in names], dtype=np.bool_),
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
            raise KdganError(error.must, f"{path}: {error.found}", error.do) from None
    return torch.cat(resized)


def _class_number(data: DataSettings, names: tuple[str, ...]) -> int:
    normal = data.normal or DEFAULT_NORMAL.get(data.source)
    if normal is None:
        raise KdganError(
            f"Training on {data.source} must have a normal class", "got none", "Give --normal, for example --normal 5"
        )
    if normal in names:
        return names.index(normal)
    if not normal.isdecimal() or (names and int(normal) >= len(names)):
        raise KdganError(
            f"The normal class of {data.source} must be one of its classes",
            f"got {normal!r}",
            f"Choose a number{' below ' + str(len(names)) if names else ''}"
            + (f" or one of {', '.join(names)}" if names else ""),
        )
    return int(normal)
