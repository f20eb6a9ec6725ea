"""Structural similarity (Wang et al., 2004), by the library pytorch-msssim: CVGAD's section II-C.

    SSIM(e, f) = (2 μ_e μ_f + c1)(2 σ_ef + c2) / ((μ_e² + μ_f² + c1)(σ_e² + σ_f² + c2))          (Eq. 11)

in Gaussian windows of 11×11 (σ 1.5) inside the image, c1 = 0.01², c2 = 0.03² for pixels in [0, 1], averaged over
windows and channels.
"""

import torch
from pytorch_msssim import ssim as msssim_ssim
from torch import Tensor

from kdgan_compress.losses.distances import same_shape

WINDOW = 11
SMALLEST_SSIM = 1e-3


def ssim_per_image(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each pair of images.

    Args:
        a: Images (B, C, S, S) in [−1, 1], S ≥ 11.
        b: The same shape.

    Returns:
        (B,) in (−1, 1]; 1 for equal images.

    Raises:
        KdganError: The shapes differ.
    """
    same_shape(a, b)
    similarity: Tensor = msssim_ssim((a + 1) / 2, (b + 1) / 2, data_range=1, size_average=False, win_size=WINDOW)
    return similarity


def ssim_loss_per_image(a: Tensor, b: Tensor) -> Tensor:
    """−log max(SSIM, 0.001) of each pair: (B,) in [0, 6.91]; SSIM can be negative, which has no logarithm."""
    return -torch.log(ssim_per_image(a, b).clamp(min=SMALLEST_SSIM))


def ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the batch of −log SSIM, the scalar that CVGAD's reconstruction minimises."""
    return ssim_loss_per_image(a, b).mean()
