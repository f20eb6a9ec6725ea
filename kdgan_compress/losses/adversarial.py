"""Losses of discriminators: S_ce of P-KDGAN's Table I, and WGAN-GP's critic in CVGAD (Eq. 13 to 15)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdgan_compress.losses.distances import check_same_shape, mean_per_sample

if TYPE_CHECKING:
    from jaxtyping import Float


def discriminator_cross_entropy(
    logit_real: Float[Tensor, "B ..."], logit_fake: Float[Tensor, "B ..."]
) -> Float[Tensor, " B"]:
    """Mean of the cross entropies of an image (label 1) and its reconstruction (label 0).

    Computed from logits. This equals the paper's −[y log ŷ + (1 − y) log(1 − ŷ)] with ŷ = sigmoid(logit) and stays
    finite where the sigmoid saturates.

    Args:
        logit_real: D's output for images before the sigmoid: one per image, or a map of them.
        logit_fake: The same for reconstructions.

    Returns:
        (B,), ≥ 0, in nats; log 2 for a discriminator at chance level.

    Raises:
        KdganError: The shapes differ.
    """
    check_same_shape(logit_real, logit_fake)
    cross_entropy = -logsigmoid(logit_real) - logsigmoid(-logit_fake)
    return mean_per_sample(cross_entropy) / 2


def wasserstein_loss(critic_real: Float[Tensor, " B"], critic_fake: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """D(x̂) − D(x) (Eq. 13), unbounded; its mean is minus the critic's estimate of the Wasserstein distance.

    Raises:
        KdganError: The shapes differ.
    """
    check_same_shape(critic_real, critic_fake)
    return critic_fake - critic_real


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Float[Tensor, "B C H W"], fake: Float[Tensor, "B C H W"], t: Tensor
) -> Float[Tensor, " B"]:
    """(‖∇D(t x + (1 − t) x̂)‖₂ − 1)² (Eq. 14), differentiable in the critic's weights.

    Args:
        critic: D, images to values (B,); no value may depend on another image.
        real: Images x.
        fake: Reconstructions x̂.
        t: (B,) in [0, 1], uniform in training.

    Returns:
        (B,), ≥ 0; 0 where D's slope is 1.

    Raises:
        KdganError: The shapes of images and reconstructions differ.
    """
    check_same_shape(real, fake)
    mix = torch.lerp(fake.detach(), real.detach(), t.view(-1, 1, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mix).sum(), mix, create_graph=True)
    slopes: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (slopes - 1).square()
