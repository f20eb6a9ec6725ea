"""The two distances of P-KDGAN's Table I, from which S_con, S_enc, S_adv, K_1, K_x and K_2 are made.

The paper writes norms; GANomaly's public code, from which it starts, takes means. The two differ by far more than a
constant (an L2 norm has a gradient of length 1 however small the distance is), so the reduction is always stated.

In a fleet of K members tensors have the members along axis 1, (B, K · n, …), and a loss is K numbers. ``shares`` (B, K)
says how much an image counts for a member, each column summing to 1: a member whose batch is smaller than the others'
has images that count 0.
"""

from typing import Literal

import torch
from torch import Tensor

from kdgan_compress.errors import KdganError

Reduction = Literal["mean", "norm"]


def l1(a: Tensor, b: Tensor, reduction: Reduction = "mean", shares: Tensor | None = None) -> Tensor:
    """Distance of S_con (Eq. 3) and K_x (Eq. 8).

    Args:
        a: Any shape (B, ...).
        b: The same shape.
        reduction: ``"mean"``: mean of |a − b| over all elements. ``"norm"``: E‖a − b‖₁, the sum over an example's
            elements, averaged over the batch.
        shares: In a fleet, (B, K).

    Returns:
        A scalar ≥ 0; in a fleet (K,).

    Raises:
        KdganError: The shapes differ; they are never broadcast.
    """
    same_shape(a, b)
    difference = (a - b).abs()
    if shares is not None:
        difference = _by_member(difference, shares)
        return of_members(difference.mean(2) if reduction == "mean" else difference.sum(2), shares)
    return difference.mean() if reduction == "mean" else difference.reshape(len(difference), -1).sum(1).mean()


def l2(a: Tensor, b: Tensor, reduction: Reduction = "mean", shares: Tensor | None = None) -> Tensor:
    """Distance of S_enc (Eq. 4), S_adv (Eq. 5), K_1 and K_2 (Eq. 8).

    Args:
        a: Any shape (B, ...).
        b: The same shape.
        reduction: ``"mean"``: mean of (a − b)² over all elements. ``"norm"``: E‖a − b‖₂, the Euclidean length of an
            example's difference, averaged over the batch; its gradient at 0 is 0.
        shares: In a fleet, (B, K).

    Returns:
        A scalar ≥ 0; in a fleet (K,).

    Raises:
        KdganError: The shapes differ; they are never broadcast.
    """
    same_shape(a, b)
    difference = a - b
    if shares is not None:
        difference = _by_member(difference, shares)
        lengths = difference.square().mean(2) if reduction == "mean" else torch.linalg.vector_norm(difference, dim=2)
        return of_members(lengths, shares)
    if reduction == "mean":
        return difference.square().mean()
    norms: Tensor = torch.linalg.vector_norm(difference.reshape(len(difference), -1), dim=1)
    return norms.mean()


def of_members(losses: Tensor, shares: Tensor) -> Tensor:
    """Each member's mean (K,) of losses by image and member (B, K)."""
    return (losses * shares).sum(0)


def l1_per_image(a: Tensor, b: Tensor) -> Tensor:
    """Mean of |a − b| over each example's elements: (B,) ≥ 0, of two tensors of one shape (B, ...)."""
    same_shape(a, b)
    return (a - b).abs().flatten(1).mean(1)


def same_shape(a: Tensor, b: Tensor) -> None:
    """Check that nothing would be broadcast.

    Raises:
        KdganError: The shapes differ.
    """
    if a.shape != b.shape:
        raise KdganError(
            "Both sides of a loss must have one shape",
            f"got {tuple(a.shape)} and {tuple(b.shape)}",
            "Build both networks with the same image size, image channels and latent size, or put a connector between",
        )


def _by_member(difference: Tensor, shares: Tensor) -> Tensor:
    """(B, K · n, …) → (B, K, n · …)."""
    return difference.reshape(*shares.shape, -1)
