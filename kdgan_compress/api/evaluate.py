"""How well a model separates anomalous from normal images, and how close a student is to its teacher."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.api.anomaly_maps import map_split, measure_maps, write_maps
from kdgan_compress.api.detector_data import at_detector_size
from kdgan_compress.data import DataSettings, Split, load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import fit_scorer, load_scores, paper_scores, score_images
from kdgan_compress.evaluation.metrics import DetectionMetrics, detection_metrics, score_spearman
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model, model_path
from kdgan_compress.experiment.run_folder import SCORES_FILE
from kdgan_compress.runtime import Detector

ONNX_BATCH_SIZE = 256

Mode = Literal["deployed", "paper"]


@dataclass(frozen=True, kw_only=True)
class Evaluation(DetectionMetrics):
    """Metrics on the whole test split by the last weights or, with EMA, their average; fractions, not percent.

    Attributes:
        model: The evaluated model.
        data: Name of the data and its normal class.
        auc_raw: The AUC of the last weights without EMA; None if not requested or trained without EMA.
        mode: ``"deployed"``: by the score that is exported. ``"paper"``: by scores scaled over the test set.
        threshold: The model's threshold, set on normal training images; None in the paper's mode and for a model that
            was imported without data, like the two rates.
        fpr: False-positive rate: fraction of normal test images above the threshold.
        tpr: True-positive rate: fraction of anomalous test images above the threshold.
        auc_gap: The teacher's AUC minus this one; None without a teacher, or if its file is missing.
        score_spearman: Spearman correlation with the teacher's scores; None without a teacher.
        teacher: The teacher that it was compared with.
        pixel_auc: AUROC of the anomaly maps' pixels; None without tiles or masks.
        aupro: Area under the per-region overlap up to a false-positive rate of 0.3; None like ``pixel_auc``.
        num_masks: Photos with a mask of their defects.
        maps: Folder with the heat maps and the picture of the best and worst cases; None unless asked for.
    """

    model: str
    data: str
    auc_raw: float | None = None
    mode: Mode
    threshold: float | None
    fpr: float | None
    tpr: float | None
    auc_gap: float | None = None
    score_spearman: float | None = None
    teacher: str | None = None
    pixel_auc: float | None = None
    aupro: float | None = None
    num_masks: int = 0
    maps: str | None = None


def evaluate(
    model: str | Path,
    *,
    data: str | None = None,
    normal: str | None = None,
    data_root: str | None = None,
    protocol: Mapping[str, Any] | None = None,
    teacher: str | Path | None = None,
    mode: Mode = "deployed",
    raw: bool = False,
    maps: str | Path | None = None,
) -> Evaluation:
    """Evaluate a run folder, a model file or an exported ``.onnx`` detector.

    Args:
        model: The model.
        data: Source of the images; None for those the model was trained on, which a detector file does not store.
        normal: The normal class.
        data_root: Where named data sets are.
        protocol: Further attributes of ``DataSettings`` that differ from the model's; a detector starts from ``simo``.
        teacher: The model to compare with; None for the one a student was distilled from, if it still exists.
        mode: ``"paper"`` scores like CVGAD's paper (``evaluation.paper_scores``); it compares with no teacher.
        raw: Also measure ``auc_raw``, of the weights without EMA.
        maps: Folder to write heat maps of the test photos to, and ``cases.png`` with the best and worst cases.

    Raises:
        KdganError: The model or data can't be read, the test split lacks normal or anomalous images, or the model's
            score does not have the mode.
    """
    protocol = protocol or {}
    if mode == "paper" and teacher is not None:
        raise KdganError("The paper's mode compares with no teacher", f"got {teacher}", "Leave out --teacher or --mode")
    if Path(model).suffix == ".onnx":
        if mode == "paper":
            hint = "Give the run or model file it was exported from"
            raise KdganError("The paper's mode needs the model's score terms", "a detector has only the score", hint)
        if data is None:
            raise KdganError("Evaluating an .onnx detector needs data", "got none", "Give --data (and --normal)")
        detector = Detector(model)
        settings = at_detector_size(DataSettings(data, normal, data_root, **protocol), detector)
        split = labelled_split(settings, detector.image_size, detector.image_channels)
        scores = score_split(detector, split)
        evaluation = _evaluation(model, settings, split, scores, detector.threshold)
        evaluation = _with_maps(evaluation, detector, split, scores, maps)
    else:
        checkpoint = load_model(model)
        settings = _settings(checkpoint.data, data, normal, data_root, protocol)
        split = labelled_split(settings, checkpoint.architecture.image_size, checkpoint.architecture.image_channels)
        if mode == "paper":
            if maps is not None or raw:
                hint = "Leave them out, or leave out --mode paper"
                raise KdganError("--mode paper computes scores of images only", "got --maps or --raw", hint)
            scores = paper_scores(checkpoint.build().generator, split.test)
            return _evaluation(model, settings, split, scores, None, mode)
        scores = _model_scores(model, checkpoint, split)
        evaluation = _evaluation(model, settings, split, scores, checkpoint.threshold)
        evaluation = _with_maps(evaluation, checkpoint, split, scores, maps)
        if raw and (without_ema := checkpoint.build_without_ema()) is not None:
            fitted = fit_scorer(
                without_ema.generator, split, checkpoint.score, checkpoint.grid, without_ema.discriminator
            )
            auc_raw = detection_metrics(score_images(fitted.scorer, split.test), split.test_is_anomalous).auc
            evaluation = dataclasses.replace(evaluation, auc_raw=auc_raw)
        teacher = teacher or checkpoint.provenance.get("teacher")
        if teacher is not None and not model_path(teacher).exists():
            return dataclasses.replace(evaluation, teacher=str(teacher))
    return evaluation if teacher is None else _compare_with_teacher(evaluation, teacher, settings, split, scores)


def _settings(
    trained_on: DataSettings, data: str | None, normal: str | None, data_root: str | None, protocol: Mapping[str, Any]
) -> DataSettings:
    """The images a model was trained on, or others; by the same protocol also with the same novel class."""
    if protocol.get("protocol", trained_on.protocol) == trained_on.protocol:
        protocol = {"novel": trained_on.novel, **protocol}
    return trained_on.override(data, normal, data_root, **protocol)


def labelled_split(data: DataSettings, image_size: int, image_channels: int) -> Split:
    """``load_split``, with a KdganError if the test split lacks normal or anomalous images."""
    split = load_split(data, image_size, image_channels)
    if not split.is_labelled:
        num_anomalous = int(split.test_is_anomalous.sum())
        found = f"found {len(split.test) - num_anomalous} normal and {num_anomalous} anomalous"
        hint = "Add labelled images (a folder's test/good and test/<defect>)"
        raise KdganError("Evaluation needs both normal and anomalous test images", found, hint)
    return split


def score_split(detector: Detector, split: Split) -> NDArray[np.float64]:
    """A detector's scores (M,) of the test images, M ≥ 1, which need to have the network's size."""
    batches = [batch.permute(0, 2, 3, 1).contiguous().numpy() for batch in split.test.split(ONNX_BATCH_SIZE)]
    return np.concatenate([detector.score(batch).score for batch in batches]).astype(np.float64)


def _model_scores(model: str | Path, checkpoint: Checkpoint, split: Split) -> NDArray[np.float64]:
    """The scores of the test images, from the run folder's file if it has them."""
    scorer = checkpoint.scorer()
    saved = load_scores(model_path(model).with_name(SCORES_FILE))
    if saved is not None and saved.matches(scorer, split):
        return saved.test_scores
    return score_images(scorer, split.test)


def _with_maps(
    evaluation: Evaluation,
    model: Checkpoint | Detector,
    split: Split,
    scores: NDArray[np.float64],
    folder: str | Path | None,
) -> Evaluation:
    """The evaluation with the pixel metrics of the maps, which are drawn if a folder is given."""
    if folder is None and not any(split.test_masks):
        return evaluation
    if folder is not None and evaluation.threshold is None:
        raise KdganError("Maps need a threshold", "the model has none", "Import it again with --data")
    found = map_split(model, split)
    measured = measure_maps(found, split)
    if folder is not None and evaluation.threshold is not None:
        write_maps(folder, found, split, scores, evaluation.threshold)
    return dataclasses.replace(
        evaluation,
        pixel_auc=None if measured is None else measured.pixel_auc,
        aupro=None if measured is None else measured.aupro,
        num_masks=0 if measured is None else measured.num_masks,
        maps=None if folder is None else str(folder),
    )


def _evaluation(
    model: str | Path,
    data: DataSettings,
    split: Split,
    scores: NDArray[np.float64],
    threshold: float | None,
    mode: Mode = "deployed",
) -> Evaluation:
    normal, anomalous = (
        None if threshold is None else float((scores[split.test_is_anomalous == kind] > threshold).mean())
        for kind in (False, True)
    )
    return Evaluation(
        **dataclasses.asdict(detection_metrics(scores, split.test_is_anomalous)),
        model=str(model),
        data=data.name,
        mode=mode,
        threshold=threshold,
        fpr=normal,
        tpr=anomalous,
    )


def _compare_with_teacher(
    evaluation: Evaluation, teacher: str | Path, settings: DataSettings, split: Split, scores: NDArray[np.float64]
) -> Evaluation:
    checkpoint = load_model(teacher)
    channels, side = checkpoint.architecture.image_channels, checkpoint.architecture.image_size
    if checkpoint.grid is None and not split.is_tiled and side > split.test.shape[-1]:  # a student of smaller images
        split = load_split(settings, side, channels)
    height, width = (side, side) if checkpoint.grid is None else checkpoint.grid.frame
    teacher_shape, shape = (channels, height, width), tuple(split.test.shape[1:])
    if shape != teacher_shape:
        hint = "Give the teacher that this student was distilled from"
        raise KdganError("Teacher and student need images of the same shape", f"got {teacher_shape} and {shape}", hint)
    teacher_scores = _model_scores(teacher, checkpoint, split)
    return dataclasses.replace(
        evaluation,
        auc_gap=detection_metrics(teacher_scores, split.test_is_anomalous).auc - evaluation.auc,
        score_spearman=score_spearman(scores, teacher_scores),
        teacher=str(teacher),
    )
