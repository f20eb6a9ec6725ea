"""Structural similarity (Wang et al., 2004) as CVGAD uses it in section II-C.

    SSIM(e, f) = (2 μ_e μ_f + c1)(2 σ_ef + c2) / ((μ_e² + μ_f² + c1)(σ_e² + σ_f² + c2))          (Eq. 11)

in Gaussian windows of 11×11 (σ 1.5) inside the image, c1 = 0.01², c2 = 0.03² for pixels in [0, 1], averaged over
windows and channels. It is computed as

    (1 − (μ_e − μ_f)² / (μ_e² + μ_f² + c1)) (1 − var(e − f) / (σ_e² + σ_f² + c2)),

which is equal and avoids cancellation where image and reconstruction are similar, or bright and flat. With the first
form in float32, as in the usual libraries, scores of images with a white background differ by 1e-3 between runtimes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from kdgan_compress.losses.distances import check_same_shape

if TYPE_CHECKING:
    from jaxtyping import Float


WINDOW_SIZE, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
MIN_SSIM = 1e-3


def ssim(a: Float[Tensor, "B C S S"], b: Float[Tensor, "B C S S"]) -> Float[Tensor, " B"]:
    """SSIM of each pair of images in [−1, 1], S ≥ 11: (B,) in (−1, 1]; 1 for equal images.

    Raises:
        KdganError: The shapes differ.
    """
    check_same_shape(a, b)
    e, f = (a + 1) / 2, (b + 1) / 2
    level = e.mean((2, 3), keepdim=True)
    difference, e_off, f_off = e - f, e - level, f - level
    mean_d, mean_e, d2, e2, f2 = _gaussian_filter(difference, e_off, difference**2, e_off**2, f_off**2)
    mean_f = mean_e - mean_d
    variances = (e2 - mean_e**2) + (f2 - mean_f**2)
    luminance = mean_d**2 / ((mean_e + level) ** 2 + (mean_f + level) ** 2 + C1)
    structure = (d2 - mean_d**2) / (variances + C2)
    return ((1 - luminance) * (1 - structure)).mean((1, 2, 3))


def ssim_loss(a: Float[Tensor, "B C S S"], b: Float[Tensor, "B C S S"]) -> Float[Tensor, " B"]:
    """−log max(SSIM, 0.001) of each pair: (B,) in [0, 6.91]. The bound is there because SSIM can be negative."""
    return -torch.log(ssim(a, b).clamp(min=MIN_SSIM))


def _gaussian_filter(*maps: Tensor) -> tuple[Tensor, ...]:
    """Gaussian means of maps (B, C, S, S) over every window inside the image: (B, C, S − 10, S − 10) each.

    Computed as products with a banded matrix, which is faster than a convolution of so few channels.
    """
    size = maps[0].shape[-1]
    offsets = torch.arange(WINDOW_SIZE, dtype=maps[0].dtype, device=maps[0].device) - WINDOW_SIZE // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    starts = range(size - WINDOW_SIZE + 1)
    band = torch.stack([pad(weights, (start, size - WINDOW_SIZE - start)) for start in starts])
    return torch.chunk(band @ torch.cat(maps, dim=1) @ band.T, len(maps), dim=1)
