"""The images of one experiment, in memory as uint8: normal images to train on, and a labelled test split."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.data.datasets import ArrayDataset, FileDataset
from kdgan_compress.data.folder_summary import report_holdout
from kdgan_compress.data.photos import are_large, load_crops, load_photos, photos_to_fit, plan_tiles
from kdgan_compress.data.protocols import (
    IndexSplit,
    coil100,
    gpnd_5fold,
    holdout_mask,
    miso_8020,
    miso_leaky,
    ocgan_p1,
    simo,
)
from kdgan_compress.data.settings import MISO_PROTOCOLS, DataSettings
from kdgan_compress.data.sources import OTHER_CLASSES_HINT, Source, open_source
from kdgan_compress.data.tiles import TileSettings
from kdgan_compress.errors import KdganError


@dataclass(frozen=True, eq=False)
class Split:
    """Images at the network's size or, of a tiled experiment, crops to train on and whole photos for the rest.

    Attributes:
        train: Normal images to train on, uint8 (N, C, S, S).
        calibration: Normal images to set the threshold on: the protocol's validation images; without them, images held
            out of a small training set, or else ``train`` itself. Of photos: the training photos.
        test: uint8 (M, C, S, S), or photos (M, C, H, W); M is 0 if a folder has no ``test``.
        test_is_anomalous: (M,) whether a test image is anomalous.
        test_classes: (M,) the name of each test image's class.
        split_sha256: A hash of which images are in which part; None for a folder.
        test_paths: The file of each test photo; empty if the images come from an array.
        test_masks: The mask of each test photo, None where there is none; empty like ``test_paths``.
        is_tiled: Whether ``train`` has crops of the photos that ``calibration`` has.
    """

    train: Tensor
    calibration: Tensor
    test: Tensor
    test_is_anomalous: NDArray[np.bool_]
    test_classes: NDArray[np.str_]
    split_sha256: str | None = None
    test_paths: Sequence[Path] = ()
    test_masks: Sequence[Path | None] = ()
    is_tiled: bool = False

    @property
    def has_holdout(self) -> bool:
        """Whether the images that set the threshold are never trained on."""
        return self.calibration is not self.train and not self.is_tiled

    @property
    def normals(self) -> Tensor:
        """The normal images or photos that a score's statistics are fitted to."""
        return self.calibration if self.is_tiled else self.train

    @property
    def is_labelled(self) -> bool:
        """Whether the test split has both normal and anomalous images, so that an AUC exists."""
        return bool(self.test_is_anomalous.any() and not self.test_is_anomalous.all())


def load_split(data: DataSettings, image_size: int, image_channels: int) -> Split:
    """Read the images of an experiment and split them by its protocol; only the images in use are resized.

    Raises:
        KdganError: A problem with the source, its files, the class or the split, or tiles without a working size.
    """
    tiles = data.used_tiles
    if tiles is not None and tiles.frame is None:
        hint = "Train on the photos, which fills it in, or give --set data.tiles.frame=[HEIGHT,WIDTH]"
        raise KdganError("Tiles need a working size", "tiles.frame is not set", hint)
    source = open_source(data.source, data.root)
    images = source.read()
    labels, names = images.labels, images.class_names
    if names and len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        problem = f"Labels of {data.source} must be 0 to {len(names) - 1}"
        raise KdganError(problem, f"got {labels.min()} to {labels.max()}", OTHER_CLASSES_HINT)
    split = _apply_protocol(data, source, images)
    if tiles is not None:
        normals = np.concatenate([split.train, split.validation])
        train = load_crops(images, normals, tiles, image_size, image_channels)
        fitted = photos_to_fit(normals, tiles, image_size, image_channels)
        calibration, test = (load_photos(images, each, tiles, image_channels) for each in (fitted, split.test))
    else:
        train, calibration, test = (
            images.load(indices, (image_size, image_size), image_channels)
            for indices in (split.train, split.validation, split.test)
        )
        if not len(calibration):
            mask = holdout_mask(len(train))
            train, calibration = (train[~mask], train[mask]) if mask.any() else (train, train)
            if mask.any() and source.has_photos:
                report_holdout(int(mask.sum()), len(mask))
    return Split(
        train=train,
        calibration=calibration,
        test=test,
        test_is_anomalous=split.test_is_anomalous,
        test_classes=np.array([names[label] if names else str(label) for label in labels[split.test]], dtype=np.str_),
        split_sha256=None if source.is_presplit else split.sha256,
        test_paths=[images.paths[index] for index in split.test] if isinstance(images, FileDataset) else (),
        test_masks=[images.masks[index] for index in split.test] if isinstance(images, FileDataset) else (),
        is_tiled=tiles is not None,
    )


def resolve_tiles(data: DataSettings, image_size: int) -> tuple[DataSettings, str | None]:
    """The settings with the working size of their photos, and a line that says what was chosen.

    Photos in a folder that are larger than 64 pixels are cut into tiles unless the settings say otherwise; other images
    only if the settings ask for it, and then there is no line for those that are not.
    """
    tiles = data.tiles
    source = open_source(data.source, data.root)
    is_open = source.has_photos if tiles is None else tiles.enabled and tiles.frame is None
    if not is_open:
        return data, None
    images = source.read()
    normals = _apply_protocol(data, source, images).train
    if tiles is None and not are_large(images, normals):
        return data, None
    plan = plan_tiles(images, normals, tiles or TileSettings(), image_size)
    return dataclasses.replace(data, tiles=plan.settings), plan.message


def native_channels(data: DataSettings) -> int:
    """1 or 3: how many channels the source's images have (a folder: 3 if any training photo has a colour)."""
    return open_source(data.source, data.root).image_channels()


def _apply_protocol(data: DataSettings, source: Source, images: ArrayDataset | FileDataset) -> IndexSplit:
    labels, outliers, trial = images.labels, data.outlier_fraction, data.trial
    if data.protocol == "coil100":
        return coil100(labels, data.num_categories or 1, outliers, trial)
    label = _label_of_class(data, source, images.class_names)
    match data.protocol:
        case "miso-8020":
            return miso_8020(labels, label, trial)
        case "miso-leaky":
            return miso_leaky(labels, label, trial)
        case "gpnd-5fold":
            return gpnd_5fold(labels, label, outliers, trial)
        case "ocgan-p1":
            return ocgan_p1(labels, label, trial)
        case _:
            return simo(labels, images.num_train, label)


def _label_of_class(data: DataSettings, source: Source, names: Sequence[str]) -> int:
    """The label of the normal or, in a MISO protocol, novel class, which the user gives by name or number."""
    role, wanted = "normal", data.normal or source.default_normal
    if data.protocol in MISO_PROTOCOLS:
        role, wanted = "novel", data.novel
    if wanted is None:
        hint = f"Give --{role}, for example --{role} 5"
        raise KdganError(f"Training on {data.source} needs a {role} class", "got none", hint)
    if wanted in names:
        return names.index(wanted)
    if not wanted.isdecimal() or (names and int(wanted) >= len(names)):
        choices = f" below {len(names)} or one of {', '.join(names)}" if names else ""
        problem = f"The {role} class of {data.source} must be one of its classes"
        raise KdganError(problem, f"got {wanted!r}", f"Choose a number{choices}")
    return int(wanted)
