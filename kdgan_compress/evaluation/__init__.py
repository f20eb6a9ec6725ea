"""Evaluation: scores of images, and how well they separate novel from normal."""

from kdgan_compress.evaluation.metrics import DetectionMetrics, detection_metrics, quantile_threshold, score_spearman
from kdgan_compress.evaluation.scores import encode, paper_scores, recalibrate, reconstruct, score_images
from kdgan_compress.evaluation.summary import Summary, summarise

__all__ = [
    "DetectionMetrics",
    "Summary",
    "detection_metrics",
    "encode",
    "paper_scores",
    "quantile_threshold",
    "recalibrate",
    "reconstruct",
    "score_images",
    "score_spearman",
    "summarise",
]
