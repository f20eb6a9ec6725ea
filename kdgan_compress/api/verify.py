"""Verify a detector file: its golden vectors, the model it was exported from, and labelled images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.api.detector_data import at_detector_size, scorer_of
from kdgan_compress.api.evaluate import labelled_split, score_split
from kdgan_compress.data import DataSettings, Split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import detection_metrics, score_images, score_spearman, weights_sha256
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model
from kdgan_compress.export.packaging.sidecar_names import golden_sidecar
from kdgan_compress.export.precisions import find_precision, is_exact
from kdgan_compress.export.validation.golden import Golden, golden_shapes, read_golden, sample_map
from kdgan_compress.export.validation.parity import (
    map_difference,
    parity,
    parity_tolerance,
    relative_difference,
)
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY


@dataclass(frozen=True)
class Verification:
    """Results of all checks.

    Attributes:
        ok: Whether every check passed.
        detector: The file.
        golden_max_rel: Largest relative difference from the golden scores.
        golden_worst: Index of the golden vector with this difference.
        golden_tolerance: Largest allowed difference.
        golden_map_max_rel: Largest difference from the golden anomaly maps, relative to the largest value of each; None
            without such maps.
        golden_decisions_differ: Number of golden vectors with another decision; scores within the tolerance of the
            threshold are not counted.
        golden_is_complete: Whether the golden vectors are all those of an export, with its tolerance.
        frame: Height and width to which the file resizes photos before it cuts them into tiles; None without tiles.
        map_unit: ``"score"`` if the anomaly map is in units of the score.
        score_max_rel: Largest relative difference from torch's scores; None without ``against``.
        worst: The image with this difference: ``test image 17`` or ``sample images``.
        auc: AUC of the file on the test split; None without data.
        auc_diff: AUC of the file minus torch's; None without data or ``against``.
        label_agreement: Fraction of test images with the same decision as torch; None without data or ``against``.
        score_spearman: Rank correlation with torch's scores; None without data or ``against``.
        weights_match: Whether the file was exported from the weights of ``against``; None without it.
        failed: Messages of the failed checks.
    """

    ok: bool
    detector: str
    golden_max_rel: float
    golden_worst: int
    golden_tolerance: float
    golden_map_max_rel: float | None = None
    golden_decisions_differ: int = 0
    golden_is_complete: bool = True
    frame: tuple[int, int] | None = None
    map_unit: str | None = None
    score_max_rel: float | None = None
    worst: str | None = None
    auc: float | None = None
    auc_diff: float | None = None
    label_agreement: float | None = None
    score_spearman: float | None = None
    weights_match: bool | None = None
    failed: tuple[str, ...] = ()


def verify(
    detector: str | Path,
    *,
    against: str | Path | None = None,
    data: str | None = None,
    normal: str | None = None,
    data_root: str | None = None,
) -> Verification:
    """Replay the golden vectors and, on request, compare with torch and evaluate on a labelled test split.

    Args:
        detector: The ``.onnx`` file; ``golden.npz`` is in the same folder.
        against: The run or model file it was exported from.
        data: Source of labelled test images; None uses those of ``against`` if ``data_root`` is given.
        normal: The normal class.
        data_root: Folder with the named data sets.

    Raises:
        KdganError: A file cannot be read, or the golden vectors belong to another detector.

    Example:
        >>> verify("student.onnx", against="runs/student").ok  # doctest: +SKIP
    """
    path = Path(detector)
    loaded = Detector(path)
    _check_metadata(loaded, path)
    golden = read_golden(golden_sidecar(path))
    if golden.file_sha256 != loaded.metadata[CHECKSUM_KEY]:
        found = f"{golden_sidecar(path)} is of another"
        hint = "Keep detector and golden vectors of one export together"
        raise KdganError("Golden vectors must belong to this file", found, hint)
    results = _replay(loaded, golden) | {"frame": loaded.frame, "map_unit": loaded.map_unit}
    checkpoint = None if against is None else load_model(against)
    if checkpoint is not None:
        results |= _compare_with_torch(loaded, checkpoint, str(against))
    if data is not None or (checkpoint is not None and data_root is not None):
        settings = _data_settings(checkpoint, data, normal, data_root)
        settings = at_detector_size(settings, loaded)
        on_data = _evaluate(loaded, checkpoint, labelled_split(settings, loaded.image_size, loaded.image_channels))
        if checkpoint is not None and not results["score_max_rel"] <= on_data["score_max_rel"]:  # larger, or NaN
            on_data |= {key: results[key] for key in ("score_max_rel", "worst")}
        results |= on_data
    failed = _failed_checks(Verification(ok=False, detector=str(path), **results), loaded, str(against))
    return Verification(ok=not failed, detector=str(path), failed=tuple(failed), **results)


def _check_metadata(detector: Detector, path: Path) -> None:
    if missing := {"precision", "weights_sha256"} - detector.metadata.keys():
        found = f"{path} has no {', '.join(sorted(missing))}"
        raise KdganError("The detector needs this package's metadata", found, "Export the model again")


def _replay(detector: Detector, golden: Golden) -> dict[str, Any]:
    replayed = [detector.score(image[None], maps=bool(golden.maps)) for image in golden.images]
    scores, decisions = (
        np.concatenate(parts) for parts in zip(*((s.score, s.is_anomaly) for s in replayed), strict=True)
    )
    difference, worst = _largest_difference(scores, golden.score)
    tolerance = find_precision(detector.metadata["precision"]).golden_tolerance  # the file's own proves nothing
    is_clear = np.abs(golden.score - detector.threshold) > tolerance * np.abs(golden.score)
    maps = [sample_map(each.anomaly_map) for each in replayed if each.anomaly_map is not None]
    return {
        "golden_map_max_rel": _largest_map_difference(maps, golden) if golden.maps else None,
        "golden_max_rel": difference,
        "golden_worst": worst,
        "golden_tolerance": tolerance,
        "golden_is_complete": _is_complete(detector, golden, tolerance),
        "golden_decisions_differ": int(((decisions != golden.is_anomaly) & is_clear).sum()),
    }


def _is_complete(detector: Detector, golden: Golden, tolerance: float) -> bool:
    num_maps = len(golden.images) if detector.has_anomaly_map else 0
    shapes = [image.shape for image in golden.images]
    return shapes == golden_shapes(detector) and len(golden.maps) == num_maps and golden.tolerance == tolerance


def _largest_difference(scores: NDArray[Any], expected: NDArray[Any]) -> tuple[float, int]:
    """The largest relative difference of scores, and its index."""
    differences = [relative_difference(*pair) for pair in zip(scores, expected, strict=True)]
    return float(np.max(differences)), int(np.argmax(differences))  # unlike the built-in max, these propagate NaN


def _largest_map_difference(maps: list[NDArray[Any]], golden: Golden) -> float:
    if [each.shape for each in maps] != [each.shape for each in golden.maps]:
        return float("inf")
    return float(np.max([map_difference(*pair) for pair in zip(maps, golden.maps, strict=True)]))


def _compare_with_torch(detector: Detector, checkpoint: Checkpoint, against: str) -> dict[str, Any]:
    architecture = checkpoint.architecture
    frame = None if checkpoint.grid is None else checkpoint.grid.frame
    images = (detector.image_channels, detector.image_size, detector.frame)
    expected = (architecture.image_channels, architecture.image_size, frame)
    if images != expected:
        found = f"the detector has {images}, {against} has {expected}"
        hint = "Give the run that the detector was exported from"
        raise KdganError("Detector and model need the same image channels, size and frame", found, hint)
    scorer = scorer_of(checkpoint, detector)
    return {
        "score_max_rel": parity(detector, scorer, architecture),
        "worst": "sample images",
        "weights_match": weights_sha256(scorer) == detector.metadata["weights_sha256"],
    }


def _data_settings(
    checkpoint: Checkpoint | None, data: str | None, normal: str | None, data_root: str | None
) -> DataSettings:
    """The labelled test images; settings that are not given are those of the model."""
    if checkpoint is None:
        return DataSettings(str(data), normal, data_root)
    return checkpoint.data.override(data, normal, data_root, novel=checkpoint.data.novel)


def _evaluate(detector: Detector, checkpoint: Checkpoint | None, split: Split) -> dict[str, Any]:
    """AUC on the test split and, if there is a torch model, the agreement with it."""
    scores = score_split(detector, split)
    auc = detection_metrics(scores, split.test_is_anomalous).auc
    if checkpoint is None:
        return {"auc": auc}
    expected = score_images(scorer_of(checkpoint, detector), split.test)
    # An exact file and its model have the same threshold, which the export may have computed.
    threshold = detector.threshold if is_exact(detector.metadata) else checkpoint.required_threshold
    difference, worst = _largest_difference(scores, expected)
    return {
        "auc": auc,
        "auc_diff": auc - detection_metrics(expected, split.test_is_anomalous).auc,
        "label_agreement": float(((scores > detector.threshold) == (expected > threshold)).mean()),
        "score_spearman": score_spearman(scores, expected),
        "score_max_rel": difference,
        "worst": f"test image {worst}",
    }


def _failed_checks(found: Verification, detector: Detector, against: str) -> list[str]:
    exact, limits = is_exact(detector.metadata), find_precision(detector.metadata["precision"]).gate
    difference, auc_diff, agreement = found.score_max_rel, found.auc_diff, found.label_agreement
    failed = []
    if not found.golden_is_complete:
        failed.append("the golden vectors are not those that an export writes: some are missing, or their tolerance")
    if not found.golden_max_rel <= found.golden_tolerance:
        failed.append(f"golden scores differ by {found.golden_max_rel:.2g}, more than {found.golden_tolerance:g}")
    on_maps = found.golden_map_max_rel
    if on_maps is not None and not on_maps <= found.golden_tolerance:
        failed.append(f"golden maps differ by {on_maps:.2g}, more than {found.golden_tolerance:g}")
    if found.golden_decisions_differ:
        failed.append(f"the decision differs for {found.golden_decisions_differ} golden vectors")
    if found.weights_match is False:
        failed.append(f"it was not exported from the weights of {against}")
    tolerance = parity_tolerance("score" in detector.metadata)
    if exact and difference is not None and not difference <= tolerance:
        failed.append(f"scores differ from torch's by {difference:.2g}, more than {tolerance:g}")
    if auc_diff is not None and abs(auc_diff) > limits.max_auc_drop:
        failed.append(f"the AUC differs from torch's by {auc_diff:+.4f}, more than {limits.max_auc_drop}")
    if exact and agreement is not None and agreement < limits.min_agreement:
        percents = f"{100 * agreement:.2f} % of decisions equal torch's, fewer than {100 * limits.min_agreement:g} %"
        failed.append(percents)
    return failed
