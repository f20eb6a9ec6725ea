"""What shapes CVGAD's latent space (sections II-A and II-B): K Gaussians q(z|y) = N(μ_y, I), informative codes."""

import math

from torch import Tensor
from torch.nn.functional import log_softmax

from kdgan_compress.errors import KdganError
from kdgan_compress.losses.adversarial import discriminator_cross_entropy
from kdgan_compress.losses.distances import Reduction, same_shape


def latent_loss(mu: Tensor, log_var: Tensor, means: Tensor, p_y: Tensor, reduction: Reduction = "mean") -> Tensor:
    """E[Σ_y p(y|z) ∫ p(z|x) log p(z|x)/q(z|y) dz], the latent term of Eq. 4 in closed form.

    The integral is the divergence of N(μ, σ²) from N(μ_y, I), ½ Σ_j (σ_j² + (μ_j − μ_yj)² − 1 − log σ_j²).

    Args:
        mu: μ of p(z|x), (B, d).
        log_var: log σ² of p(z|x), (B, d).
        means: μ_y, (K, d).
        p_y: p(y|z) of a z drawn from p(z|x), (B, K), rows summing to 1.
        reduction: ``"norm"``: as written, in nats. ``"mean"``: the same over d, nats a component.

    Returns:
        A scalar ≥ 0, averaged over the batch; 0 where every p(z|x) is its own Gaussian.

    Raises:
        KdganError: Shapes that don't fit.
    """
    same_shape(mu, log_var)
    if means.shape[1:] != mu.shape[1:] or p_y.shape != (len(mu), len(means)):
        raise KdganError(
            "The latent loss must have codes (B, d), means (K, d) and p(y|z) (B, K)",
            f"got {tuple(mu.shape)}, {tuple(means.shape)} and {tuple(p_y.shape)}",
            "Take all three from one generator",
        )
    own = (log_var.exp() - 1 - log_var).sum(1, keepdim=True)
    to_means = (mu[:, None] - means).square().sum(2)
    divergence = (p_y * (own + to_means) / 2).sum(1).mean()
    return divergence / mu.shape[1] if reduction == "mean" else divergence


def categorical_loss(logits: Tensor) -> Tensor:
    """E[KL(p(y|z) ‖ q(y))] with q(y) uniform, the last term of Eq. 4: Σ_y p(y|z) log(K p(y|z)).

    Args:
        logits: The classifier's output before the softmax, (B, K).

    Returns:
        A scalar in [0, log K] nats; 0 where every class is as likely, so always 0 with one class.
    """
    log_p = log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p + math.log(logits.shape[1]))).sum(1).mean()


def mutual_information_loss(paired: Tensor, shuffled: Tensor) -> Tensor:
    """−E[log FD(x, z)] − E[log(1 − FD(x, z′))], Eq. 10 with its sign and its two labels turned.

    At FD's optimum it is 2 log 2 − 2 JS of pairs and shuffled pairs, so that to minimise it maximises that bounded
    stand-in for the mutual information of images and codes.

    Args:
        paired: FD's logits for feature maps with their own codes, any shape.
        shuffled: The same with another image's code.

    Returns:
        A scalar ≥ 0 in nats; 2 log 2 for an FD that can't tell.
    """
    return 2 * discriminator_cross_entropy(paired, shuffled)
