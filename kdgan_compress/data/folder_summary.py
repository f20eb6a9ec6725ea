"""What a folder of photos is used for, in one line and some warnings, and whether its photos are grey or coloured."""

import filecmp
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.image_files import describe_skipped
from kdgan_compress.runtime.images import is_coloured

NORMAL_CLASS = "good"
MIN_TRAIN_PHOTOS = 10
MAX_COLOUR_CHECKS = 500
"""Of more training photos, so many evenly spaced ones decide on grey or colour."""

MAX_CLASSES_SHOWN = 8
PROBE_BYTES = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderSummary:
    """How the photos in a folder are used.

    Attributes:
        num_train: Good photos of the training split.
        num_test: Number of test photos of each class, ``good`` first if there are any.
        num_masks: Test photos with a mask.
        num_unmatched_masks: Masks that fit no test photo.
        skipped: Number of files that are not used, for each reason.
        num_unsorted: Photos directly in ``test``, whose class is unknown; they are in ``skipped`` too.
    """

    num_train: int
    num_test: dict[str, int]
    num_masks: int = 0
    num_unmatched_masks: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    num_unsorted: int = 0

    def __str__(self) -> str:
        """For example ``photos: 90 to train on, 7 to test (4 good, 3 dent, masks for 3); 2 skipped (…)``."""
        used = [f"{self.num_train:,} to train on", f"{sum(self.num_test.values()):,} to test{self._test_details()}"]
        unmatched = [f"{self.num_unmatched_masks:,} masks fit no photo"] if self.num_unmatched_masks else []
        return "; ".join([f"photos: {', '.join(used)}", *unmatched, *describe_skipped(self.skipped)])

    def _test_details(self) -> str:
        parts = [f"{number:,} {name}" for name, number in self.num_test.items()]
        if len(parts) > MAX_CLASSES_SHOWN:
            parts[MAX_CLASSES_SHOWN - 1 :] = [f"{len(parts) - MAX_CLASSES_SHOWN + 1} more classes"]
        if self.num_masks:
            parts.append(f"masks for {self.num_masks:,}")
        return f" ({', '.join(parts)})" if parts else ""

    def warnings(self) -> list[str]:
        """What makes the results less reliable than they look."""
        lines = []
        if self.num_train < MIN_TRAIN_PHOTOS:
            lines.append(f"only {self.num_train} photos to train on; use at least {MIN_TRAIN_PHOTOS}, better 50")
        if self.num_unsorted:
            hint = "sort them into test/good and test/<defect>"
            lines.append(f"{self.num_unsorted:,} photos in test have no class folder and are not used; {hint}")
        missing = "good" if NORMAL_CLASS not in self.num_test else "defective" if len(self.num_test) == 1 else None
        if self.num_test and missing:
            lines.append(f"there are no {missing} photos to test, so no AUC can be measured")
        return lines


def report_folder(summary: FolderSummary, train: Sequence[Path], test: Sequence[Path]) -> None:
    """Log the summary and the warnings, also about test photos that are copies of training photos."""
    logger.info("%s", summary)
    lines = summary.warnings()
    copies: list[tuple[Path, Path]] = []
    with suppress(OSError):  # an unreadable photo is reported when it is loaded
        copies = find_copies(train, test)
    if copies:
        first = " is ".join(str(path) for path in copies[0])
        lines.append(f"{len(copies):,} test photos are copies of training photos ({first}); remove one of each pair")
    for line in lines:
        logger.warning("Warning: %s", line)


def report_holdout(num_held_out: int, num_train: int) -> None:
    """Log how many training photos only set the threshold."""
    logger.info("photos: %d of the %d to train on are held out to set the threshold", num_held_out, num_train)


def find_copies(train: Sequence[Path], test: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Test files with the same bytes as a training file, each with that file.

    Only files of one size and with the same bytes at start and middle are read as a whole.
    """
    sizes = {path: path.stat().st_size for path in (*train, *test)}
    train_sizes = {sizes[path] for path in train}
    candidates = [path for path in test if sizes[path] in train_sizes]
    candidate_sizes = {sizes[path] for path in candidates}
    probes = defaultdict(list)
    for path in train:
        if sizes[path] in candidate_sizes:
            probes[_probe(path, sizes[path])].append(path)
    copies = []
    for path in candidates:
        similar = probes.get(_probe(path, sizes[path]), [])
        original = next((other for other in similar if filecmp.cmp(path, other, shallow=False)), None)
        if original is not None:
            copies.append((path, original))
    return copies


def _probe(path: Path, size: int) -> tuple[int, bytes]:
    with path.open("rb") as file:
        start = file.read(PROBE_BYTES)
        file.seek(size // 2)
        return size, start + file.read(PROBE_BYTES)


def choose_channels(train: Sequence[Path]) -> int:
    """3 if any training photo has a coloured pixel, else 1; logs which. Unreadable photos decide nothing."""
    checked = train[:: -(-len(train) // MAX_COLOUR_CHECKS)] if train else []
    for path in checked:
        try:
            if is_coloured(path):
                logger.info("photos: in colour (for example %s)", path.name)
                return 3
        except KdganError:
            continue
    logger.info("photos: grey (no coloured pixel in %s)", f"{len(checked):,} of {len(train):,} training photos")
    return 1
