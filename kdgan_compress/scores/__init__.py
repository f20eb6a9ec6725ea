"""Anomaly scores with statistics fitted on normal images: Gaussians and mixtures of a GAN's features."""

from kdgan_compress.scores.fit import Fit, fit_statistic
from kdgan_compress.scores.scorer import DISCRIMINATOR_POSITIONS, FittedScorer, input_size
from kdgan_compress.scores.settings import ScoreSettings
from kdgan_compress.scores.statistics import STATISTICS, Gaussian, Mixture, PositionGaussian, Statistic, load_statistic

__all__ = [
    "DISCRIMINATOR_POSITIONS",
    "STATISTICS",
    "Fit",
    "FittedScorer",
    "Gaussian",
    "Mixture",
    "PositionGaussian",
    "ScoreSettings",
    "Statistic",
    "fit_statistic",
    "input_size",
    "load_statistic",
]
