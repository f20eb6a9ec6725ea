"""Active negative training (CVGAD, section II-E): codes that normal images do not have are reconstructed badly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from kdgan_compress.losses.distances import l1
from kdgan_compress.losses.similarity import ssim

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def is_outlier_code(z: Float[Tensor, "B d"], means: Float[Tensor, "K d"], distance: float) -> Bool[Tensor, " B"]:
    """Whether a code is farther than ``distance`` from every mean.

    The distance is the root mean square over the code's components, in standard deviations of q(z|y) = N(μ_y, I): a
    normal image's code lies at 1, and the paper's bound is 2. The Euclidean distance is √d times that (16 for a normal
    image's code of d = 256 components), so a bound of 2 on it would call every code an outlier.

    Args:
        z: Codes (B, d).
        means: μ_y (K, d).
        distance: ≥ 0.

    Returns:
        (B,) bool.
    """
    return (z[:, None] - means).square().mean(2).sqrt().amin(1) > distance


def negative_loss(
    x: Float[Tensor, "B C H W"], x_hat: Float[Tensor, "B C H W"], w_ssim: float, w_l1: float
) -> Float[Tensor, " B"]:
    """w_ssim SSIM(x, x̂) − w_l1 |x − x̂|: small where supposed outliers are reconstructed badly.

    The paper maximises its reconstruction losses. −log SSIM is unbounded and its gradient grows with the error, so here
    SSIM itself is minimised: the same direction, with a lower bound.

    Args:
        x: Images (B, C, H, W) in [−1, 1].
        x_hat: Their reconstructions.
        w_ssim: Weight of SSIM, ≥ 0.
        w_l1: Weight of the mean absolute difference, ≥ 0.

    Returns:
        (B,) in [−w_ssim − 2 w_l1, w_ssim].
    """
    return w_ssim * ssim(x, x_hat) - w_l1 * l1(x, x_hat)
