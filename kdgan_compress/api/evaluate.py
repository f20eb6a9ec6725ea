"""How well a model separates novel from normal images, and how close a student is to its teacher."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.data import DataSettings, Split, load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import detection_metrics, paper_scores, score_images, score_spearman
from kdgan_compress.experiment.models import load_model, model_path
from kdgan_compress.runtime import Detector

ONNX_BATCH = 256

Mode = Literal["deployed", "paper"]


@dataclass(frozen=True)
class Evaluation:
    """Figures on the whole test split; fractions, not percent.

    Attributes:
        model: What was evaluated.
        data: Name of the data and its normal class.
        auc: Area under the ROC curve of the last epoch's (averaged) weights: the headline.
        auc_raw: The same of the raw weights; None where the file has none.
        average_precision: Novel images are the positive class.
        best_f1: Highest F1 of any threshold: an oracle, since the test labels choose it.
        best_f1_threshold: That oracle's threshold.
        num_normal: Normal test images.
        num_novel: Novel test images.
        mode: ``"deployed"``: by the score that is shipped. ``"paper"``: by scores scaled over the test set.
        threshold: The model's own, found on training normals; it and the two rates are None in the paper's mode.
        fpr: Share of normal test images above it.
        tpr: Share of novel test images above it.
        auc_gap: The teacher's AUC minus this one's; None without a teacher, or where its file is gone.
        score_spearman: Spearman's correlation with the teacher's scores; None without a teacher.
        teacher: The teacher it was compared with.
    """

    model: str
    data: str
    auc: float
    auc_raw: float | None
    average_precision: float
    best_f1: float
    best_f1_threshold: float
    num_normal: int
    num_novel: int
    mode: Mode
    threshold: float | None
    fpr: float | None
    tpr: float | None
    auc_gap: float | None = None
    score_spearman: float | None = None
    teacher: str | None = None


def evaluate(
    model: str | Path,
    *,
    data: str | None = None,
    normal: str | None = None,
    data_root: str | None = None,
    protocol: Mapping[str, Any] | None = None,
    teacher: str | Path | None = None,
    mode: Mode = "deployed",
) -> Evaluation:
    """Evaluate a run folder, a model file or an exported ``.onnx`` detector.

    Args:
        model: What to evaluate.
        data: Source of the images; None for those the model was trained on, which a detector file doesn't remember.
        normal: The normal class.
        data_root: Where named sets are.
        protocol: ``protocol``, ``novel``, ``trial``, ``outliers`` and ``num_categories`` of ``DataSettings``, as far as
            they are to differ from the model's; a detector file starts from ``simo``.
        teacher: To compare with; None for the one a student was distilled from, if it is still there.
        mode: ``"paper"`` scores as CVGAD's paper does, for comparison with its figures alone
            (``evaluation.paper_scores``); it does not compare with a teacher.

    Raises:
        KdganError: The model or data can't be read, the test split lacks normal or novel images, or the model has no
            score for the mode.
    """
    if mode == "paper" and teacher is not None:
        raise KdganError("The paper's mode must have no teacher", f"got {teacher}", "Leave one of the two out")
    if Path(model).suffix == ".onnx":
        if mode == "paper":
            fix = "Give the run or model file it was exported from"
            raise KdganError(
                "The paper's mode must have the model's score terms", "a detector has the score alone", fix
            )
        if data is None:
            raise KdganError("Evaluating an .onnx detector must have data", "got none", "Give --data (and --normal)")
        detector, settings = Detector(model), DataSettings(data, normal, data_root, **(protocol or {}))
        split = labelled_split(settings, detector.image_size, detector.image_channels)
        scores = score_split(detector, split)
        evaluation = _figures(model, settings, split, scores, detector.threshold)
    else:
        checkpoint = load_model(model)
        settings = checkpoint.data.override(
            data, normal, data_root, **{"novel": checkpoint.data.novel, **(protocol or {})}
        )
        split = labelled_split(settings, checkpoint.architecture.image_size, checkpoint.architecture.image_channels)
        if mode == "paper":
            return _figures(model, settings, split, paper_scores(checkpoint.build().generator, split.test), None)
        scores = score_images(checkpoint.build().generator, split.test)
        evaluation = _figures(model, settings, split, scores, checkpoint.threshold)
        if (raw := checkpoint.build_without_ema()) is not None:
            auc_raw = detection_metrics(score_images(raw.generator, split.test), split.test_is_anomalous).auc
            evaluation = dataclasses.replace(evaluation, auc_raw=auc_raw)
        teacher = teacher or checkpoint.provenance.get("teacher")
        if teacher is not None and not model_path(teacher).exists():
            return dataclasses.replace(evaluation, teacher=str(teacher))
    return evaluation if teacher is None else _beside_teacher(evaluation, teacher, split, scores)


def labelled_split(data: DataSettings, image_size: int, image_channels: int) -> Split:
    """``load_split`` where figures are wanted.

    Raises:
        KdganError: As there, or the test split lacks normal or novel images.
    """
    split = load_split(data, image_size, image_channels)
    if not split.is_labelled:
        novel, total = int(split.test_is_anomalous.sum()), len(split.test)
        raise KdganError(
            "Evaluation must have both normal and novel test images",
            f"found {total - novel} normal and {novel} novel",
            "Add labelled images (a folder's test/good and test/<defect>)",
        )
    return split


def score_split(detector: Detector, split: Split) -> NDArray[np.float64]:
    """A detector's scores (M,) of the test images, M ≥ 1; the split's are of the network's size.

    Raises:
        KdganError: The detector takes a frame of another size.
    """
    batches = [batch.permute(0, 2, 3, 1).contiguous().numpy() for batch in split.test.split(ONNX_BATCH)]
    return np.concatenate([detector.score(batch).score for batch in batches]).astype(np.float64)


def _figures(
    model: str | Path, data: DataSettings, split: Split, scores: NDArray[np.float64], threshold: float | None
) -> Evaluation:
    novel = split.test_is_anomalous
    return Evaluation(
        model=str(model),
        data=data.name,
        auc_raw=None,
        mode="paper" if threshold is None else "deployed",
        threshold=threshold,
        fpr=None if threshold is None else float((scores[~novel] > threshold).mean()),
        tpr=None if threshold is None else float((scores[novel] > threshold).mean()),
        **dataclasses.asdict(detection_metrics(scores, novel)),
    )


def _beside_teacher(
    evaluation: Evaluation, teacher: str | Path, split: Split, scores: NDArray[np.float64]
) -> Evaluation:
    checkpoint = load_model(teacher)
    seen = (
        checkpoint.architecture.image_channels,
        checkpoint.architecture.image_size,
        checkpoint.architecture.image_size,
    )
    if tuple(split.test.shape[1:]) != seen:
        raise KdganError(
            "Teacher and student must see images of one shape",
            f"got {seen} and {tuple(split.test.shape[1:])}",
            "Give the teacher that this student was distilled from",
        )
    theirs = score_images(checkpoint.build().generator, split.test)
    return dataclasses.replace(
        evaluation,
        auc_gap=detection_metrics(theirs, split.test_is_anomalous).auc - evaluation.auc,
        score_spearman=score_spearman(scores, theirs),
        teacher=str(teacher),
    )
