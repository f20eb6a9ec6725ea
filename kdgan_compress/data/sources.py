"""Where images come from. A source is one class in ``SOURCES``; nothing else needs to know it.

``--data NAME`` or ``--data NAME:PATH`` selects the class, whose ``read`` returns the labelled images.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.data.datasets import ArrayDataset, FileDataset, read_npz
from kdgan_compress.data.folder import read_folder
from kdgan_compress.data.folder_summary import NORMAL_CLASS, choose_channels, report_folder
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import expand_user
from kdgan_compress.runtime.images import read_image

DEFAULT_ROOT = Path("~/.cache/kdgan-compress")
SAMPLE = Path(__file__).parent / "sample" / "fashion_mnist_sample.npz"
NPZ_ARRAYS = {"x_train": "x_train", "y_train": "x_train", "x_test": "x_test", "y_test": "x_test"}
NPZ_HINT = "Save it with numpy.savez; images are uint8 (N, H, W) or (N, H, W, 1 or 3), labels whole numbers (N,)"
COIL100_ARRAYS = {"images": "images", "object": "images", "angle": "images"}
COIL100_HINT = "Save it with numpy.savez; images are uint8 (N, H, W, 3), objects 1 to 100 and angles whole numbers (N,)"
OTHER_CLASSES_HINT = "Give a data set with other classes as npz:PATH"
COIL100_FILE = re.compile(r"obj(\d+)__(\d+)\.png")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Source(ABC):
    """A kind of data set.

    Attributes:
        name: The key in ``SOURCES``.
        path: What follows the colon of ``NAME:PATH``.
        root: Where named data sets are stored or downloaded to.
        takes_path: Whether the source is selected by ``NAME:PATH`` instead of ``NAME``.
        channels: Channels of the stored images; a source with varying channels overrides ``image_channels``.
        default_normal: The normal class if the user names none.
        has_test_split: Whether there is an official test split, which protocol ``simo`` needs.
        is_presplit: Whether the user sorts the images: ``default_normal`` is the only normal class, ``simo`` the only
            protocol; a split has no hash, since the images may change.
        uses_root: Whether it reads anything from the root.
        has_photos: Whether large images are cut into tiles by default.
    """

    name: str
    path: Path
    root: Path

    takes_path: ClassVar[bool] = False
    channels: ClassVar[int] = 1
    default_normal: ClassVar[str | None] = None
    has_test_split: ClassVar[bool] = True
    is_presplit: ClassVar[bool] = False
    uses_root: ClassVar[bool] = True
    has_photos: ClassVar[bool] = False

    @abstractmethod
    def read(self) -> ArrayDataset | FileDataset:
        """Read labels and images.

        Raises:
            KdganError: A file is missing or has another content.
        """

    def image_channels(self) -> int:
        """1 (grey) or 3 (RGB): how the images are stored."""
        return self.channels


class NpzFile(Source):
    """Any ``.npz`` file with x_train, y_train, x_test and y_test."""

    takes_path = True
    uses_root = False

    def read(self) -> ArrayDataset:
        return _read_splits(self.path)

    def image_channels(self) -> int:
        images = self.read().x_train
        return 1 if images.ndim == 3 else int(images.shape[3])


class Sample(Source):
    """A part of Fashion-MNIST that comes with the package."""

    default_normal = "sneaker"
    uses_root = False

    def read(self) -> ArrayDataset:
        return _read_splits(SAMPLE, FASHION)


class TorchvisionSource(Source):
    """A data set in torchvision's layout, or ``<name>.npz``, in the root; torchvision downloads it if needed."""

    torchvision_name: ClassVar[str]
    class_names: ClassVar[Sequence[str]]

    def read(self) -> ArrayDataset:
        npz = self.root / f"{self.name}.npz"
        if npz.exists():
            return _read_splits(npz, self.class_names)
        try:
            from torchvision import datasets
        except (ImportError, RuntimeError) as error:
            problem, found = f"Reading {self.name} needs a torchvision that fits torch", first_line(error)
            hint = "Install torch and torchvision together (pip install 'kdgan-compress[train]'), or use npz:PATH"
            raise KdganError(problem, f"importing it failed: {found}", hint) from None
        try:
            dataset = getattr(datasets, self.torchvision_name)
            splits = [dataset(str(self.root), train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            problem = f"{self.name} must be in the data root or downloadable"
            hint = "Give --data-root a folder that has it, or connect to the network once"
            raise KdganError(problem, f"{self.root}: {first_line(error)}", hint) from None
        train, test = ((np.asarray(s.data, dtype=np.uint8), np.asarray(s.targets, dtype=np.int64)) for s in splits)
        return ArrayDataset(*train, *test, self.class_names)


class Mnist(TorchvisionSource):
    torchvision_name, class_names = "MNIST", tuple("0123456789")


class FashionMnist(TorchvisionSource):
    torchvision_name, class_names = "FashionMNIST", FASHION


class Cifar10(TorchvisionSource):
    torchvision_name, class_names, channels = "CIFAR10", CIFAR10, 3


class Coil100(Source):
    """COIL-100 in the root: ``coil100.npz`` (images, object, angle), or Columbia's ``coil-100/obj<k>__<angle>.png``."""

    channels = 3
    has_test_split = False

    def read(self) -> ArrayDataset:
        """Read all images, sorted by object and angle, so that both ways of storage give the same splits."""
        npz, folder = self.root / "coil100.npz", self.root / "coil-100"
        files = [(path, match) for path in folder.glob("*.png") if (match := COIL100_FILE.fullmatch(path.name))]
        if npz.exists():
            images, objects, angles = read_npz(npz, COIL100_ARRAYS, ((3,),), COIL100_HINT)
        elif files:
            images = _read_same_size([path for path, _ in files])
            objects, angles = (np.array([int(match[group]) for _, match in files]) for group in (1, 2))
        else:
            found = f"found neither {npz} nor {folder / 'obj<k>__<angle>.png'}"
            hint = "Unpack Columbia's coil-100.zip there, or give --data-root the folder that has it"
            raise KdganError("COIL-100 must be in the data root", found, hint)
        if len(objects) and not 1 <= objects.min() <= objects.max() <= 100:
            found = f"{self.root} has {objects.min()} to {objects.max()}"
            raise KdganError("COIL-100's objects must be 1 to 100", found, OTHER_CLASSES_HINT)
        order = np.lexsort((angles, objects))
        images, labels = images[order], objects[order] - 1
        names = [f"obj{number}" for number in range(1, 101)]
        return ArrayDataset(images, labels, images[:0], labels[:0], names)


class Folder(Source):
    """Photos in one of the layouts of ``folder.read_folder``."""

    takes_path = True
    default_normal = NORMAL_CLASS
    is_presplit = True
    uses_root = False
    has_photos = True

    def read(self) -> FileDataset:
        """Find the photos, and log what they are used for."""
        photos = read_folder(self.path)
        report_folder(photos.summary, photos.paths[: photos.num_train], photos.paths[photos.num_train :])
        return photos

    def image_channels(self) -> int:
        """3 if any training photo has a coloured pixel, else 1."""
        photos = read_folder(self.path)
        return choose_channels(photos.paths[: photos.num_train])


SOURCES: dict[str, type[Source]] = {
    "sample": Sample,
    "mnist": Mnist,
    "fashion-mnist": FashionMnist,
    "cifar10": Cifar10,
    "coil100": Coil100,
    "folder": Folder,
    "npz": NpzFile,
}
"""What ``--data`` may name; a new source is a class and a line here."""

UNKNOWN = "unknown"
"""The source of a model that was imported without data."""


def open_source(source: str, root: str | Path | None = None) -> Source:
    """The source that ``NAME`` or ``NAME:PATH`` selects; nothing is read yet. A root None is the user's cache folder.

    Raises:
        KdganError: Unknown source.
    """
    if source == UNKNOWN:
        hint = "Give --data, or import the model again with --data"
        raise KdganError("The model's data are unknown", "it was imported without them", hint)
    name, _, path = source.partition(":")
    kind = SOURCES.get(name)
    if kind is None or kind.takes_path != bool(path):
        known = [f"{name}:PATH" if kind.takes_path else name for name, kind in SOURCES.items()]
        raise KdganError("The data must be a known source", f"got {source!r}", f"Choose one of {', '.join(known)}")
    default = DEFAULT_ROOT if kind.uses_root else "."
    return kind(name, expand_user(path), expand_user(root or default))


def _read_splits(path: Path, class_names: Sequence[str] = ()) -> ArrayDataset:
    x_train, y_train, x_test, y_test = read_npz(path, NPZ_ARRAYS, ((), (1,), (3,)), NPZ_HINT)
    return ArrayDataset(x_train, y_train, x_test, y_test, class_names)


def _read_same_size(paths: list[Path]) -> NDArray[np.uint8]:
    """RGB images of one size (N, H, W, 3)."""
    height, width, channels = read_image(paths[0], 3).shape
    images = np.empty((len(paths), height, width, channels), dtype=np.uint8)
    for number, path in enumerate(paths):
        image = read_image(path, 3)
        if image.shape != images.shape[1:]:
            found = f"{path} is {image.shape[0]}×{image.shape[1]}, {paths[0]} {height}×{width}"
            raise KdganError("All images of a data set need one size", found, "Unpack the data set again")
        images[number] = image
    return images
