"""Keep fewer directions of a Gaussian per grid position: a smaller file, with a threshold of its own and a stated loss.

A threshold needs scores of photos outside the fit, and how much higher these are depends on the rank: a Gaussian of 64
directions, fitted to 200 photos, gives other photos twice the distance, one of 16 directions hardly more. So the
threshold of a lower rank follows from scores by statistics that were fitted without the photo, as in training, and not
from the ratio of scores inside the fit.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import score_images
from kdgan_compress.evaluation.scoring import position_features
from kdgan_compress.export.validation.gate import (
    Agreement,
    ThresholdRule,
    ValidationData,
    ValidationScores,
    measure_agreement,
)
from kdgan_compress.scores import FittedScorer, PositionGaussian, ScoreSettings
from kdgan_compress.scores.fit import truncated_held_out_scores


def truncate_rank(scorer: nn.Module, rank: int) -> FittedScorer:
    """The same scorer with the statistic of the first ``rank`` directions.

    Raises:
        KdganError: The score is not a Gaussian per grid position, or it does not have more directions than that.
    """
    statistic = scorer.statistic if isinstance(scorer, FittedScorer) else None
    features = scorer.features if isinstance(scorer, FittedScorer) else None
    if not isinstance(statistic, PositionGaussian) or features == "discriminator":
        found = "this score has none" if statistic is None else f"this score is a {statistic.name} of {features}"
        raise KdganError("--rank is for Gaussians per grid position of latent codes", found, "Leave it out")
    full = statistic.means.shape[1]
    if not 1 <= rank < full:
        raise KdganError(f"The rank must be 1 to {full - 1}", f"got {rank}", f"Leave it out to keep all {full}")
    fitted = cast("FittedScorer", scorer)
    return FittedScorer(fitted.generator, statistic.truncate(rank), fitted.features, fitted.grid, fitted.photo).eval()


def measure_truncation(
    scorer: nn.Module, truncated: FittedScorer, threshold: float, data: ValidationData
) -> tuple[float, Agreement]:
    """The threshold of a truncated scorer, and how its results differ from those of the whole one.

    Args:
        scorer: The whole scorer.
        truncated: The truncated one.
        threshold: Of the whole scorer.
        data: Images of the kind that it was trained on. If they are those of the fit, the folds are those of training.
    """
    whole = cast("FittedScorer", scorer)
    exact, changed = (_scores(each, data) for each in (whole, truncated))
    normals, rule = changed.normals, ThresholdRule()
    if data.in_fit:
        rank, keep = (_statistic(each).means.shape[1] for each in (whole, truncated))
        settings = ScoreSettings("gaussian", whole.features, positions="per-position", rank=rank, photo=whole.photo)
        normals = truncated_held_out_scores(position_features(whole, _tensor(data.normals)), settings, keep)
    else:
        threshold = rule.find(exact.normals, exact.test, data)
    new = rule.find(normals, changed.test, data)
    return new, measure_agreement(changed, exact, (new, threshold), data)


def _statistic(scorer: FittedScorer) -> PositionGaussian:
    assert isinstance(scorer.statistic, PositionGaussian)
    return scorer.statistic


def _scores(scorer: nn.Module, data: ValidationData) -> ValidationScores:
    return ValidationScores(*(score_images(scorer, _tensor(each)) for each in (data.normals, data.test)))


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)
