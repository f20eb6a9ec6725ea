import numpy as np
import pytest
from scipy import stats

from kdgan_compress.evaluation import MeanStd, mean_over_classes, mean_std


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


def test_the_mean_over_classes_has_the_interval_of_the_seeds():
    rng = np.random.default_rng(0)
    table = rng.uniform(0.5, 1, (4, 3))
    values = {(f"class {c}", f"seed {r}"): table[c, r] for c in range(4) for r in range(3)}
    result = mean_over_classes(values)
    by_seed = table.mean(0)
    low, high = stats.t.interval(0.95, 2, loc=by_seed.mean(), scale=stats.sem(by_seed))
    assert (result.mean - result.ci95, result.mean + result.ci95) == pytest.approx((low, high))
    assert (result.num_runs, result.num_classes, result.num_repeats, result.is_complete) == (12, 4, 3, True)


def test_only_repeats_with_all_classes_count():
    values = {("a", "0"): 0.9, ("b", "0"): 0.7, ("a", "1"): 1.0, ("b", "1"): 0.8, ("a", "2"): 0.1}
    result = mean_over_classes(values)
    assert result.mean == pytest.approx((0.8 + 0.9) / 2)
    assert (result.num_runs, result.num_classes, result.num_repeats, result.is_complete) == (5, 2, 3, False)
    assert result.ci95 == pytest.approx(stats.t.ppf(0.975, 1) * 0.05)


def test_without_a_complete_repeat_the_classes_are_averaged():
    result = mean_over_classes({("a", "0"): 0.9, ("a", "1"): 0.7, ("b", "2"): 0.6})
    assert (result.mean, result.ci95, result.is_complete) == (pytest.approx(0.7), None, False)


def test_one_repeat_has_no_interval():
    result = mean_over_classes({("a", "0"): 0.9, ("b", "0"): 0.5})
    assert (result.mean, result.ci95, result.is_complete) == (pytest.approx(0.7), None, True)
