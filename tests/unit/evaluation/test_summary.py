import numpy as np
import pytest
from scipy import stats

from kdgan_compress.evaluation import MeanStd, mean_std


@pytest.mark.parametrize("num", [2, 3, 10, 40])
def test_mean_deviation_and_interval(num):
    values = np.random.default_rng(num).normal(0.8, 0.05, num).tolist()
    summary = mean_std(values)
    low, high = stats.t.interval(0.95, num - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (summary.mean - summary.ci95, summary.mean + summary.ci95) == pytest.approx((low, high))
    assert (summary.mean, summary.std, summary.num_trials) == pytest.approx(
        (np.mean(values), np.std(values, ddof=1), num)
    )
    assert {type(value) for value in (summary.mean, summary.std, summary.ci95)} == {float}


def test_by_hand():
    """For 0 and 1: s² = 1/2, and Student's t of one degree of freedom at 97.5 % is 12.706."""
    summary = mean_std([0.0, 1.0])
    assert (summary.mean, summary.std) == pytest.approx((0.5, 0.5**0.5))
    assert summary.ci95 == pytest.approx(12.706 / 2, rel=1e-4)


def test_one_trial_has_no_spread():
    assert mean_std([0.7]) == MeanStd(0.7, None, None, 1)


def test_equal_trials_have_a_spread_of_zero():
    assert mean_std([0.75] * 3) == MeanStd(0.75, 0.0, 0.0, 3)
