"""Folders of photos as people have them: which photos are trained on, which are tested as which class, and their masks.

Three layouts, told apart by the names of the subfolders (in any case, blanks around them ignored):

- MVTec's: ``train/good``, ``test/good``, ``test/<defect>``, ``ground_truth/<defect>/NAME_mask.png``. ``train`` may hold
  the photos itself, and ``ground_truth`` may lie in ``test``.
- ``good`` next to ``bad`` or to one folder per defect. A fifth of the good photos, chosen by a hash of their names, are
  tested, so few photos change their part when others are added.
- Photos of good parts only, in the folder itself or in ``good``: all are trained on, and there is no test.
"""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdgan_compress.data.datasets import FileDataset
from kdgan_compress.data.folder_summary import NORMAL_CLASS, FolderSummary
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.runtime.image_files import (
    MASK_ENDING,
    SYSTEM_FOLDERS,
    ImageList,
    describe_skipped,
    is_mask_folder,
    list_images,
)

NORMAL_NAMES = frozenset({"good", "ok", "okay", "normal", "pass", "passed"})
ANOMALOUS_NAMES = frozenset(
    {"abnormal", "anomalous", "anomalies", "anomaly", "bad", "defect", "defective", "defects"}
    | {"fail", "failed", "ng", "nok", "not ok", "not_ok", "reject", "rejected", "rejects"}
)
TEST_FRACTION = 0.2
"""Of the good photos that lie next to bad ones."""

UNSORTED = "in test without a class folder"
HINT = "Put photos of good parts there, or into good next to bad, or directly into the folder"

MaskKey = tuple[str, str]
"""Class (lower case, empty if unknown) and path within its folder, without suffix and ``_mask``."""


@dataclass
class _Photos:
    """What has been found: training photos, test photos with their keys by class, masks and skipped files."""

    train: list[Path] = field(default_factory=list)
    test: dict[str, list[tuple[Path, MaskKey]]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[MaskKey, Path] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    def list_class(self, folder: Path, name: str) -> list[tuple[Path, MaskKey]]:
        """The photos in a class's folder with their keys; its masks and skipped files are noted."""
        found = list_images(folder)
        self.skipped.update(found.skipped)
        for path in found.masks:
            self.masks[_key(path, folder, name)] = path
        return [(path, _key(path, folder, name)) for path in found.images]

    def add_masks(self, folder: Path) -> None:
        """Note the masks in ``ground_truth/<defect>``."""
        found = list_images(folder)
        self.skipped.update(found.skipped)
        for path in (*found.images, *found.masks):
            name, *rest = path.relative_to(folder).parts
            self.masks[_key(path, folder / name, _class_name(name)) if rest else ("", _stem(path.name))] = path

    def skip(self, folder: Path, reason: str) -> None:
        """Count the images in a folder that has no part in the layout."""
        if number := len(list_images(folder).images):
            self.skipped[reason] += number


def read_folder(root: Path) -> FileDataset:
    """Find the photos in a folder; they are decoded when they are loaded.

    Raises:
        KdganError: There is no folder, or no good photo to train on.
    """
    problem = "A data folder needs train/good (and, to measure AUC, test/good and test/<defect>)"
    if not root.is_dir():
        raise KdganError(problem, f"there is no folder {root}", HINT)
    try:
        photos = _find_photos(root)
    except OSError as error:
        raise KdganError("A data folder must be readable", first_line(error), "Check its permissions") from None
    if not photos.train:
        skipped = "".join(f"; {text}" for text in describe_skipped(photos.skipped))
        raise KdganError(problem, f"found no photo to train on in {root}{skipped}", HINT)
    return _dataset(photos)


def _find_photos(root: Path) -> _Photos:
    photos = _Photos()
    folders = _subfolders(root)
    trains, tests = ([path for path in folders if _plain(path) == name] for name in ("train", "test"))
    goods = [path for path in folders if _plain(path) in NORMAL_NAMES]
    for path in folders:
        if is_mask_folder(path.name):
            photos.add_masks(path)
    others = [path for path in folders if path not in (*trains, *tests) and not is_mask_folder(path.name)]
    if trains:
        _add_train(photos, trains)
    else:
        bads = [path for path in others if path not in goods and (goods or _plain(path) in ANOMALOUS_NAMES)]
        _add_good_and_bad(photos, root, goods, [] if tests else bads)
        others = [path for path in others if path not in goods and (tests or path not in bads)]
    for path in tests:
        _add_test(photos, path)
    for path in others:
        photos.skip(path, f"in {path.name}, which is not part of the layout")
    return photos


def _add_train(photos: _Photos, trains: list[Path]) -> None:
    """Train on ``train/good`` or, without it, on the photos directly in ``train``."""
    for train in trains:
        goods = [path for path in _subfolders(train) if _plain(path) in NORMAL_NAMES]
        for good in goods:
            photos.train += [path for path, _ in photos.list_class(good, NORMAL_CLASS)]
        if not goods:
            photos.train += _direct_images(photos, train).images
        for path in _subfolders(train):
            if path not in goods:
                photos.skip(path, f"in train/{path.name}")


def _add_good_and_bad(photos: _Photos, root: Path, goods: list[Path], bads: list[Path]) -> None:
    """Train on ``good`` or, without it, on the photos directly in the folder; with ``bad``, a fifth are tested."""
    found = [item for good in goods for item in photos.list_class(good, NORMAL_CLASS)]
    if not goods:
        found = [(path, _key(path, root, NORMAL_CLASS)) for path in _direct_images(photos, root).images]
    for bad in bads:
        if bad_photos := photos.list_class(bad, _class_name(bad.name)):
            photos.test[_class_name(bad.name)] += bad_photos
    num_test = max(round(TEST_FRACTION * len(found)), min(1, len(found) - 1)) if photos.test else 0
    by_hash = sorted(found, key=lambda item: hashlib.sha256(item[1][1].encode("utf-8", "surrogateescape")).digest())
    tested = set(by_hash[:num_test])
    photos.train += [item[0] for item in found if item not in tested]
    if tested:
        photos.test[NORMAL_CLASS] += [item for item in found if item in tested]


def _add_test(photos: _Photos, test: Path) -> None:
    """Test ``test/good`` and ``test/<defect>``; photos directly in ``test`` have no class."""
    for path in _subfolders(test):
        if is_mask_folder(path.name):
            photos.add_masks(path)
        elif found := photos.list_class(path, _class_name(path.name)):
            photos.test[_class_name(path.name)] += found
    photos.skipped[UNSORTED] += len(_direct_images(photos, test).images)


def _dataset(photos: _Photos) -> FileDataset:
    names = sorted({NORMAL_CLASS} | photos.test.keys())
    tested = [(name, path, key) for name in names for path, key in sorted(photos.test.get(name, []))]
    stems = Counter(key[1] for name, _, key in tested if name != NORMAL_CLASS)
    masks: list[Path | None] = []
    for name, _, key in tested:
        without_class = photos.masks.get(("", key[1])) if name != NORMAL_CLASS and stems[key[1]] == 1 else None
        masks.append(photos.masks.get(key, without_class))
    is_defect = [name != NORMAL_CLASS for name, _, _ in tested]
    num_train = len(photos.train)
    labels = [names.index(name) for name in [NORMAL_CLASS] * num_train + [name for name, _, _ in tested]]
    return FileDataset(
        paths=[*photos.train, *(path for _, path, _ in tested)],
        labels=np.array(labels, dtype=np.int64),
        num_train=num_train,
        class_names=names,
        masks=[None] * num_train + masks,
        summary=FolderSummary(
            num_train=num_train,
            num_test=dict(sorted(Counter(name for name, _, _ in tested).items(), key=_good_first)),
            num_masks=sum(mask is not None for mask, defect in zip(masks, is_defect, strict=True) if defect),
            num_unmatched_masks=len(set(photos.masks.values()) - set(masks)),
            skipped=+photos.skipped,
            num_unsorted=photos.skipped[UNSORTED],
        ),
    )


def _good_first(item: tuple[str, int]) -> tuple[bool, str]:
    return item[0] != NORMAL_CLASS, item[0]


def _subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, links included, without hidden ones and those of the system."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in SYSTEM_FOLDERS and path.is_dir()
    )


def _direct_images(photos: _Photos, folder: Path) -> ImageList:
    """The images in a folder itself; masks next to them are noted."""
    found = list_images(folder, recursive=False)
    for path in found.masks:
        photos.masks[_key(path, folder, "")] = path
    photos.skipped.update(found.skipped)
    return found


def _plain(folder: Path) -> str:
    return folder.name.strip().lower()


def _class_name(name: str) -> str:
    """The class that a folder holds: ``good`` for ``Good``, ``ok`` and ``"normal "``, else its name."""
    return NORMAL_CLASS if name.strip().lower() in NORMAL_NAMES else name.strip()


def _key(path: Path, folder: Path, class_name: str) -> MaskKey:
    *parents, name = path.relative_to(folder).parts
    return class_name.lower(), "/".join([*(part for part in parents if not is_mask_folder(part)), _stem(name)])


def _stem(name: str) -> str:
    stem = Path(name).stem
    return stem[: -len(MASK_ENDING)] if stem.lower().endswith(MASK_ENDING) else stem
