"""Losses of CVGAD's latent space: K Gaussians q(z|y) = N(μ_y, I) and informative codes (sections II-A, II-B).

In active negative training (section II-E), codes that normal images do not have are reconstructed badly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from kdgan_compress.errors import KdganError
from kdgan_compress.losses.adversarial import discriminator_cross_entropy
from kdgan_compress.losses.distances import Distance, check_same_shape, l1
from kdgan_compress.losses.similarity import ssim

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

MAX_OUTLIER_DISTANCE_FACTOR = 1.5
"""Outlier codes are drawn at 1 to this many times the distance of an outlier."""


def latent_loss(
    mu: Float[Tensor, "B d"],
    log_var: Float[Tensor, "B d"],
    means: Float[Tensor, "K d"],
    p_y: Float[Tensor, "B K"],
    distance: Distance = "mean",
) -> Float[Tensor, " B"]:
    """Σ_y p(y|z) ∫ p(z|x) log p(z|x)/q(z|y) dz, the latent term of Eq. 4 in closed form.

    The integral is the KL divergence of N(μ, σ²) from N(μ_y, I), ½ Σ_j (σ_j² + (μ_j − μ_yj)² − 1 − log σ_j²).

    Args:
        mu: μ of p(z|x), (B, d).
        log_var: log σ² of p(z|x), (B, d).
        means: μ_y, (K, d).
        p_y: p(y|z) of a z drawn from p(z|x), (B, K), rows summing to 1.
        distance: ``"norm"``: as written, in nats. ``"mean"``: divided by d, nats per component.

    Returns:
        (B,), ≥ 0; 0 where p(z|x) is one of the K Gaussians.

    Raises:
        KdganError: The shapes do not fit together.
    """
    check_same_shape(mu, log_var)
    if means.shape[1:] != mu.shape[1:] or p_y.shape != (len(mu), len(means)):
        raise KdganError(
            "The latent loss needs codes (B, d), means (K, d) and p(y|z) (B, K)",
            f"got {tuple(mu.shape)}, {tuple(means.shape)} and {tuple(p_y.shape)}",
            "Take all three from one generator",
        )
    variance_term = (log_var.exp() - 1 - log_var).sum(1, keepdim=True)
    distance_to_means = (mu[:, None] - means).square().sum(2)
    divergence = (p_y * (variance_term + distance_to_means) / 2).sum(1)
    return divergence / mu.shape[1] if distance == "mean" else divergence


def categorical_loss(logits: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """KL(p(y|z) ‖ q(y)) with q(y) uniform, the last term of Eq. 4: Σ_y p(y|z) log(K p(y|z)).

    ``logits`` are the classifier's output before the softmax.

    Returns:
        (B,) in [0, log K] nats; 0 where every class is equally likely, so always 0 with one class.
    """
    log_p = log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p + math.log(logits.shape[1]))).sum(1)


def mutual_information_loss(paired: Float[Tensor, "B ..."], shuffled: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """−log FD(x, z) − log(1 − FD(x, z′)): Eq. 10 with its sign and its two labels swapped.

    At FD's optimum the mean is 2 log 2 − 2 JS(pairs ‖ shuffled pairs). Minimising it therefore maximises this bounded
    estimate of the mutual information of images and codes.

    Args:
        paired: FD's logits for feature maps with their own codes: one per image, or a map of them.
        shuffled: The same with another image's code.

    Returns:
        (B,), ≥ 0, in nats; 2 log 2 for an FD at chance level.
    """
    return 2 * discriminator_cross_entropy(paired, shuffled)


def is_outlier_code(z: Float[Tensor, "B d"], means: Float[Tensor, "K d"], distance: float) -> Bool[Tensor, " B"]:
    """Whether a code is farther than ``distance`` from every mean.

    The distance is the root mean square over the code's components, in standard deviations of q(z|y) = N(μ_y, I): a
    normal image's code lies at 1, and the paper's bound is 2. The Euclidean distance is √d times that (16 for a normal
    image's code of d = 256 components), so a bound of 2 on it would call every code an outlier.
    """
    return (z[:, None] - means).square().mean(2).sqrt().amin(1) > distance


def negative_loss(
    x: Float[Tensor, "B C H W"], x_hat: Float[Tensor, "B C H W"], w_ssim: float, w_l1: float
) -> Float[Tensor, " B"]:
    """w_ssim SSIM(x, x̂) − w_l1 |x − x̂|: small where supposed outliers are reconstructed badly.

    The paper maximises its reconstruction losses. −log SSIM is unbounded and its gradient grows with the error, so here
    SSIM itself is minimised: the same direction, with a lower bound.

    Images and reconstructions are in [−1, 1], the weights ≥ 0.

    Returns:
        (B,) in [−w_ssim − 2 w_l1, w_ssim].
    """
    return w_ssim * ssim(x, x_hat) - w_l1 * l1(x, x_hat)


def outlier_codes(means: Float[Tensor, "K d"], num_codes: int, distance: float) -> Float[Tensor, "N d"]:
    """Draw codes around random means, in every direction, and keep those that are far from the other means too.

    Args:
        means: μ_y (K, d).
        num_codes: How many are drawn; N ≤ ``num_codes`` are returned.
        distance: As ``is_outlier_code`` takes it.
    """
    centres = means[torch.randint(len(means), (num_codes,), device=means.device)]
    directions = torch.randn(centres.shape, device=centres.device)
    lengths = directions.square().mean(1, keepdim=True).sqrt()
    factors = torch.empty_like(centres[:, :1]).uniform_(1, MAX_OUTLIER_DISTANCE_FACTOR)
    codes = centres + directions / lengths * distance * factors
    return codes[is_outlier_code(codes, means, distance)]
