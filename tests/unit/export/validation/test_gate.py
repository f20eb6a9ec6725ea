"""Thresholds and agreement against a plain computation with scikit-learn, SciPy and a loop over thresholds."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, roc_auc_score

from kdgan_compress.data import Split
from kdgan_compress.errors import KdganError
from kdgan_compress.export.precisions import GateLimits
from kdgan_compress.export.validation.gate import (
    Agreement,
    ThresholdRule,
    ValidationData,
    ValidationScores,
    measure_agreement,
    raise_to_held_out,
)

NOTHING = np.zeros((0, 4, 4, 1), np.uint8)


def validation(labels=(), num_normals=5) -> ValidationData:
    """Only labels and counts are read here."""
    labels = np.asarray(labels, bool)
    images = np.zeros((len(labels), 4, 4, 1), np.uint8)
    normals = np.zeros((num_normals, 4, 4, 1), np.uint8)
    return ValidationData(normals, normals, images, labels)


def random_case(seed, ties=False):
    noise = np.random.default_rng(seed)
    labels = noise.random(200) < 0.3
    scores = noise.normal(size=200) + labels
    return (np.round(scores, 1) if ties else scores).astype(np.float32).astype(np.float64), labels


@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.99, 0.999])
def test_quantile_of_the_normals(quantile):
    scores = np.random.default_rng(0).gamma(2, size=157)
    found = ThresholdRule(quantile).find(scores, np.empty(0), validation())
    ordered, place = np.sort(scores), quantile * 156
    low = int(place)
    by_hand = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
    assert found == pytest.approx(by_hand) == pytest.approx(np.quantile(scores, quantile))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
def test_best_f1_is_that_of_a_loop_over_thresholds(seed, ties):
    """As float32, which is what a detector holds: the image the threshold lies at must be above it there too."""
    scores, labels = random_case(seed, ties)
    found = ThresholdRule(None).find(np.empty(0), scores, validation(labels))
    best = max(f1_score(labels, scores > threshold) for threshold in [*scores, scores.min() - 1])
    assert f1_score(labels, scores > found) == best
    assert f1_score(labels, scores.astype(np.float32) > np.float32(found)) == best
    assert np.abs(scores - found).min() > 1e-7  # no rounding of another processor turns a verdict


def test_best_f1_of_neighbouring_floats():
    one = np.float32(1)
    scores = np.array([one, np.nextafter(one, np.float32(2))], np.float64)
    found = ThresholdRule(None).find(np.empty(0), scores, validation([False, True]))
    assert (scores.astype(np.float32) > np.float32(found)).tolist() == [False, True]


def test_best_f1_where_everything_is_an_anomaly():
    scores = np.array([3.0, 3.0, 3.0])
    found = ThresholdRule(None).find(np.empty(0), scores, validation([True, True, False]))
    assert np.float32(found) < 3


@pytest.mark.parametrize("labels", [[], [True, True], [False]])
def test_best_f1_needs_labels_of_both_kinds(labels):
    with pytest.raises(KdganError, match="needs labelled images, normal and anomalous; there are") as caught:
        ThresholdRule(None).find(np.ones(5), np.ones(len(labels)), validation(labels))
    assert str(sum(labels)) in caught.value.found


@pytest.mark.parametrize("quantile", [0, 1, -0.1, 1.5, float("nan")])
def test_quantile_out_of_range(quantile):
    with pytest.raises(KdganError, match="quantile must be between 0 and 1; got"):
        ThresholdRule(quantile)


def test_rules_in_words():
    assert ThresholdRule().describe(validation([True] * 3)) == "0.99 quantile of 5 normal images' scores"
    assert ThresholdRule(0.9995).describe(validation()) == "0.9995 quantile of 5 normal images' scores"
    assert ThresholdRule(None).describe(validation([True] * 3)) == "best F1 on 3 labelled images"


@pytest.mark.parametrize(
    ("labels", "expected"), [([], False), ([True], False), ([False], False), ([True, False], True)]
)
def test_whether_there_is_an_auc(labels, expected):
    assert validation(labels).has_labels is expected


@pytest.mark.parametrize("seed", range(4))
def test_agreement_with_labels(seed):
    theirs, labels = random_case(seed)
    ours = theirs + np.random.default_rng(9).normal(0, 0.3, 200)
    normals = np.random.default_rng(1).normal(size=(2, 5))
    found = measure_agreement(
        ValidationScores(normals[0], ours), ValidationScores(normals[1], theirs), (0.7, 0.4), validation(labels)
    )
    same = [(a > 0.7) == (b > 0.4) for a, b in zip(ours, theirs, strict=True)]
    assert found.auc == pytest.approx(roc_auc_score(labels, ours))
    assert found.auc_diff == pytest.approx(roc_auc_score(labels, ours) - roc_auc_score(labels, theirs))
    assert found.label_agreement == pytest.approx(sum(same) / 200)
    assert found.spearman == pytest.approx(spearmanr(ours, theirs).statistic)
    assert found.num_images == 200
    assert 0 < found.label_agreement < 1


@pytest.mark.parametrize("labels", [[], [True] * 6])
def test_agreement_without_labels_is_that_on_normals(labels):
    ours, theirs = np.array([1, 2, 3, 4, 5.0]), np.array([1, 2, 3, 5, 4.0])
    rest = np.arange(len(labels)) * 1.0
    found = measure_agreement(
        ValidationScores(ours, rest), ValidationScores(theirs, rest[::-1]), (3.5, 4.5), validation(labels)
    )
    assert (found.auc, found.auc_diff, found.num_images) == (None, None, 5)
    assert found.label_agreement == pytest.approx(3 / 5 + 1 / 5)  # 3.5 < 4, 5; 4.5 < 5: they differ in the last but one
    assert found.spearman == pytest.approx(0.9)


@pytest.mark.parametrize("threshold", [9.0, 2.0])
def test_scores_inside_a_fit_are_raised_by_what_the_threshold_is_above_them(threshold):
    exact = np.random.default_rng(0).gamma(2, size=500)
    raised = raise_to_held_out(exact, exact, threshold)
    assert np.quantile(raised, 0.99) == pytest.approx(threshold)
    np.testing.assert_allclose(raised / exact, threshold / np.quantile(exact, 0.99))
    np.testing.assert_allclose(raise_to_held_out(exact * 1.1, exact, threshold), raised * 1.1)


def test_log_likelihoods_are_raised_by_a_difference():
    exact = np.random.default_rng(0).normal(-5, 1, size=500)
    raised = raise_to_held_out(exact + 0.1, exact, threshold=-1.0)
    assert np.quantile(raised, 0.99) == pytest.approx(-0.9)
    np.testing.assert_allclose(raised - exact, raised[0] - exact[0])


def test_the_rule_says_that_scores_were_raised():
    inside = dataclasses.replace(validation(), in_fit=True)
    expected = "0.99 quantile of 5 normal images' scores, raised to the level of images outside the fit"
    assert ThresholdRule().describe(inside) == expected


@pytest.mark.parametrize(("is_tiled", "holdout"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("is_fitted", [False, True])
def test_which_normals_are_those_of_the_fit(is_tiled, holdout, is_fitted):
    """Photos calibrate, not the crops; normals that were held out from the fit are not raised."""
    crops, photos, test = torch.zeros(9, 1, 4, 4), torch.zeros(5, 1, 8, 12), torch.zeros(2, 1, 8, 12)
    calibration = photos if is_tiled else crops[:3] if holdout else crops
    split = Split(crops, calibration, test, np.array([False, True]), np.array(["a", "b"]), is_tiled=is_tiled)
    data = ValidationData.from_split(split, is_fitted)
    assert data.train.shape == ((5, 8, 12, 1) if is_tiled else (9, 4, 4, 1))
    assert len(data.normals) == len(calibration)
    assert data.in_fit is (is_fitted and not holdout)


def told(auc_diff=None, label_agreement=1.0, spearman=1.0) -> Agreement:
    return Agreement(None if auc_diff is None else 0.9, auc_diff, label_agreement, spearman, 100)


@pytest.mark.parametrize(
    "good", [told(0.0), told(0.005), told(-0.005), told(0.001, 0.5, 0.5), told(None, 0.99, 0.99), told(None, 1, 1)]
)
def test_gate_holds(good):
    good.check("fp16", GateLimits())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            told(-0.0051),
            "int8 must keep the AUC of fp32 to 0.005; it changes by -0.0051 on 100 images. No file was written",
        ),
        (told(0.006), "it changes by +0.0060"),
        (
            told(None, 0.98, 1.0),
            "must agree with fp32 to 0.99 in decisions and Spearman's correlation; got 0.9800 and 1.0000",
        ),
        (told(None, 1.0, 0.5), "got 1.0000 and 0.5000 on 100 normal images"),
    ],
)
def test_gate_refuses(bad, message):
    with pytest.raises(KdganError, match=re.escape(message)):
        bad.check("int8", GateLimits())
