import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from kdgan_compress.evaluation.metrics import detection_metrics, quantile_threshold, score_spearman


def with_ties(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    is_anomalous = generator.random(60) < 0.3
    is_anomalous[:2] = True, False
    return np.round(generator.normal(size=60) + is_anomalous, 1), is_anomalous


def auc_by_pairs(scores, is_anomalous) -> float:
    """Fraction of pairs in which the anomalous image has the higher score; a tie counts half."""
    wins = [(n > o) + 0.5 * (n == o) for n in scores[is_anomalous] for o in scores[~is_anomalous]]
    return sum(wins) / len(wins)


def f1_at(threshold, scores, is_anomalous) -> float:
    hits = int((is_anomalous & (scores >= threshold)).sum())
    return 2 * hits / (int((scores >= threshold).sum()) + int(is_anomalous.sum()))


@pytest.mark.parametrize("seed", range(5))
def test_auc_and_average_precision(seed):
    scores, is_anomalous = with_ties(seed)
    metrics = detection_metrics(scores, is_anomalous)
    assert metrics.auc == pytest.approx(roc_auc_score(is_anomalous, scores))
    assert metrics.auc == pytest.approx(auc_by_pairs(scores, is_anomalous))
    assert metrics.average_precision == pytest.approx(average_precision_score(is_anomalous, scores))
    assert (metrics.num_normal, metrics.num_novel) == (int((~is_anomalous).sum()), int(is_anomalous.sum()))


@pytest.mark.parametrize("seed", range(5))
def test_best_f1_is_the_best_of_all_thresholds(seed):
    scores, is_anomalous = with_ties(seed)
    metrics = detection_metrics(scores, is_anomalous)
    assert metrics.best_f1 == pytest.approx(max(f1_at(threshold, scores, is_anomalous) for threshold in scores))
    assert metrics.best_f1 == pytest.approx(f1_at(metrics.best_f1_threshold, scores, is_anomalous))


def test_by_hand():
    """Sorted down: novel 4, normal 3, novel 2, normal 1."""
    metrics = detection_metrics(np.array([1.0, 4.0, 3.0, 2.0]), np.array([False, True, False, True]))
    assert metrics.auc == pytest.approx(3 / 4)
    assert metrics.average_precision == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert metrics.best_f1 == pytest.approx(2 * 2 / (3 + 2))
    assert metrics.best_f1_threshold == 2.0


@pytest.mark.parametrize(
    ("scores", "auc", "best_f1"), [([0, 0, 1, 1], 1.0, 1.0), ([1, 1, 0, 0], 0.0, 2 / 3), ([5, 5, 5, 5], 0.5, 2 / 3)]
)
def test_perfect_inverted_and_constant_scores(scores, auc, best_f1):
    metrics = detection_metrics(np.array(scores, dtype=float), np.array([False, False, True, True]))
    assert (metrics.auc, metrics.best_f1) == pytest.approx((auc, best_f1))


def test_scores_are_neither_clamped_nor_squashed():
    """Differences that a sigmoid or float32 would drown still count."""
    scores = 1e6 + np.array([0.0, 1e-6, 2e-6, 3e-6])
    assert detection_metrics(scores, np.array([False, False, True, True])).auc == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_spearman_is_the_correlation_of_ranks(seed):
    scores, _ = with_ties(seed)
    other_scores = np.round(scores**3 + np.random.default_rng(seed + 9).normal(size=60), 1)
    expected = np.corrcoef(rankdata(scores), rankdata(other_scores))[0, 1]
    assert score_spearman(scores, other_scores) == pytest.approx(expected)


def test_spearman_by_hand():
    """1 − 6 Σd² / n(n² − 1) with d = 0, 1, 1, 0."""
    assert score_spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 30, 20, 99])) == pytest.approx(1 - 6 * 2 / 60)


def test_quantile_by_hand():
    """Position 0.99 · 4 = 3.96 between the sorted scores."""
    scores = np.array([5.0, 1.0, 3.0, 2.0, 4.0])
    assert quantile_threshold(scores) == pytest.approx(4.96)
    assert quantile_threshold(scores, 0.5) == 3.0
    assert quantile_threshold(scores, 1.0) == 5.0
    assert type(quantile_threshold(scores)) is float


def test_quantile_keeps_its_share_below():
    scores = np.random.default_rng(0).normal(size=1000)
    assert (scores <= quantile_threshold(scores)).mean() == pytest.approx(0.99)
