"""Fitted statistics against scikit-learn and SciPy."""

import functools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from kdgan_compress.errors import KdganError
from kdgan_compress.scores import ScoreSettings, load_statistic
from kdgan_compress.scores.fit import fit_gaussian, fit_mixture, fit_position_gaussian, fit_statistic
from kdgan_compress.scores.statistics import Gaussian, PositionGaussian


def _correlated(num_images: int, num_tiles: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size))
    return rng.normal(size=(num_images, num_tiles, size)) @ mixing + rng.normal(size=size)


def _score(statistic: torch.nn.Module, features: np.ndarray) -> np.ndarray:
    return statistic.double()(torch.from_numpy(features)).numpy()  # type: ignore[no-any-return]


def test_gaussian_is_ledoit_wolfs_mahalanobis_distance() -> None:
    features = _correlated(200, 1, 6)
    expected = np.sqrt(LedoitWolf().fit(features[:, 0]).mahalanobis(features[:, 0]))
    np.testing.assert_allclose(_score(fit_gaussian(features), features)[:, 0], expected, rtol=1e-4)


def test_directions_without_variance_are_left_out() -> None:
    features = np.concatenate([_correlated(100, 1, 4), np.ones((100, 1, 3))], axis=2)
    statistic = fit_gaussian(features)
    assert statistic.projection.shape == (7, 4)
    np.testing.assert_allclose(
        _score(statistic, features), _score(fit_gaussian(features[:, :, :4]), features[:, :, :4]), rtol=1e-4
    )


def test_position_gaussian_is_ledoit_wolfs_of_each_position_in_whitened_coordinates() -> None:
    features = _correlated(120, 3, 5)
    features[:, 1] *= 0.2
    features[:, 2] += 4
    statistic = fit_position_gaussian(features, rank=5).double()
    white = statistic.project(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(np.cov(white.reshape(-1, 5).T, bias=True), np.eye(5), atol=1e-4)
    gaussians = [LedoitWolf().fit(white[:, position]) for position in range(3)]
    expected = [np.sqrt(each.mahalanobis(white[:, position])) for position, each in enumerate(gaussians)]
    np.testing.assert_allclose(_score(statistic, features), np.stack(expected, axis=1), rtol=1e-4)


def test_truncated_statistic_is_the_marginal_one() -> None:
    features = _correlated(100, 2, 6)
    full = fit_position_gaussian(features, rank=6).double()
    statistic = full.truncate(3).double()
    projected = full.project(torch.from_numpy(features))
    for position in range(2):
        precision = full.whitening[position] @ full.whitening[position].T
        covariance = np.linalg.inv(precision.numpy())[:3, :3]
        centred = (projected[:, position, :3] - full.means[position, :3]).numpy()
        expected = np.sqrt(np.einsum("nr,rs,ns->n", centred, np.linalg.inv(covariance), centred))
        np.testing.assert_allclose(_score(statistic, features)[:, position], expected, rtol=1e-4)


def test_first_directions_are_the_narrowest_within_positions() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4, 3))
    features[:, :, 1] = np.arange(4) + 0.01 * rng.normal(size=(200, 4))  # differs between positions only
    projection = fit_position_gaussian(features, rank=1).projection[:, 0]
    assert abs(projection[1]) > 20 * abs(projection[[0, 2]]).max()


def test_mixture_is_the_negative_log_likelihood() -> None:
    features = np.concatenate([_correlated(150, 1, 5), _correlated(150, 1, 5, seed=1) + 9])
    rows = features[:, 0]
    statistic = fit_mixture(features, num_components=2, num_pca=3)
    reduced = PCA(3, svd_solver="full").fit_transform(rows)
    mixture = GaussianMixture(2, random_state=0).fit(reduced)
    np.testing.assert_allclose(_score(statistic, features)[:, 0], -mixture.score_samples(reduced), rtol=1e-4)
    components = zip(mixture.means_, mixture.covariances_, strict=True)
    densities = [multivariate_normal(mean, covariance).logpdf(reduced) for mean, covariance in components]
    by_hand = -logsumexp(np.stack(densities) + np.log(mixture.weights_)[:, None], axis=0)
    np.testing.assert_allclose(_score(statistic, features)[:, 0], by_hand, rtol=1e-4)


def test_mixture_that_does_not_converge_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.mixture.GaussianMixture", functools.partial(GaussianMixture, max_iter=1))
    assert fit_mixture(_correlated(150, 1, 5), num_components=2, num_pca=3).means.shape == (2, 3)


def test_number_of_components_is_chosen_by_held_out_likelihood() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 30, size=(5, 4))
    features = (centres[rng.integers(5, size=600)] + rng.normal(size=(600, 4)))[:, None]
    assert fit_statistic(features, ScoreSettings("mixture")).description.startswith("mixture of 5 Gaussians")


def test_positions_are_chosen_by_held_out_likelihood() -> None:
    alike = _correlated(60, 4, 4)
    assert isinstance(fit_statistic(alike, ScoreSettings()).statistic, Gaussian)
    aligned = alike + 20 * np.arange(4)[:, None]
    fit = fit_statistic(aligned, ScoreSettings())
    assert isinstance(fit.statistic, PositionGaussian)
    assert "+" in fit.description


def test_few_photos_fall_back_to_one_gaussian_and_say_so() -> None:
    fit = fit_statistic(_correlated(12, 4, 3) + 20 * np.arange(4)[:, None], ScoreSettings())
    assert isinstance(fit.statistic, Gaussian)
    assert "12 photos are too few" in fit.description


def test_scores_outside_the_fit_are_higher_than_in_it() -> None:
    features = _correlated(80, 1, 30)
    fit = fit_statistic(features, ScoreSettings())
    unseen = np.sqrt(LedoitWolf().fit(_correlated(80, 1, 30)[:, 0]).mahalanobis(features[:, 0]))
    held_out = fit.held_out_scores()
    assert held_out.mean() > 1.05 * unseen.mean()
    new = _correlated(1000, 1, 30)[80:]
    assert held_out.mean() == pytest.approx(_score(fit.statistic, new).mean(), rel=0.1)


def test_scores_outside_the_fit_are_computed_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(features: np.ndarray) -> Gaussian:
        sizes.append(len(features))
        return fit_gaussian(features)

    monkeypatch.setattr("kdgan_compress.scores.fit.fit_gaussian", counted)
    fit = fit_statistic(_correlated(80, 1, 3), ScoreSettings())
    assert sizes == [80]
    fit.held_out_scores()
    assert sizes == [80] + 5 * [64]


def test_a_global_gaussian_sees_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdgan_compress.scores.covariances.MAX_ROWS", 400)
    aligned = _correlated(100, 16, 3) + 100 * (np.arange(16) % 4)[:, None]
    assert fit_gaussian(aligned).projection.abs().max() < 0.5 * fit_gaussian(aligned[:, ::4]).projection.abs().max()


@pytest.mark.parametrize(("features", "message"), [(np.ones((60, 1, 3)), "must differ"), (None, "18 Gaussians for 16")])
def test_impossible_mixtures_are_refused(features: np.ndarray | None, message: str) -> None:
    features = _correlated(20, 1, 3) if features is None else features
    with pytest.raises(KdganError, match=message):
        fit_statistic(features, ScoreSettings("mixture", num_components=18)).held_out_scores()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((20, 1, 3)), "must differ"),
        (np.full((20, 1, 3), np.nan), "must be finite"),
        (np.ones((4, 1, 3)), "needs 10 normal images"),
    ],
)
def test_impossible_fits_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(KdganError, match=message):
        fit_statistic(features, ScoreSettings())


def test_damaged_statistics_are_refused() -> None:
    statistic = fit_position_gaussian(_correlated(50, 2, 3), rank=3)
    buffers = dict(statistic.state_dict())
    assert torch.equal(load_statistic("position-gaussian", buffers).means, statistic.means)
    with pytest.raises(KdganError, match="must be finite"):
        load_statistic("position-gaussian", buffers | {"means": statistic.means * torch.nan})
    with pytest.raises(KdganError, match="positive definite"):
        load_statistic("position-gaussian", buffers | {"whitening": -statistic.whitening})
    with pytest.raises(KdganError, match="must be a known one"):
        load_statistic("unknown", buffers)
    with pytest.raises(KdganError, match="must be a known one"):
        load_statistic("gaussian", buffers)


@pytest.mark.parametrize("wrong", [{"type": "knn"}, {"photo": "mean"}, {"rank": 0}, {"num_components": -1}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(KdganError, match=r"score\."):
        ScoreSettings(**wrong)  # type: ignore[arg-type]
