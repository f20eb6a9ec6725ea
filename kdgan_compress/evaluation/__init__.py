"""Evaluation: scores of images, and how well they separate novel from normal."""

from kdgan_compress.evaluation.metrics import Detection, detection_metrics, quantile_threshold, score_spearman
from kdgan_compress.evaluation.scores import reconstruct, score_images

__all__ = ["Detection", "detection_metrics", "quantile_threshold", "reconstruct", "score_images", "score_spearman"]
