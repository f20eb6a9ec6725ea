"""Covariances of features and the matrices that whiten them, in float64."""

import itertools
import math

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError

Array = NDArray[np.float64]

RANK_TOL = 1e-6
"""Directions with less variance than this, relative to the largest, are rounding noise and left out."""

MAX_ROWS = 20_000


def as_rows(features: Array) -> Array:
    """All tiles of all images as rows (M, D), float64; of more than ``MAX_ROWS``, an evenly spaced subset.

    Its step has no common divisor with the number of positions, so that it has rows of all positions.
    """
    _, num_positions, size = features.shape
    rows = features.reshape(-1, size)
    steps = itertools.count(-(-len(rows) // MAX_ROWS))
    step = next(step for step in steps if math.gcd(step, num_positions) == 1)
    return rows[::step].astype(np.float64)


def whitening(rows: Array) -> tuple[Array, Array]:
    """Mean (D,) and a matrix (D, r) that whitens rows (M, D) in the directions in which they vary."""
    from sklearn.covariance import ledoit_wolf

    mean = rows.mean(0)
    values, vectors = np.linalg.eigh(covariance(rows))
    if values[-1] <= 0:
        raise equal_features_error()
    basis = vectors[:, values > RANK_TOL * values[-1]]
    shrunk, _ = ledoit_wolf((rows - mean) @ basis, assume_centered=True)
    variances, directions = np.linalg.eigh(np.atleast_2d(shrunk))
    return mean, with_fixed_signs(basis @ (directions / np.sqrt(variances)))


def equal_features_error() -> KdganError:
    hint = "Use images that differ, or score.type norm"
    return KdganError("The features of normal images must differ", "all are equal", hint)


def with_fixed_signs(columns: Array) -> Array:
    """Columns whose largest entry is positive: an eigenvector's sign is arbitrary and differs between machines."""
    largest = np.take_along_axis(columns, np.abs(columns).argmax(0)[None], axis=0)
    return columns * np.sign(largest)


def covariance(rows: Array) -> Array:
    """The maximum likelihood covariance (D, D) of rows (M, D)."""
    centred = rows - rows.mean(0)
    product: Array = centred.T @ centred
    return product / len(rows)


def within_covariance(features: Array) -> Array:
    """The mean over positions of the covariance (D, D) of each position's features (N, P, D)."""
    size = features.shape[2]
    total = np.zeros((size, size))
    for position in range(features.shape[1]):
        total += covariance(features[:, position].astype(np.float64)) / features.shape[1]
    return total


def triangular_whitening(rows: Array) -> Array:
    """Upper triangular W (r, r) with W Wᵀ = C⁻¹, for the Ledoit–Wolf covariance C of rows (N, r)."""
    from sklearn.covariance import ledoit_wolf

    shrunk, _ = ledoit_wolf(rows)
    lower = np.linalg.cholesky(np.atleast_2d(shrunk))
    inverse: Array = scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True)
    return inverse.T
