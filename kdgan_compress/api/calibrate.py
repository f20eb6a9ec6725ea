"""Give a detector a new threshold from good photos, with the runtime alone: no torch, no onnx."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdgan_compress.errors import KdganError
from kdgan_compress.export.packaging.card_update import CardEntries, update_card
from kdgan_compress.export.packaging.sidecar_names import card_sidecar, golden_sidecar, sidecar_prefix
from kdgan_compress.export.validation.golden import read_golden, write_golden
from kdgan_compress.files import read_text, scratch_folder, write_together
from kdgan_compress.runtime import Detector, score_files
from kdgan_compress.runtime.calibration import (
    MIN_PHOTOS,
    THRESHOLD_QUANTILE,
    Calibration,
    check_quantile,
    find_threshold,
)
from kdgan_compress.runtime.checksum import CHECKSUM_KEY
from kdgan_compress.runtime.image_files import find_images
from kdgan_compress.runtime.onnx_file import replace_threshold

MAX_CARD_BYTES = 1_000_000


@dataclass(frozen=True)
class CalibrationResult(Calibration):
    """The new threshold, and what was written.

    Attributes:
        path: The new detector.
        files: All files that were written; the detector is the last.
        unreadable: One message per photo that could not be scored.
        warnings: What to know before using the new detector.
    """

    path: str
    files: tuple[str, ...]
    unreadable: tuple[str, ...]
    warnings: tuple[str, ...]


def calibrate(
    detector: str | Path,
    photos: Sequence[str | Path],
    out: str | Path,
    *,
    quantile: float = THRESHOLD_QUANTILE,
    threads: int = 1,
) -> CalibrationResult:
    """Write a copy of a detector whose threshold is a quantile of good photos' scores, with card and golden vectors.

    Everything else in the copy is unchanged. Use photos from the place where the detector works, none of which it was
    trained on.

    Args:
        detector: The ``.onnx`` file.
        photos: Photos without defects: files, and folders whose photos are all used.
        out: The new ``.onnx`` file; it cannot replace the old one.
        quantile: Quantile of the photos' scores, in (0, 1).
        threads: Threads to read and score.

    Raises:
        KdganError: The detector cannot be read, no photo can be scored, or the path cannot be written.

    Example:
        >>> calibrate("student.onnx", ["good_photos"], "here.onnx")  # doctest: +SKIP
    """
    old, new = Path(detector), Path(out)
    if new.suffix != ".onnx":
        raise KdganError("The detector's file name must end in .onnx", f"got {new}", "Give -o NAME.onnx")
    if new.resolve() == old.resolve() or (new.exists() and old.exists() and new.samefile(old)):
        raise KdganError("The calibrated detector needs another file", f"{new} is the detector", "Give -o another name")
    check_quantile(quantile)
    loaded = Detector(old, threads)
    paths = [path for photo in map(Path, photos) for path in (find_images(photo) if photo.is_dir() else [photo])]
    results = list(score_files(loaded, paths, threads=threads))
    scores = np.array([result.score for result in results if result.score is not None], dtype=np.float32)
    unreadable = tuple(result.error for result in results if result.error is not None)
    if unreadable and not len(scores):
        raise KdganError("Calibration needs good photos", f"none could be scored: {unreadable[0]}", "Give more photos")
    found = find_threshold(scores, loaded.threshold, quantile)
    warnings = []
    if found.num_photos < MIN_PHOTOS:
        warnings.append(f"{found.num_photos} photos make an uncertain threshold; give at least {MIN_PHOTOS}, or 100")
    files, unchanged = _write(old, loaded, new, found)
    return CalibrationResult(
        **vars(found), path=str(new), files=files, unreadable=unreadable, warnings=(*warnings, *unchanged)
    )


def _write(old: Path, loaded: Detector, new: Path, found: Calibration) -> tuple[tuple[str, ...], list[str]]:
    """Write the new detector, its golden vectors and its card; returns their paths, and what was not written."""
    is_same_folder = new.parent.resolve() == old.parent.resolve()
    prefix = f"{new.stem}." if is_same_folder else sidecar_prefix(new)
    with scratch_folder() as folder:
        written = folder / new.name
        written.write_bytes(replace_threshold(old.read_bytes(), found.threshold, found.threshold_rule))
        calibrated = Detector(written)
        files, warnings = [], []
        for write in (_write_golden, _write_card):
            try:
                files += write(old, loaded, written, calibrated, prefix)
            except KdganError as error:
                warnings.append(f"not written: {error}")
        if old.with_suffix(".ort").exists():
            warnings.append(f"{old.with_suffix('.ort').name} keeps the old threshold; set its input `threshold`")
        paths = [new.with_name(file) for file in (*files, new.name)]
        write_together({path: (folder / path.name).read_bytes() for path in paths})
    return tuple(map(str, paths)), warnings


def _write_golden(old: Path, loaded: Detector, written: Path, calibrated: Detector, prefix: str) -> list[str]:
    """Golden vectors with the same scores; decisions, threshold and checksum are the new detector's."""
    source = golden_sidecar(old)
    golden = read_golden(source)
    if golden.file_sha256 != loaded.metadata[CHECKSUM_KEY]:
        hint = "Keep detector and golden vectors of one export together"
        raise KdganError("Golden vectors must belong to the detector", f"{source} is of another", hint)
    golden = dataclasses.replace(
        golden,
        file_sha256=calibrated.metadata[CHECKSUM_KEY],
        is_anomaly=golden.score > np.float32(calibrated.threshold),
    )
    npz, as_json = f"{prefix}golden.npz", f"{prefix}golden.json"
    write_golden(written.with_name(npz), written.with_name(as_json), calibrated, written.name, golden)
    return [npz, as_json]


def _write_card(old: Path, loaded: Detector, written: Path, calibrated: Detector, prefix: str) -> list[str]:
    """The card with the new detector's values; it describes the new golden vectors if there are any."""
    source, card = card_sidecar(old), f"{prefix}card.md"
    try:
        text = read_text(source, MAX_CARD_BYTES)
    except (OSError, ValueError):
        hint = "Keep the files of an export together"
        raise KdganError("The model card must be readable", f"there is none at {source}", hint) from None
    golden = golden_sidecar(old).stem
    names = {f"{golden}{suffix}": f"{prefix}golden{suffix}" for suffix in (".npz", ".json")}
    names = {name: renamed for name, renamed in names.items() if written.with_name(renamed).exists()}
    entries = _card_entries(old, loaded, source.name), _card_entries(written, calibrated, card)
    written.with_name(card).write_text(update_card(text, *entries, names), encoding="utf-8")
    return [card]


def _card_entries(path: Path, detector: Detector, card: str) -> CardEntries:
    metadata = detector.metadata
    rule, checksum = metadata.get("threshold_rule", ""), metadata[CHECKSUM_KEY]
    return CardEntries(path.name, path.stat().st_size, detector.threshold, rule, checksum, card)
