"""Verify a detector file: its golden vectors, the model it was made from, and images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.api.evaluate import labelled_split, score_split
from kdgan_compress.api.export import golden_beside
from kdgan_compress.data import DataSettings
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import detection_metrics, score_images, score_spearman
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model
from kdgan_compress.export.detector_file import weights_sha256
from kdgan_compress.export.gate import LEAST_AGREEMENT, MOST_AUC_LOST
from kdgan_compress.export.golden import read_golden
from kdgan_compress.export.parity import PARITY_TOLERANCE, parity, relative_difference
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.seal import SEAL_KEY


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        ok: Whether every check that was made holds.
        detector: The file.
        golden_max_rel: Largest relative difference from the golden scores.
        golden_worst: Number of the golden vector where that is.
        golden_tolerance: What it may be.
        score_max_rel: Largest relative difference from torch's scores; None without ``against``.
        worst: Where that is: ``test image 17``, or a size of sample images.
        auc: The file's on the test split; None without data.
        auc_diff: The file's AUC minus torch's; None without both.
        label_agreement: Share of test images with the same verdict as torch's; None without both.
        score_spearman: Rank correlation with torch's scores; None without both.
        weights_match: Whether the file was made of the weights of ``against``; None without it.
        failed: What doesn't hold, in words.
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
    """Replay the golden vectors and, if asked, compare with torch and on a labelled test split.

    Args:
        detector: The ``.onnx`` file, with ``golden.npz`` beside it.
        against: The run or model file it was exported from.
        data: Source of labelled test images; None takes those of ``against`` where a ``data_root`` is given.
        normal: The normal class.
        data_root: Where named sets are.

    Raises:
        KdganError: A file can't be read, or the golden vectors are another detector's.
    """
    path = Path(detector)
    opened = Detector(path)
    golden = read_golden(golden_beside(path))
    if golden.file_sha256 != opened.metadata[SEAL_KEY]:
        raise KdganError(
            "Golden vectors must be of this file",
            f"{golden_beside(path)} is of another",
            "Keep detector and golden vectors of one export together",
        )
    scores = np.concatenate([opened.score(image[None]).score for image in golden.images])
    differences = [relative_difference(*pair) for pair in zip(scores, golden.score, strict=True)]
    difference = float(np.max(differences))  # NaN where a score is, which the built-in max would pass over
    found: dict[str, object] = {
        "golden_max_rel": difference,
        "golden_worst": int(np.argmax(differences)),
        "golden_tolerance": golden.tolerance,
    }
    failed = []
    is_exact = opened.metadata["precision"] == "fp32" and "latent_rank" not in opened.metadata
    if not difference <= golden.tolerance:
        failed.append(f"golden scores differ by {difference:.2g}, more than {golden.tolerance:g}")
    checkpoint = None if against is None else load_model(against)
    if checkpoint is not None:
        _require_same_images(opened, checkpoint, str(against))
        generator = checkpoint.build().generator
        found["score_max_rel"] = parity(opened, generator, checkpoint.architecture)
        found["worst"] = "sample images"
        found["weights_match"] = weights_sha256(generator) == opened.metadata["weights_sha256"]
        if not found["weights_match"]:
            failed.append(f"it was not made of the weights of {against}")
    if data is not None or (checkpoint is not None and data_root is not None):
        on_samples: dict[str, object] = {key: found[key] for key in ("score_max_rel", "worst") if key in found}
        found |= _on_data(opened, checkpoint, data, normal, data_root, is_exact)
        if on_samples and not on_samples["score_max_rel"] <= found["score_max_rel"]:  # type: ignore[operator]
            found |= on_samples
    failed += _out_of_tolerance(found, is_exact)
    return Verification(ok=not failed, detector=str(path), failed=tuple(failed), **found)  # type: ignore[arg-type]


def _require_same_images(detector: Detector, checkpoint: Checkpoint, against: str) -> None:
    ours = (detector.image_channels, detector.image_size)
    theirs = (checkpoint.architecture.image_channels, checkpoint.architecture.image_size)
    if ours != theirs:
        raise KdganError(
            "Detector and model must see images of the same channels and size",
            f"the detector sees {ours}, {against} {theirs}",
            "Give the run that the detector was exported from",
        )


def _on_data(
    detector: Detector,
    checkpoint: Checkpoint | None,
    data: str | None,
    normal: str | None,
    data_root: str | None,
    is_exact: bool,
) -> dict[str, object]:
    """AUC on the test split and, where there is torch's model, how far the two agree on it."""
    if checkpoint is None:
        settings = DataSettings(str(data), normal, data_root)
    else:
        own = checkpoint.data
        is_own = data in (None, own.source)
        settings = own.override(data, normal or (own.normal if is_own else None), data_root, novel=own.novel)
    split = labelled_split(settings, detector.image_size, detector.image_channels)
    ours = score_split(detector, split)
    found: dict[str, object] = {"auc": detection_metrics(ours, split.test_is_anomalous).auc}
    if checkpoint is not None:
        theirs = score_images(checkpoint.build().generator, split.test)
        found["auc_diff"] = float(found["auc"]) - detection_metrics(theirs, split.test_is_anomalous).auc  # type: ignore[arg-type]
        threshold = detector.threshold if is_exact else checkpoint.threshold  # the export may have found another
        same = (ours > detector.threshold) == (theirs > threshold)
        found |= {"label_agreement": float(same.mean()), "score_spearman": score_spearman(ours, theirs)}
        found |= _worst(ours, theirs)
    return found


def _worst(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> dict[str, object]:
    differences = [relative_difference(*pair) for pair in zip(ours, theirs, strict=True)]
    return {"score_max_rel": max(differences), "worst": f"test image {int(np.argmax(differences))}"}


def _out_of_tolerance(found: dict[str, object], is_exact: bool) -> list[str]:
    failed = []
    difference, auc_diff, agreement = (found.get(key) for key in ("score_max_rel", "auc_diff", "label_agreement"))
    if is_exact and isinstance(difference, float) and not difference <= PARITY_TOLERANCE:
        failed.append(f"scores differ from torch's by {difference:.2g}, more than {PARITY_TOLERANCE:g}")
    if isinstance(auc_diff, float) and abs(auc_diff) > MOST_AUC_LOST:
        failed.append(f"the AUC differs from torch's by {auc_diff:+.4f}, more than {MOST_AUC_LOST}")
    if is_exact and isinstance(agreement, float) and agreement < LEAST_AGREEMENT:
        failed.append(f"{100 * agreement:.2f} % of verdicts are torch's, fewer than {100 * LEAST_AGREEMENT:g} %")
    return failed
