"""Losses that shape CVGAD's latent space (sections II-A, II-B): K Gaussians q(z|y) = N(μ_y, I), informative codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import log_softmax

from kdgan_compress.errors import KdganError
from kdgan_compress.losses.adversarial import discriminator_cross_entropy
from kdgan_compress.losses.distances import Distance, check_same_shape

if TYPE_CHECKING:
    from jaxtyping import Float


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

    Args:
        logits: The classifier's output before the softmax, (B, K).

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
