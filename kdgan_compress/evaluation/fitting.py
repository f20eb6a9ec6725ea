"""Turn a trained generator into the module that is scored: its fitted statistic, its tiles and its normal scores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kdgan_compress.data import Split, TileGrid
from kdgan_compress.evaluation.scoring import MAX_CALIBRATION_IMAGES, position_features, recalibrate, score_images
from kdgan_compress.scores import FittedScorer, ScoreSettings
from kdgan_compress.scores.fit import MIN_IMAGES, fit_statistic


@dataclass(frozen=True, eq=False)
class Fitted:
    """A generator that is ready to score.

    Attributes:
        scorer: Module with ``anomaly_score``: the generator itself, or a ``FittedScorer`` around it.
        normal_scores: Scores of normal images that took no part in fitting the statistic.
        scored: What these scores are, in words.
        description: The score in words.
    """

    scorer: nn.Module
    normal_scores: NDArray[np.float64]
    scored: str
    description: str


def fit_scorer(
    generator: nn.Module,
    split: Split,
    settings: ScoreSettings,
    grid: TileGrid | None = None,
    discriminator: nn.Module | None = None,
) -> Fitted:
    """Re-estimate batch norms, fit the score's statistic to normal images and score normal images outside the fit.

    These are the split's held-out images. Without any, each image is scored by a statistic that was fitted without it
    (five folds). Fewer than 10 normal images are too few for a statistic, and a network without the method
    ``latents`` or ``position_features`` has nothing to fit it to; then the generator's own score is used.

    Args:
        generator: With ``anomaly_score`` and, for a fitted score, ``latents``.
        split: The images of the experiment.
        settings: The score.
        grid: How photos are cut into tiles; None without tiles.
        discriminator: With ``position_features``, if the settings name its features.

    Raises:
        KdganError: The features of normal images are not finite, or all equal.
    """
    recalibrate(generator, split.train)
    held_out = "held-out training" if split.has_holdout else "training"
    scored = f"{len(split.calibration)} {held_out} normals' scores"
    network, method = (discriminator, "position_features") if settings.uses_discriminator else (generator, "latents")
    if settings.type == "norm" or len(split.normals) < MIN_IMAGES or network is None or not hasattr(network, method):
        scorer = generator if grid is None else FittedScorer(generator, None, grid=grid, photo=settings.photo)
        description = "the generator's own score"
        if settings.type != "norm" and not hasattr(network, method):
            owner = "its discriminator" if settings.uses_discriminator else "it"
            description += f": {owner} has no method {method} for a fitted one"
        elif settings.type != "norm":
            description += f": {len(split.normals)} normal images are too few for a fitted one ({MIN_IMAGES})"
        return Fitted(scorer, score_images(scorer, split.calibration), scored, description)
    if network is not generator:
        recalibrate(network, split.train)
    unfitted = FittedScorer(network, None, settings.fitted_features, grid, settings.photo)
    chosen = split.normals[:: -(-len(split.normals) // MAX_CALIBRATION_IMAGES)]
    fit = fit_statistic(position_features(unfitted, chosen), settings)
    scorer = FittedScorer(network, fit.statistic, settings.fitted_features, grid, settings.photo)
    if split.has_holdout:
        return Fitted(scorer, score_images(scorer, split.calibration), scored, fit.description)
    what = "normal photos" if split.is_tiled else "training normals"
    scored = f"{len(chosen)} {what}' scores, each by a statistic that was fitted without it"
    return Fitted(scorer, fit.held_out_scores(), scored, fit.description)
