"""Keep fewer directions of a Gaussian per grid position: a smaller file, with a threshold of its own and a stated loss."""

from typing import cast

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import score_images
from kdgan_compress.export.validation.gate import (
    Agreement,
    ThresholdRule,
    ValidationData,
    ValidationScores,
    measure_agreement,
    raise_to_held_out,
)
from kdgan_compress.scores import FittedScorer, PositionGaussian


def truncate_rank(scorer: nn.Module, rank: int) -> FittedScorer:
    """The same scorer with the statistic of the first ``rank`` directions.

    Raises:
        KdganError: The score is not a Gaussian per grid position, or it does not have more directions than that.
    """
    statistic = scorer.statistic if isinstance(scorer, FittedScorer) else None
    if not isinstance(statistic, PositionGaussian):
        found = "this score has none" if statistic is None else f"this score is a {statistic.name}"
        raise KdganError("--rank is for Gaussians per grid position", found, "Leave it out")
    full = statistic.means.shape[1]
    if not 1 <= rank < full:
        raise KdganError(f"The rank must be 1 to {full - 1}", f"got {rank}", f"Leave it out to keep all {full}")
    fitted = cast(FittedScorer, scorer)
    return FittedScorer(
        fitted.generator, statistic.truncate(rank), fitted.features, fitted.grid, fitted.photo
    ).eval()


def measure_truncation(
    scorer: nn.Module, truncated: nn.Module, threshold: float, data: ValidationData
) -> tuple[float, Agreement]:
    """The threshold of a truncated scorer, and how its results differ from those of the whole one.

    Args:
        scorer: The whole scorer.
        truncated: The truncated one.
        threshold: Of the whole scorer.
        data: Images of the kind that it was trained on.
    """
    exact, changed = (_scores(each, data) for each in (scorer, truncated))
    rule, limit = ThresholdRule(), threshold
    if data.in_fit:
        normals = raise_to_held_out(changed.normals, exact.normals, threshold)
    else:
        normals, limit = changed.normals, rule.find(exact.normals, exact.test, data)
    new = rule.find(normals, changed.test, data)
    return new, measure_agreement(changed, exact, (new, limit), data)


def _scores(scorer: nn.Module, data: ValidationData) -> ValidationScores:
    images: list[Tensor] = [torch.from_numpy(each).permute(0, 3, 1, 2) for each in (data.normals, data.test)]
    return ValidationScores(*(score_images(scorer, each) for each in images))
