"""Mean, standard deviation and 95 % confidence interval of a metric over trials."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class MeanStd:
    """One metric over trials.

    Attributes:
        mean: Arithmetic mean.
        std: Sample standard deviation (n − 1 in the denominator); None for one trial.
        ci95: Half-width of the mean's 95 % confidence interval by Student's t; None for one trial.
        num_trials: n.
    """

    mean: float
    std: float | None
    ci95: float | None
    num_trials: int


def mean_std(values: Sequence[float]) -> MeanStd:
    """Mean and spread of n ≥ 1 values; the confidence interval assumes normally distributed values."""
    mean, num = float(np.mean(values)), len(values)
    if num == 1:
        return MeanStd(mean, None, None, 1)
    std = float(np.std(values, ddof=1))
    return MeanStd(mean, std, float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1)) * std / num**0.5, num)
