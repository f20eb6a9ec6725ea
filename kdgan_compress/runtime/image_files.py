"""List the image files in a folder as people have it: masks, system files and other formats among the photos."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.heic import HEIC_HINT, HEIC_SUFFIXES, has_heic_support

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
MASK_FOLDERS = frozenset({"ground_truth", "groundtruth", "gt", "mask", "masks"})
MASK_ENDING = "_mask"
SYSTEM_FOLDERS = frozenset({"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found"})
MAX_REASONS_SHOWN = 5
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True)
class ImageList:
    """What a folder and its subfolders hold; links to folders are followed, hidden and system files are not listed.

    Attributes:
        images: Image files by suffix, sorted by path.
        masks: Image files that mark defects, by name: ``*_mask.png``, or anything in ``ground_truth`` or ``masks``.
        skipped: Number of other files for each reason.
    """

    images: list[Path]
    masks: list[Path]
    skipped: Counter[str]

    def __str__(self) -> str:
        """For example ``9 images; 3 masks; 2 skipped (2 .txt: not an image format)``."""
        parts = [f"{len(self.images):,} images"] + ([f"{len(self.masks):,} masks"] if self.masks else [])
        return "; ".join([*parts, *describe_skipped(self.skipped)])


def list_images(folder: Path, recursive: bool = True) -> ImageList:
    """Sort the files in a folder (and its subfolders) by what they are; an empty folder gives empty lists.

    Raises:
        KdganError: The folder does not exist.
    """
    if not folder.is_dir():
        raise KdganError("The folder must exist", f"found none at {folder}", "Check the path")
    images: list[Path] = []
    masks: list[Path] = []
    skipped = Counter[str]()
    for path, reason in _walk(folder, recursive):
        if reason is None:
            (masks if is_mask(path, folder) else images).append(path)
        else:
            skipped[reason] += 1
    return ImageList(sorted(images), sorted(masks), skipped)


def find_images(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, sorted by path.

    Raises:
        KdganError: The folder does not exist or contains no image.
    """
    found = list_images(folder)
    if not found.images:
        others = "".join(f"; {text}" for text in describe_skipped(found.skipped))
        hint = f"Add images of these types: {', '.join(sorted(SUFFIXES))}"
        raise KdganError("The folder must hold images", f"there is none in {folder}{others}", hint)
    return found.images


def is_mask(path: Path, folder: Path) -> bool:
    """Whether a file in a folder is a mask by its name or by the name of a subfolder."""
    subfolders = path.relative_to(folder).parent.parts
    return path.stem.lower().endswith(MASK_ENDING) or any(is_mask_folder(name) for name in subfolders)


def is_mask_folder(name: str) -> bool:
    """Whether a folder of this name holds masks."""
    return name.strip().lower().replace(" ", "_") in MASK_FOLDERS


def describe_skipped(skipped: Counter[str]) -> list[str]:
    """One text, such as ``3 skipped (2 .heic: …; 1 in @eaDir)``, or none if nothing was skipped."""
    reasons = [f"{number:,} {reason}" for reason, number in skipped.most_common(MAX_REASONS_SHOWN)]
    if len(skipped) > MAX_REASONS_SHOWN:
        reasons.append("others")
    return [f"{skipped.total():,} skipped ({'; '.join(reasons)})"] if skipped else []


def _walk(folder: Path, recursive: bool) -> Iterator[tuple[Path, str | None]]:
    """Each file that is not hidden, with the reason why it is not an image, or None; every folder is entered once."""
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = Path(parent).stat()
        identity = status.st_dev, status.st_ino
        is_entered = recursive and identity not in visited
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if is_entered else []
        if identity in visited:
            continue
        visited.add(identity)
        system = next((p for p in Path(parent).relative_to(folder).parts if p.lower() in SYSTEM_FOLDERS), None)
        for name in files:
            if not name.startswith(".") and name.lower() not in SYSTEM_FILES:
                path = Path(parent, name)
                yield path, f"in {system}" if system else _reason_to_skip(path)


def _reason_to_skip(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in HEIC_SUFFIXES:
        if not has_heic_support():
            return f"HEIC: {HEIC_HINT}"
    elif suffix not in SUFFIXES:
        return f"{suffix or 'without a suffix'}: not an image format"
    return None if path.is_file() else "broken links, pipes or devices"
