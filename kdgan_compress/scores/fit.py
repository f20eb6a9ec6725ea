"""Fit a statistic to the features of normal images, and find the scores that normal images have outside the fit.

Covariances are Ledoit and Wolf's shrunk estimates. A Gaussian per grid position is fitted in globally whitened
coordinates: it shrinks towards the identity, so where positions do not matter it approaches the global Gaussian.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError
from kdgan_compress.scores.covariances import (
    RANK_TOL,
    as_rows,
    covariance,
    equal_features_error,
    triangular_whitening,
    whitening,
    with_fixed_signs,
    within_covariance,
)
from kdgan_compress.scores.scorer import by_tile, photo_score
from kdgan_compress.scores.settings import ScoreSettings
from kdgan_compress.scores.statistics import Gaussian, Mixture, PositionGaussian, Statistic, log_determinant_term

if TYPE_CHECKING:
    from jaxtyping import Float

Array = NDArray[np.float64]

NUM_FOLDS = 5
MIN_GAIN = 1.0
"""Nats per tile by which Gaussians per position need to be better: they keep fewer directions than one for all."""

NUM_CHOICE_FOLDS = 2
"""Folds on which a Gaussian per position is compared with one for all."""

MIN_PHOTOS_PER_POSITION = 20
MIN_IMAGES = 2 * NUM_FOLDS
NUM_COMPONENTS = (1, 2, 5, 10, 20, 40)
"""Candidates for the mixture's number of Gaussians."""

MIN_ROWS_PER_COMPONENT = 50


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted statistic.

    Attributes:
        statistic: Fitted on all images.
        description: The statistic in words, with what was chosen and why.
        held_out_scores: Computes each image's score (N,) by a statistic that is fitted without it (five folds).
    """

    statistic: Statistic
    description: str
    held_out_scores: Callable[[], Array]


def fit_statistic(features: Float[np.ndarray, "N P D"], settings: ScoreSettings, seed: int = 0) -> Fit:
    """Fit the statistic that the settings name to the features of N normal images at P positions each.

    Args:
        features: Without tiles, P is 1; of the discriminator, there are 16 for each tile.
        settings: With a type other than ``"norm"``.
        seed: Of the folds and of the mixture's start.

    Raises:
        KdganError: Fewer than 10 images, or features that are not finite or all equal.
    """
    if len(features) < MIN_IMAGES:
        hint = "Add normal images, or choose score.type norm"
        raise KdganError(f"A fitted score needs {MIN_IMAGES} normal images", f"got {len(features)}", hint)
    if not np.isfinite(features).all():
        raise KdganError("The features of normal images must be finite", "found NaN or infinity", "Train again")
    fit, description = _choose(features, settings, seed)
    return Fit(fit(features), description, partial(_held_out_scores, features, settings, fit, seed))


def truncated_held_out_scores(
    features: Float[np.ndarray, "N P D"], settings: ScoreSettings, keep: int, seed: int = 0
) -> Array:
    """Each photo's score by a Gaussian per position that was fitted without it, and truncated to ``keep`` directions.

    With ``keep`` equal to the rank these are the held-out scores of ``fit_statistic`` with the same settings and seed.
    """
    fit = lambda rows: fit_position_gaussian(rows, settings.rank).truncate(keep)  # noqa: E731
    return _held_out_scores(features.astype(np.float64), settings, fit, seed)


def fit_gaussian(features: Array) -> Gaussian:
    """One Gaussian for all tiles of all images, of features (N, P, D)."""
    mean, whiten = whitening(as_rows(features))
    return Gaussian(projection=torch.from_numpy(whiten), offset=torch.from_numpy(mean @ whiten))


def fit_position_gaussian(features: Array, rank: int) -> PositionGaussian:
    """One Gaussian per tile position, of features (N, P, D), in at most ``rank`` directions.

    The directions solve C_within v = λ C_total v; those with the smallest λ come first.
    """
    mean, whiten = whitening(as_rows(features))
    within = within_covariance(features)
    between = covariance(features.mean(0, dtype=np.float64))
    total = whiten.T @ (within + between) @ whiten
    within = whiten.T @ within @ whiten
    _, directions = scipy.linalg.eigh(within, total, subset_by_index=(0, min(rank, len(total)) - 1))
    return _gaussian_per_position(features, mean, with_fixed_signs(whiten @ directions))


def fit_scaled_positions(features: Array) -> PositionGaussian:
    """One Gaussian per position, of features (N, P, D) that are scaled to unit variance over all positions.

    Shrinkage acts on the scaled features. Features without variance are left out.
    """
    rows = features.reshape(-1, features.shape[-1])
    mean, std = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    keep = std > RANK_TOL * std.max()
    if not keep.any():
        raise equal_features_error()
    return _gaussian_per_position(features, mean, np.diag(1 / np.where(keep, std, 1.0))[:, keep])


def _gaussian_per_position(features: Array, mean: Array, projection: Array) -> PositionGaussian:
    """Ledoit and Wolf's Gaussian at each position of features (N, P, D), centred by (D,) and projected by (D, r)."""
    offset = mean @ projection
    projected = features @ projection - offset
    gaussians = [triangular_whitening(projected[:, position]) for position in range(projected.shape[1])]
    return PositionGaussian(
        projection=torch.from_numpy(projection),
        offset=torch.from_numpy(offset),
        means=torch.from_numpy(projected.mean(0)),
        whitening=torch.from_numpy(np.stack(gaussians)),
    )


def fit_mixture(features: Array, num_components: int, num_pca: int, seed: int = 0) -> Mixture:
    """K Gaussians with full covariances on the leading principal components of features (N, P, D)."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = as_rows(features)
    if num_components > len(rows):
        found = f"got {num_components} Gaussians for {len(rows)} images or tiles"
        raise KdganError("A mixture needs an image for each Gaussian", found, "Choose a smaller score.num_components")
    if not np.ptp(rows, axis=0).any():
        raise equal_features_error()
    pca = PCA(min(num_pca, *rows.shape), svd_solver="full").fit(rows)
    keep = pca.explained_variance_ > RANK_TOL * pca.explained_variance_[0]
    projection = pca.components_[keep].T
    offset = pca.mean_ @ projection
    mixture = GaussianMixture(num_components, random_state=seed, reg_covar=RANK_TOL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a likelihood that still rises a little is good enough
        mixture.fit(rows @ projection - offset)
    whitening = torch.from_numpy(mixture.precisions_cholesky_)
    return Mixture(
        projection=torch.from_numpy(projection),
        offset=torch.from_numpy(offset),
        means=torch.from_numpy(mixture.means_),
        whitening=whitening,
        log_weights=torch.from_numpy(np.log(mixture.weights_)) + log_determinant_term(whitening),
    )


def _choose(features: Array, settings: ScoreSettings, seed: int) -> tuple[Callable[[Array], Statistic], str]:
    """How to fit the statistic, with what is left open chosen by held-out likelihood, and the choice in words."""
    num_images, num_tiles, _ = features.shape
    if settings.type == "mixture":
        number, reason = settings.num_components, "as given"
        if number is None:
            number, reason = _choose_num_components(features, settings, seed), "chosen by held-out likelihood"
        fit = lambda rows: fit_mixture(rows, number, settings.num_pca, seed)  # noqa: E731
        return fit, f"mixture of {number} Gaussian{'s' if number > 1 else ''}, {reason}"
    if num_tiles == 1 or settings.positions == "global":
        return fit_gaussian, "one Gaussian" + (" for all positions, as given" if num_tiles > 1 else "")
    if num_images < MIN_PHOTOS_PER_POSITION:
        found = f"{num_images} photos are too few for one per position ({MIN_PHOTOS_PER_POSITION})"
        return fit_gaussian, f"one Gaussian for all positions: {found}"
    if settings.uses_discriminator:
        return fit_scaled_positions, "one Gaussian per position of the discriminator's features"
    by_position = lambda rows: fit_position_gaussian(rows, settings.rank)  # noqa: E731
    if settings.positions == "per-position":
        return by_position, "one Gaussian per grid position, as given"
    gain = _position_gain(features, settings.rank, seed)
    reason = f"(held-out log-likelihood {gain:+.3g} nats per tile against one for all)"
    if gain > MIN_GAIN:
        return by_position, f"one Gaussian per grid position {reason}"
    return fit_gaussian, f"one Gaussian for all positions (one per position: {gain:+.3g} nats per tile held out)"


def _position_gain(features: Array, rank: int, seed: int) -> float:
    """Mean held-out log-likelihood of a tile under Gaussians per position, minus that under one Gaussian for all."""
    gains = []
    for train, held_out in _folds(len(features), seed)[:NUM_CHOICE_FOLDS]:
        statistic = fit_position_gaussian(features[train], rank).double()
        projected = statistic.project(torch.from_numpy(features[held_out]).double())
        constant = log_determinant_term(statistic.whitening)
        by_position = constant - statistic.distance(projected).square() / 2
        total = log_determinant_term(torch.eye(projected.shape[-1], dtype=projected.dtype))  # C_total is the identity
        gains.append(float((by_position - (total - projected.square().sum(-1) / 2)).mean()))
    return float(np.mean(gains))


def _choose_num_components(features: Array, settings: ScoreSettings, seed: int) -> int:
    """The number of Gaussians: increased while the likelihood of held-out images rises, with enough rows for each."""
    train, held_out = next(iter(_folds(len(features), seed)))
    most = max(1, features[train].shape[0] * features.shape[1] // MIN_ROWS_PER_COMPONENT)
    best, least = 1, np.inf
    for number in NUM_COMPONENTS:
        if number > most:
            break
        mixture = fit_mixture(features[train], number, settings.num_pca, seed).double()
        loss = float(mixture(torch.from_numpy(features[held_out]).double()).mean())
        if loss > least:
            break
        best, least = number, loss
    return best


def _folds(num_images: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Indices to fit on and indices held out, for each fold of a seeded permutation."""
    parts = np.array_split(np.random.default_rng(seed).permutation(num_images), NUM_FOLDS)
    return [(np.concatenate([*parts[:k], *parts[k + 1 :]]), parts[k]) for k in range(NUM_FOLDS)]


def _held_out_scores(features: Array, settings: ScoreSettings, fit: Callable[[Array], Statistic], seed: int) -> Array:
    scores = np.empty(len(features))
    for train, held_out in _folds(len(features), seed):
        scores[held_out] = _photo_scores(fit(features[train]), features[held_out], settings)
    return scores


def _photo_scores(statistic: Statistic, features: Array, settings: ScoreSettings) -> Array:
    with torch.no_grad():
        scores = statistic(torch.from_numpy(features).to(torch.get_default_dtype()))
        return photo_score(by_tile(scores, settings.fitted_features), settings.photo).double().numpy()
