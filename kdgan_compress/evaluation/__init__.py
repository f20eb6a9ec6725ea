"""Evaluation: scores of images, and how well they separate novel from normal."""

from kdgan_compress.evaluation.metrics import Detection, detection_metrics, quantile_threshold, score_spearman
from kdgan_compress.evaluation.scores import encode, fit_on_normals, paper_scores, reconstruct, score_images
from kdgan_compress.evaluation.summary import Summary, summarise

__all__ = [
    "Detection",
    "Summary",
    "detection_metrics",
    "encode",
    "fit_on_normals",
    "paper_scores",
    "quantile_threshold",
    "reconstruct",
    "score_images",
    "score_spearman",
    "summarise",
]
