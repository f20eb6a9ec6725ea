"""Evaluation: anomaly scores of images, and how well they separate anomalous from normal images."""

from kdgan_compress.evaluation.metrics import DetectionMetrics, detection_metrics, quantile_threshold, score_spearman
from kdgan_compress.evaluation.score_file import SavedScores, load_scores, save_scores, weights_sha256
from kdgan_compress.evaluation.scoring import encode, paper_scores, recalibrate, reconstruct, score_images
from kdgan_compress.evaluation.summary import Summary, summarise

__all__ = [
    "DetectionMetrics",
    "SavedScores",
    "Summary",
    "detection_metrics",
    "encode",
    "load_scores",
    "paper_scores",
    "quantile_threshold",
    "recalibrate",
    "reconstruct",
    "save_scores",
    "score_images",
    "score_spearman",
    "summarise",
    "weights_sha256",
]
