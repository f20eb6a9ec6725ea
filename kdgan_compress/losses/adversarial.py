"""The discriminator's cross entropy, S_ce of P-KDGAN's Table I."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def discriminator_cross_entropy(logit_real: Tensor, logit_fake: Tensor) -> Tensor:
    """Mean of the cross entropies of real images (label 1) and reconstructions (label 0).

    Taken on logits, which equals the paper's −[y log ŷ + (1 − y) log(1 − ŷ)] with ŷ = sigmoid(logit) and stays finite
    where a saturated sigmoid would not.

    Args:
        logit_real: D's output before the sigmoid for images, any shape.
        logit_fake: The same for reconstructions, any shape.

    Returns:
        A scalar ≥ 0 in nats; log 2 for a discriminator that can't tell.
    """
    real = binary_cross_entropy_with_logits(logit_real, torch.ones_like(logit_real))
    fake = binary_cross_entropy_with_logits(logit_fake, torch.zeros_like(logit_fake))
    return (real + fake) / 2
