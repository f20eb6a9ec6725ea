"""Mean, standard deviation and 95 % confidence interval of a metric over trials, or over classes and seeds."""

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class ClassMean:
    """The mean of a metric over classes, repeated with several seeds.

    Attributes:
        mean: Mean over the repeats of each repeat's mean over the classes.
        ci95: Half-width of its 95 % confidence interval over the repeats by Student's t; None for one repeat.
        num_runs: Number of values.
        num_classes: Number of classes.
        num_repeats: Number of repeats.
        is_complete: Whether each repeat has a value for each class. Otherwise only the complete repeats count; without
            any, the mean is that of the classes' means, without an interval.
    """

    mean: float
    ci95: float | None
    num_runs: int
    num_classes: int
    num_repeats: int
    is_complete: bool


def mean_over_classes(values: Mapping[tuple[str, str], float]) -> ClassMean:
    """Mean and interval of values by class and repeat, at least one.

    Classes are not a random sample, so they do not enter the interval.
    """
    classes, repeats = ({key[part] for key in values} for part in (0, 1))
    counts = (len(values), len(classes), len(repeats), len(values) == len(classes) * len(repeats))
    complete = [
        float(np.mean([values[name, repeat] for name in classes]))
        for repeat in sorted(repeats)
        if all((name, repeat) in values for name in classes)
    ]
    if complete:
        spread = mean_std(complete)
        return ClassMean(spread.mean, spread.ci95, *counts)
    by_class = [np.mean([value for key, value in values.items() if key[0] == name]) for name in classes]
    return ClassMean(float(np.mean(by_class)), None, *counts)
