"""Verify a detector file: its golden vectors, the model it was exported from, and labelled images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.api.evaluate import labelled_split, score_split
from kdgan_compress.api.export import golden_sidecar
from kdgan_compress.data import DataSettings, Split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import detection_metrics, score_images, score_spearman, weights_sha256
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model
from kdgan_compress.export.precisions import find_precision, is_exact
from kdgan_compress.export.validation.golden import Golden, read_golden
from kdgan_compress.export.validation.parity import PARITY_TOLERANCE, parity, relative_difference
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
    golden = read_golden(golden_sidecar(path))
    if golden.file_sha256 != loaded.metadata[CHECKSUM_KEY]:
        raise KdganError(
            "Golden vectors must belong to this file",
            f"{golden_sidecar(path)} is of another",
            "Keep detector and golden vectors of one export together",
        )
    results = _replay(loaded, golden)
    checkpoint = None if against is None else load_model(against)
    if checkpoint is not None:
        _check_same_images(loaded, checkpoint, str(against))
        results |= _compare_with_torch(loaded, checkpoint)
    if data is not None or (checkpoint is not None and data_root is not None):
        split = _test_split(loaded, checkpoint, data, normal, data_root)
        on_samples = results.get("score_max_rel")
        on_data = _evaluate(loaded, checkpoint, split)
        if on_samples is not None and not on_samples <= on_data["score_max_rel"]:  # type: ignore[operator]
            on_data |= {key: results[key] for key in ("score_max_rel", "worst")}  # keep the larger difference
        results |= on_data
    failed = _failed_checks(results, loaded, str(against))
    return Verification(ok=not failed, detector=str(path), failed=tuple(failed), **results)  # type: ignore[arg-type]


def _replay(detector: Detector, golden: Golden) -> dict[str, object]:
    scores = np.concatenate([detector.score(image[None]).score for image in golden.images])
    differences = [relative_difference(*pair) for pair in zip(scores, golden.score, strict=True)]
    return {
        "golden_max_rel": float(np.max(differences)),  # unlike the built-in max, this propagates NaN
        "golden_worst": int(np.argmax(differences)),
        "golden_tolerance": golden.tolerance,
    }


def _check_same_images(detector: Detector, checkpoint: Checkpoint, against: str) -> None:
    detector_images = (detector.image_channels, detector.image_size)
    model_images = (checkpoint.architecture.image_channels, checkpoint.architecture.image_size)
    if detector_images != model_images:
        raise KdganError(
            "Detector and model need the same image channels and size",
            f"the detector has {detector_images}, {against} has {model_images}",
            "Give the run that the detector was exported from",
        )


def _compare_with_torch(detector: Detector, checkpoint: Checkpoint) -> dict[str, object]:
    generator = checkpoint.build().generator
    return {
        "score_max_rel": parity(detector, generator, checkpoint.architecture),
        "worst": "sample images",
        "weights_match": weights_sha256(generator) == detector.metadata["weights_sha256"],
    }


def _test_split(
    detector: Detector, checkpoint: Checkpoint | None, data: str | None, normal: str | None, data_root: str | None
) -> Split:
    """The labelled test images; settings that are not given are those of the model."""
    if checkpoint is None:
        settings = DataSettings(str(data), normal, data_root)
    else:
        trained_on = checkpoint.data
        is_same_source = data in (None, trained_on.source)
        normal = normal or (trained_on.normal if is_same_source else None)
        settings = trained_on.override(data, normal, data_root, novel=trained_on.novel)
    return labelled_split(settings, detector.image_size, detector.image_channels)


def _evaluate(detector: Detector, checkpoint: Checkpoint | None, split: Split) -> dict[str, object]:
    """AUC on the test split and, if there is a torch model, the agreement with it."""
    scores = score_split(detector, split)
    auc = detection_metrics(scores, split.test_is_anomalous).auc
    if checkpoint is None:
        return {"auc": auc}
    expected = score_images(checkpoint.build().generator, split.test)
    threshold = checkpoint.threshold
    if is_exact(detector.metadata):  # then both have the same threshold, which the export may have computed
        threshold = detector.threshold
    return {
        "auc": auc,
        "auc_diff": auc - detection_metrics(expected, split.test_is_anomalous).auc,
        "label_agreement": float(((scores > detector.threshold) == (expected > threshold)).mean()),
        "score_spearman": score_spearman(scores, expected),
        **_worst(scores, expected),
    }


def _worst(scores: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, object]:
    differences = [relative_difference(*pair) for pair in zip(scores, expected, strict=True)]
    return {"score_max_rel": max(differences), "worst": f"test image {int(np.argmax(differences))}"}


def _failed_checks(results: dict[str, object], detector: Detector, against: str) -> list[str]:
    exact, limits = is_exact(detector.metadata), find_precision(detector.metadata["precision"]).gate
    golden, tolerance = results["golden_max_rel"], results["golden_tolerance"]
    difference, auc_diff, agreement = (results.get(key) for key in ("score_max_rel", "auc_diff", "label_agreement"))
    failed = []
    if not golden <= tolerance:  # type: ignore[operator]
        failed.append(f"golden scores differ by {golden:.2g}, more than {tolerance:g}")
    if results.get("weights_match") is False:
        failed.append(f"it was not exported from the weights of {against}")
    if exact and isinstance(difference, float) and not difference <= PARITY_TOLERANCE:
        failed.append(f"scores differ from torch's by {difference:.2g}, more than {PARITY_TOLERANCE:g}")
    if isinstance(auc_diff, float) and abs(auc_diff) > limits.max_auc_drop:
        failed.append(f"the AUC differs from torch's by {auc_diff:+.4f}, more than {limits.max_auc_drop}")
    if exact and isinstance(agreement, float) and agreement < limits.min_agreement:
        failed.append(
            f"{100 * agreement:.2f} % of decisions equal torch's, fewer than {100 * limits.min_agreement:g} %"
        )
    return failed
