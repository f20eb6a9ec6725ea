"""Labelled image arrays by name: the packaged sample, torchvision's sets, COIL-100, `.npz` files."""

import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.runtime.images import read_image

DEFAULT_ROOT = Path("~/.cache/kdgan-compress")
SAMPLE = Path(__file__).parent / "sample" / "fashion_mnist_sample.npz"
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
NPZ_FIX = "Save it with numpy.savez; images are uint8 (N, H, W) or (N, H, W, 1 or 3), labels whole numbers (N,)"
COIL100_KEYS = ("images", "object", "angle")
COIL100_FIX = "Save it with numpy.savez; images are uint8 (N, H, W, 3), objects 1 to 100 and angles whole numbers (N,)"
COIL100_FILE = re.compile(r"obj(\d+)__(\d+)\.png")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "sample": FASHION,
    "mnist": tuple("0123456789"),
    "fashion-mnist": FASHION,
    "cifar10": CIFAR10,
    "coil100": tuple(f"obj{number}" for number in range(1, 101)),
}
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}


@dataclass(frozen=True)
class RawDataset:
    """A labelled set: images (N, H, W) or (N, H, W, C) uint8 and labels (N,), training and test split.

    A set without an official test split has all its images in the training split.
    """

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]


def load_arrays(source: str, root: Path | None) -> RawDataset:
    """Read a set.

    Args:
        source: ``sample``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``coil100`` or ``npz:PATH``.
        root: Where the named sets are, or are downloaded to: torchvision's layout, or ``<source>.npz``. COIL-100 must
            be there: ``coil100.npz`` (images, object, angle), or ``coil-100/obj<k>__<angle>.png`` as Columbia has it.

    Raises:
        KdganError: Unknown source, a file that is missing or has another content, no torchvision, no download.
    """
    if source == "sample":
        return _read_npz(SAMPLE)
    if source.startswith("npz:"):
        return _read_npz(Path(source.removeprefix("npz:")).expanduser())
    if source not in CLASS_NAMES:
        raise KdganError(
            "The data must be a known set",
            f"got {source!r}",
            f"Choose one of {', '.join(CLASS_NAMES)}, folder:PATH or npz:PATH",
        )
    root = root or DEFAULT_ROOT.expanduser()
    if source == "coil100":
        return _read_coil100(root)
    npz = root / f"{source}.npz"
    return _read_npz(npz) if npz.exists() else _read_torchvision(source, root)


def _read_npz(path: Path) -> RawDataset:
    x_train, y_train, x_test, y_test = _read_arrays(path, NPZ_KEYS, NPZ_FIX)
    for x, y, split in ((x_train, y_train, "train"), (x_test, y_test, "test")):
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            raise _misfit(NPZ_KEYS, f"x_{split} in {path} is {x.dtype} {x.shape}", NPZ_FIX)
        if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
            raise _misfit(NPZ_KEYS, f"y_{split} in {path} is {y.dtype} {y.shape} for {len(x)} images", NPZ_FIX)
    return RawDataset(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64))


def _read_coil100(root: Path) -> RawDataset:
    """All of COIL-100, by object and angle whichever way it is stored, so that a split is the same images."""
    npz, folder = root / "coil100.npz", root / "coil-100"
    files = [(path, match) for path in folder.glob("*.png") if (match := COIL100_FILE.fullmatch(path.name))]
    if npz.exists():
        images, objects, angles = _read_arrays(npz, COIL100_KEYS, COIL100_FIX)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise _misfit(COIL100_KEYS, f"images in {npz} is {images.dtype} {images.shape}", COIL100_FIX)
        for name, numbers in (("object", objects), ("angle", angles)):
            if numbers.shape != images.shape[:1] or not np.issubdtype(numbers.dtype, np.integer):
                found = f"{name} in {npz} is {numbers.dtype} {numbers.shape} for {len(images)} images"
                raise _misfit(COIL100_KEYS, found, COIL100_FIX)
    elif files:
        images = _read_alike([path for path, _ in files])
        objects, angles = (np.array([int(match[group]) for _, match in files]) for group in (1, 2))
    else:
        raise KdganError(
            "COIL-100 must be in the data root",
            f"found neither {npz} nor {folder / 'obj<k>__<angle>.png'}",
            "Unpack Columbia's coil-100.zip there, or give --data-root the folder that has it",
        )
    if len(objects) and not 1 <= objects.min() <= objects.max() <= 100:
        raise KdganError(
            "COIL-100's objects must be 1 to 100",
            f"{root} has {objects.min()} to {objects.max()}",
            "Give a set with other classes as npz:PATH",
        )
    order = np.lexsort((angles, objects))
    images, labels = images[order], objects[order].astype(np.int64) - 1
    return RawDataset(images, labels, images[:0], labels[:0])


def _read_alike(paths: list[Path]) -> NDArray[np.uint8]:
    """Coloured images of one size (N, H, W, 3)."""
    first = read_image(paths[0], 3)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)
    for number, path in enumerate(paths):
        image = read_image(path, 3)
        if image.shape != first.shape:
            raise KdganError(
                "The images of a set must have one size",
                f"{path} is {image.shape[0]}×{image.shape[1]}, {paths[0]} {first.shape[0]}×{first.shape[1]}",
                "Unpack the set again",
            )
        images[number] = image
    return images


def _read_arrays(path: Path, keys: tuple[str, ...], fix: str) -> list[NDArray[Any]]:
    if not path.is_file():
        raise KdganError("The .npz file must exist", f"found none at {path}", "Check the path")
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise _misfit(keys, f"{path} is a single array", fix)
            missing = [key for key in keys if key not in file]
            if missing:
                raise _misfit(keys, f"{path} lacks {', '.join(missing)}", fix)
            return [file[key] for key in keys]
    except KdganError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise _misfit(keys, f"{path} can't be read: {first_line(error)}", fix) from None


def _misfit(keys: tuple[str, ...], found: str, fix: str) -> KdganError:
    return KdganError(f"An .npz data set must hold {', '.join(keys)}", found, fix)


def _read_torchvision(source: str, root: Path) -> RawDataset:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise KdganError(
            f"Reading {source} must have a torchvision that fits torch",
            f"importing it failed: {first_line(error)}",
            "Install torch and torchvision together (pip install 'kdgan-compress[train]'), or give the set as npz:PATH",
        ) from None
    read = getattr(datasets, TORCHVISION[source])
    try:
        splits = [read(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise KdganError(
            f"{source} must be in the data root or downloadable",
            f"{root}: {first_line(error)}",
            "Give --data-root a folder that has it, or connect to the network once",
        ) from None
    train, test = ((np.asarray(s.data, dtype=np.uint8), np.asarray(s.targets, dtype=np.int64)) for s in splits)
    return RawDataset(*train, *test)
