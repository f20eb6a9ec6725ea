"""Labelled image arrays by name: the packaged sample, torchvision's sets, `.npz` files."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError, first_line

DEFAULT_ROOT = Path("~/.cache/kdgan-compress")
SAMPLE = Path(__file__).parent / "sample" / "fashion_mnist_sample.npz"
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "sample": FASHION,
    "mnist": tuple("0123456789"),
    "fashion-mnist": FASHION,
    "cifar10": CIFAR10,
}
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}


@dataclass(frozen=True)
class Arrays:
    """A labelled set: images (N, H, W) or (N, H, W, C) uint8 and labels (N,), training and test split."""

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]


def load_arrays(source: str, root: Path | None) -> Arrays:
    """Read a set.

    Args:
        source: ``sample``, ``mnist``, ``fashion-mnist``, ``cifar10`` or ``npz:PATH``.
        root: Where the named sets are, or are downloaded to: torchvision's layout, or ``<source>.npz``.

    Raises:
        KdganError: Unknown source, a file that is missing or has another content, no torchvision, no download.
    """
    if source == "sample":
        return _read_npz(SAMPLE)
    if source.startswith("npz:"):
        return _read_npz(Path(source.removeprefix("npz:")).expanduser())
    if source not in TORCHVISION:
        raise KdganError(
            "The data must be a known set",
            f"got {source!r}",
            f"Choose one of {', '.join(CLASS_NAMES)}, folder:PATH or npz:PATH",
        )
    root = root or DEFAULT_ROOT.expanduser()
    npz = root / f"{source}.npz"
    return _read_npz(npz) if npz.exists() else _read_torchvision(source, root)


def _read_npz(path: Path) -> Arrays:
    what = f"An .npz data set must hold {', '.join(NPZ_KEYS)}"
    fix = "Save it with numpy.savez; images are uint8 (N, H, W) or (N, H, W, 1 or 3), labels whole numbers (N,)"
    if not path.is_file():
        raise KdganError("The .npz file must exist", f"found none at {path}", "Check the path")
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise KdganError(what, f"{path} is a single array", fix)
            missing = [key for key in NPZ_KEYS if key not in file]
            if missing:
                raise KdganError(what, f"{path} lacks {', '.join(missing)}", fix)
            x_train, y_train, x_test, y_test = (file[key] for key in NPZ_KEYS)
    except KdganError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise KdganError(what, f"{path} can't be read: {first_line(error)}", fix) from None
    for x, y, split in ((x_train, y_train, "train"), (x_test, y_test, "test")):
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
            raise KdganError(what, f"x_{split} in {path} is {x.dtype} {x.shape}", fix)
        if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
            raise KdganError(what, f"y_{split} in {path} is {y.dtype} {y.shape} for {len(x)} images", fix)
    return Arrays(x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64))


def _read_torchvision(source: str, root: Path) -> Arrays:
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
    return Arrays(*train, *test)
