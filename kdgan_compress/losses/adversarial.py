"""What discriminators minimise: S_ce of P-KDGAN's Table I, and WGAN-GP's critic in CVGAD (Eq. 13 to 15)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from kdgan_compress.losses.distances import of_members, same_shape


def discriminator_cross_entropy(logit_real: Tensor, logit_fake: Tensor, shares: Tensor | None = None) -> Tensor:
    """Mean of the cross entropies of real images (label 1) and reconstructions (label 0).

    Taken on logits, which equals the paper's −[y log ŷ + (1 − y) log(1 − ŷ)] with ŷ = sigmoid(logit) and stays finite
    where a saturated sigmoid would not.

    Args:
        logit_real: D's output before the sigmoid for images, any shape.
        logit_fake: The same for reconstructions, any shape.
        shares: In a fleet, (B, K), and so are the logits (``losses.distances``).

    Returns:
        A scalar ≥ 0 in nats; log 2 for a discriminator that can't tell. In a fleet (K,).
    """
    real, fake = -logsigmoid(logit_real), -logsigmoid(-logit_fake)
    if shares is None:
        return (real.mean() + fake.mean()) / 2
    return of_members((real + fake).reshape(shares.shape) / 2, shares)


def wasserstein_loss(value_real: Tensor, value_fake: Tensor) -> Tensor:
    """E[D(x̂)] − E[D(x)] (Eq. 13): minus the critic's estimate of the Wasserstein distance.

    Args:
        value_real: D of images (B,).
        value_fake: D of reconstructions (B,).

    Returns:
        A scalar, unbounded.
    """
    return value_fake.mean() - value_real.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, t: Tensor) -> Tensor:
    """E[(‖∇D(t x + (1 − t) x̂)‖₂ − 1)²] (Eq. 14); it can be differentiated by the critic's weights.

    Args:
        critic: D, images (B, C, S, S) to values (B,); no value may depend on another image.
        real: Images x.
        fake: Reconstructions x̂ of the same shape.
        t: (B,) in [0, 1], uniform in training.

    Returns:
        A scalar ≥ 0; 0 where D's slope is 1 everywhere.

    Raises:
        KdganError: The shapes of images and reconstructions differ.
    """
    same_shape(real, fake)
    mix = torch.lerp(fake.detach(), real.detach(), t.view(-1, 1, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mix).sum(), mix, create_graph=True)
    lengths: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (lengths - 1).square().mean()
