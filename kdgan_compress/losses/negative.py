"""Active negative training (CVGAD, section II-E): codes that normal images don't have, to be reconstructed badly."""

from torch import Tensor

from kdgan_compress.losses.distances import l1
from kdgan_compress.losses.similarity import ssim_per_image


def is_far(z: Tensor, means: Tensor, distance: float) -> Tensor:
    """The distance rule: whether a code is farther than ``distance`` from every mean.

    The distance is the root mean square over the code's components, in standard deviations of q(z|y) = N(μ_y, I), where
    a normal image's code lies at 1 (2 is the paper's choice). Euclidean distance is √d times that, 16 for a normal
    image's code of d = 256 components, so that a bound of 2 on it would call all codes far.

    Args:
        z: Codes (B, d).
        means: μ_y (K, d).
        distance: ≥ 0.

    Returns:
        (B,) bool.
    """
    return (z[:, None] - means).square().mean(2).sqrt().amin(1) > distance


def negative_loss(x: Tensor, x_hat: Tensor, w_ssim: float, w_l1: float) -> Tensor:
    """w_ssim E[SSIM(x, x̂)] − w_l1 E|x − x̂|: small where supposed outliers are reconstructed badly.

    The paper pushes its reconstruction losses up. −log SSIM has no upper end and pulls the harder the worse it gets, so
    here SSIM itself is pushed down, which is the same direction and has an end.

    Args:
        x: Images (B, C, S, S) in [−1, 1].
        x_hat: Their reconstructions.
        w_ssim: Weight of SSIM, ≥ 0.
        w_l1: Weight of the mean absolute difference, ≥ 0.

    Returns:
        A scalar in [−w_ssim − 2 w_l1, w_ssim].
    """
    return w_ssim * ssim_per_image(x, x_hat).mean() - w_l1 * l1(x, x_hat)
