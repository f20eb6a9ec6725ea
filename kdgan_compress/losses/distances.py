"""Distances of pairs of samples: those of P-KDGAN's Table I, from which S_con, S_enc, S_adv, K_1, K_x and K_2 are made.

The paper writes norms. GANomaly's public code, on which it builds, takes means. The two differ by more than a constant
(an L2 norm has a gradient of length 1 however small the distance is), so every recipe states which one it uses.

Further terms of K_l may also take the cosine or the correlation distance, which ignore scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from kdgan_compress.errors import KdganError

if TYPE_CHECKING:
    from jaxtyping import Float

Distance = Literal["mean", "norm"]
"""How a distance is taken over a sample's elements: the mean over elements, or the norm as the paper writes it."""


def l1(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."], distance: Distance = "mean") -> Float[Tensor, " B"]:
    """L1 distance of each pair of samples, ≥ 0: S_con (Eq. 3) and K_x (Eq. 8).

    ``"mean"`` is the mean of |a − b| over a sample's elements, ``"norm"`` ‖a − b‖₁, their sum.

    Raises:
        KdganError: The shapes differ; they are never broadcast.
    """
    difference = _difference(a, b).abs()
    return mean_per_sample(difference) if distance == "mean" else difference.sum(sample_dims(difference))


def l2(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."], distance: Distance = "mean") -> Float[Tensor, " B"]:
    """L2 distance of each pair of samples, ≥ 0: S_enc (Eq. 4), S_adv (Eq. 5), K_1 and K_2 (Eq. 8).

    ``"mean"`` is the mean of (a − b)² over a sample's elements, ``"norm"`` ‖a − b‖₂, whose gradient at 0 is 0.

    Raises:
        KdganError: The shapes differ; they are never broadcast.
    """
    difference = _difference(a, b)
    if distance == "mean":
        return mean_per_sample(difference.square())
    norms: Tensor = torch.linalg.vector_norm(difference, dim=sample_dims(difference))
    return norms


def cosine(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """Cosine distance 1 − cos(a, b) of each pair of samples, in [0, 2], over all elements of a sample.

    It is the distillation loss of reverse distillation for anomaly detection (Deng & Li 2022) as its code computes it.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[5.0, 0.0], [0.0, 2.0]])).tolist()
        [0.0, 1.0]

    Raises:
        KdganError: The shapes differ; they are never broadcast.
    """
    check_same_shape(a, b)
    return 1 - cosine_similarity(flatten_samples(a), flatten_samples(b), dim=1)


def correlation(a: Float[Tensor, "B ..."], b: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """Correlation distance 1 − ρ(a, b) of each pair of samples, in [0, 2]; ρ is Pearson's, over a sample's elements.

    It is d_p of DIST (Huang et al. 2022), here of features instead of class probabilities.

    Example:
        >>> a, b = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[3.0, 5.0], [5.0, 3.0]])
        >>> correlation(a, b).abs().round(decimals=4).tolist()
        [0.0, 2.0]

    Raises:
        KdganError: The shapes differ; they are never broadcast.
    """
    check_same_shape(a, b)
    centred = [values - values.mean(1, keepdim=True) for values in (flatten_samples(a), flatten_samples(b))]
    return cosine(*centred)


def flatten_samples(values: Tensor) -> Tensor:
    """Values (B, ...) as (B, n), with n ≥ 1."""
    return values.reshape(len(values), -1)


def check_same_shape(a: Tensor, b: Tensor) -> None:
    """Raise a KdganError if the shapes differ, so that nothing is broadcast."""
    if a.shape != b.shape:
        raise KdganError(
            "The two sides of a loss differ in shape",
            f"got {tuple(a.shape)} and {tuple(b.shape)}",
            "Build both networks with the same image size, image channels and latent size, or add a connector",
        )


def mean_per_sample(values: Tensor) -> Tensor:
    """Mean of values (B, ...) over each sample's elements, (B,)."""
    return values.mean(sample_dims(values)) if values.dim() > 1 else values


def sample_dims(values: Tensor) -> tuple[int, ...]:
    """The dimensions of values (B, ...) but the first."""
    return tuple(range(1, values.dim()))


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """The difference a − b as (B, n, ...), with at least one element dimension."""
    check_same_shape(a, b)
    return a - b if a.dim() > 1 else (a - b)[:, None]
