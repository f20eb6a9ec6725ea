"""Detection metrics from scores and labels, by scikit-learn and SciPy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.calibration import THRESHOLD_QUANTILE


@dataclass(frozen=True)
class DetectionMetrics:
    """How well scores separate anomalous images (the positive class) from normal ones.

    Attributes:
        auc: Area under the ROC curve, in [0, 1] (Eq. 1).
        average_precision: Average precision, in [0, 1].
        best_f1: Highest F1 over all thresholds: an oracle, since the test labels select the threshold.
        best_f1_threshold: The threshold of ``best_f1``, in units of the score.
        num_normal: Number of normal test images.
        num_novel: Number of anomalous test images.
    """

    auc: float
    average_precision: float
    best_f1: float
    best_f1_threshold: float
    num_normal: int
    num_novel: int


def detection_metrics(scores: NDArray[np.float64], is_anomalous: NDArray[np.bool_]) -> DetectionMetrics:
    """Metrics of scores (N,), higher is more anomalous, and labels (N,) of both classes.

    Raises:
        KdganError: A score is NaN or infinite.
    """
    num_bad = int((~np.isfinite(scores)).sum())
    if num_bad:
        found = f"{num_bad} of {len(scores)} are not"
        raise KdganError("Scores must be finite", found, "Train with a lower learning rate")
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


def score_spearman(scores: NDArray[np.float64], other_scores: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two detectors' scores (N,) of the same images, in [−1, 1].

    0 if one of them gives all images the same score.
    """
    if np.ptp(scores) == 0 or np.ptp(other_scores) == 0:
        return 0.0
    return float(spearmanr(scores, other_scores).statistic)


def quantile_threshold(normal_scores: NDArray[np.float64], quantile: float = THRESHOLD_QUANTILE) -> float:
    """The deployed threshold: this quantile of the scores of normal images."""
    return float(np.quantile(normal_scores, quantile))
