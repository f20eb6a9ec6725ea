"""Figures over trials: mean, standard deviation and 95 % interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """One figure over trials.

    Attributes:
        mean: Arithmetic mean.
        std: Standard deviation of a trial (n − 1 in the denominator); None of one trial.
        ci95: Half the width of the mean's 95 % confidence interval by Student's t; None of one trial.
        num_trials: n.
    """

    mean: float
    std: float | None
    ci95: float | None
    num_trials: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of at least one value; the interval supposes trials that differ by a normal error."""
    mean, num = float(np.mean(values)), len(values)
    if num == 1:
        return Summary(mean, None, None, 1)
    std = float(np.std(values, ddof=1))
    return Summary(mean, std, float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1)) * std / num**0.5, num)
