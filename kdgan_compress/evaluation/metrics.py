"""Figures of a detector from its scores and the labels, by scikit-learn and SciPy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from kdgan_compress.errors import KdganError

THRESHOLD_QUANTILE = 0.99


@dataclass(frozen=True)
class DetectionMetrics:
    """How scores separate novel images (the positive class) from normal ones.

    Attributes:
        auc: Area under the ROC curve, in [0, 1] (Eq. 1).
        average_precision: Area under the precision-recall curve as average precision, in [0, 1].
        best_f1: The highest F1 of any threshold: an oracle, since the test labels choose it.
        best_f1_threshold: That oracle's threshold, in units of the score.
        num_normal: Normal test images.
        num_novel: Novel test images.
    """

    auc: float
    average_precision: float
    best_f1: float
    best_f1_threshold: float
    num_normal: int
    num_novel: int


def detection_metrics(scores: NDArray[np.float64], is_anomalous: NDArray[np.bool_]) -> DetectionMetrics:
    """Figures of scores (N,), higher is more novel, against labels (N,) of which both kinds must be there.

    Raises:
        KdganError: A score is NaN or infinite.
    """
    num_bad = int((~np.isfinite(scores)).sum())
    if num_bad:
        raise KdganError(
            "Scores must be finite", f"{num_bad} of {len(scores)} are not", "Train the model again at a lower rate"
        )
    precision, recall, thresholds = precision_recall_curve(is_anomalous, scores)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], np.finfo(float).tiny)
    best = int(np.argmax(f1))
    return DetectionMetrics(
        auc=float(roc_auc_score(is_anomalous, scores)),
        average_precision=float(average_precision_score(is_anomalous, scores)),
        best_f1=float(f1[best]),
        best_f1_threshold=float(thresholds[best]),
        num_normal=int((~is_anomalous).sum()),
        num_novel=int(is_anomalous.sum()),
    )


def score_spearman(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two detectors' scores (N,) of the same images, in [−1, 1].

    0 where either gives one and the same score to all.
    """
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return 0.0
    return float(spearmanr(ours, theirs).statistic)


def quantile_threshold(normal_scores: NDArray[np.float64], quantile: float = THRESHOLD_QUANTILE) -> float:
    """The score that this share of normal training images stays at or below: the deployed threshold."""
    return float(np.quantile(normal_scores, quantile))
