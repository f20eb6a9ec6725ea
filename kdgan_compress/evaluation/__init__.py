"""Evaluation: anomaly scores of images, and how well they separate anomalous from normal images."""

from kdgan_compress.evaluation.fitting import Fitted, fit_scorer
from kdgan_compress.evaluation.metrics import DetectionMetrics, detection_metrics, quantile_threshold, score_spearman
from kdgan_compress.evaluation.pixel_metrics import PixelMetrics, aupro, pixel_auroc, pixel_metrics
from kdgan_compress.evaluation.score_file import SavedScores, load_scores, save_scores, weights_sha256
from kdgan_compress.evaluation.scoring import encode, map_photos, paper_scores, recalibrate, reconstruct, score_images
from kdgan_compress.evaluation.summary import ClassMean, MeanStd, mean_over_classes, mean_std

__all__ = [
    "ClassMean",
    "DetectionMetrics",
    "Fitted",
    "MeanStd",
    "PixelMetrics",
    "SavedScores",
    "aupro",
    "detection_metrics",
    "encode",
    "fit_scorer",
    "load_scores",
    "map_photos",
    "mean_over_classes",
    "mean_std",
    "paper_scores",
    "pixel_auroc",
    "pixel_metrics",
    "quantile_threshold",
    "recalibrate",
    "reconstruct",
    "save_scores",
    "score_images",
    "score_spearman",
    "weights_sha256",
]
