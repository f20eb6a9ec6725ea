import numpy as np
import pytest

from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import metrics, quantile_threshold
from kdgan_compress.export.validation.gate import ThresholdRule
from kdgan_compress.runtime.calibration import THRESHOLD_QUANTILE, find_threshold


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("number", [1, 2, 20, 500])
def test_the_threshold_is_that_of_an_export(quantile, number):
    scores = np.random.default_rng(number).gamma(5, size=number).astype(np.float32)
    found = find_threshold(scores, 4.0, quantile)
    assert found.threshold == quantile_threshold(scores.astype(np.float64), quantile)
    assert found.threshold_rule == f"{quantile:g} quantile of {number} good photos' scores, by calibrate"
    assert (found.old_threshold, found.num_photos) == (4.0, number)
    assert found.alarms_before == sum(score > 4 for score in scores)
    assert found.alarms_after == sum(score > np.float32(found.threshold) for score in scores)
    assert found.alarms_after <= (1 - quantile) * number + 1e-9 or number < 1 / (1 - quantile)


def test_scores_may_be_negative():
    found = find_threshold(np.float32([-5, -4, -3, -2]), -4.5, 0.5)
    assert (found.threshold, found.alarms_before, found.alarms_after) == (-3.5, 3, 2)


def test_decisions_are_those_of_float32():
    """The file compares in float32: 0.1 as float64 is below 0.1 as float32."""
    found = find_threshold(np.full(30, 0.1, np.float32), 0.1)
    assert (found.alarms_before, found.alarms_after) == (0, 0)


def test_the_default_is_that_of_an_export():
    assert THRESHOLD_QUANTILE == metrics.THRESHOLD_QUANTILE == ThresholdRule().quantile


@pytest.mark.parametrize("quantile", [0, 1, -0.1, 1.5, float("nan")])
def test_quantiles_that_are_none(quantile):
    with pytest.raises(KdganError, match="between 0 and 1"):
        find_threshold(np.float32([1]), 1.0, quantile)


def test_no_photos():
    with pytest.raises(KdganError, match="needs good photos"):
        find_threshold(np.empty(0, np.float32), 1.0)
