"""CVGAD's Algorithm 1: six batches a cycle, the CVAE moved by one loss after the other, WGAN-GP's critic between.

At the counts 0 to 3 the critic steps, then the CVAE on reconstruction, latent loss, negative training, mutual
information and reconstruction again; at 4 the critic alone; at 5 the CVAE on the critic's verdict.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import eval_mode
from kdgan_compress.gans.cvgad import Generator
from kdgan_compress.gans.objective import Batch, Outputs, Update, check_weights
from kdgan_compress.losses import (
    Reduction,
    categorical_loss,
    gradient_penalty,
    is_far,
    l1,
    latent_loss,
    mutual_information_loss,
    negative_loss,
    ssim_loss,
    wasserstein_loss,
)

CYCLE = 6
CRITIC_ALONE, ADVERSARIAL = 4, 5
FARTHEST = 1.5
"""Outliers are drawn at one to this many times the distance that the rule asks for."""


@dataclass(frozen=True)
class CvgadObjective:
    """Algorithm 1 with a weight for each loss; at weight 0 a loss is left out, and no other line changes (Table 1).

    Attributes:
        w_ssim: Of −log SSIM.
        w_l1: Of the mean absolute difference.
        w_latent: Of the latent loss (15 for MNIST in the paper).
        w_categorical: Of KL(p(y|z) ‖ uniform); optional in the paper.
        w_mutual: Of the mutual information, which needs batches of two images or more.
        w_adv: Of the critic's verdict; at 0 there is no critic's step either.
        w_negative: Of active negative training.
        w_penalty: λ of the critic's gradient penalty (Eq. 15).
        negative_distance: How far outliers' codes are from every mean, in standard deviations (``losses.is_far``).
        latent_threshold: T: negative training waits while the latent loss is not below it; 256 is one nat a component.
        reduction: Of the latent loss: ``"norm"`` is its sum over components, as Eq. 4 is written.
    """

    w_ssim: float = 50.0
    w_l1: float = 10.0
    w_latent: float = 5.0
    w_categorical: float = 1.0
    w_mutual: float = 10.0
    w_adv: float = 1.0
    w_negative: float = 1.0
    w_penalty: float = 10.0
    negative_distance: float = 2.0
    latent_threshold: float = 256.0
    reduction: Reduction = "norm"

    def __post_init__(self) -> None:
        check_weights(
            w_ssim=self.w_ssim,
            w_l1=self.w_l1,
            w_latent=self.w_latent,
            w_categorical=self.w_categorical,
            w_mutual=self.w_mutual,
            w_adv=self.w_adv,
            w_negative=self.w_negative,
            w_penalty=self.w_penalty,
            negative_distance=self.negative_distance,
            latent_threshold=self.latent_threshold,
        )
        if self.w_ssim == 0 and self.w_l1 == 0:
            raise KdganError("CVGAD must have a reconstruction loss", "got w_ssim and w_l1 = 0", "Keep one of the two")

    def updates(self, batch: Batch) -> Iterator[Update]:
        """See ``Objective.updates``."""
        outputs = batch.forward(batch.images) if batch.distils else None
        if not batch.has_own_losses:
            yield Update("generator", None, {}, outputs)
            return
        generator, critic = _networks(batch)
        count = batch.step % CYCLE
        x_hat = _reconstruct(generator, batch.images)
        if count <= CRITIC_ALONE and self.w_adv * batch.weight_d > 0:
            yield self._critic(critic, x_hat.detach(), batch)
        if count == CRITIC_ALONE or batch.weight_g == 0:
            yield Update("generator", None, {}, outputs)
        elif count == ADVERSARIAL:
            yield self._adversarial(critic, x_hat, batch, outputs)
        else:
            yield self._reconstruction(x_hat, batch, outputs)
            yield (latent := self._latent(generator, batch))
            if self.w_negative > 0 and latent.terms["latent"] < self.latent_threshold:
                yield from self._negative(generator, batch)
            if self.w_mutual > 0 and len(batch.images) > 1:
                yield self._mutual_information(generator, batch)
            yield self._reconstruction(_reconstruct(generator, batch.images), batch)

    def _critic(self, critic: nn.Module, x_hat: Tensor, batch: Batch) -> Update:
        images = batch.images
        wasserstein = wasserstein_loss(critic(images), critic(x_hat))
        penalty = gradient_penalty(critic, images, x_hat, torch.rand(len(images), device=images.device))
        terms = {"wasserstein": wasserstein, "penalty": penalty}
        return Update("discriminator", batch.weight_d * (wasserstein + self.w_penalty * penalty), terms)

    def _adversarial(self, critic: nn.Module, x_hat: Tensor, batch: Batch, outputs: Outputs | None) -> Update:
        if self.w_adv == 0:
            return Update("generator", None, {}, outputs)
        verdict = -critic(x_hat).mean()
        return Update("generator", batch.weight_g * self.w_adv * verdict, {"adversarial": verdict}, outputs)

    def _reconstruction(self, x_hat: Tensor, batch: Batch, outputs: Outputs | None = None) -> Update:
        terms = {"ssim": ssim_loss(batch.images, x_hat), "l1": l1(batch.images, x_hat)}
        loss = self.w_ssim * terms["ssim"] + self.w_l1 * terms["l1"]
        return Update("generator", batch.weight_g * loss, terms, outputs)

    def _latent(self, generator: Generator, batch: Batch) -> Update:
        """The latent loss is measured for the threshold even where its weight is 0."""
        mu, log_var = generator.encoder(batch.images)
        logits = generator.classifier(_draw(mu, log_var))
        terms = {
            "latent": latent_loss(mu, log_var, generator.means, logits.softmax(1), self.reduction),
            "categorical": categorical_loss(logits),
        }
        if self.w_latent == 0 and self.w_categorical == 0:
            return Update("generator", None, terms)
        loss = self.w_latent * terms["latent"] + self.w_categorical * terms["categorical"]
        return Update("generator", batch.weight_g * loss, terms)

    def _negative(self, generator: Generator, batch: Batch) -> Iterator[Update]:
        """In evaluation mode, so that outliers don't move the running statistics by which batch norm knows normals."""
        codes = outlier_codes(generator.means.detach(), len(batch.images), self.negative_distance)
        if len(codes) == 0:
            return
        with eval_mode(generator):
            with torch.no_grad():
                outliers = generator.decoder(codes)
            negative = negative_loss(outliers, _reconstruct(generator, outliers), self.w_ssim, self.w_l1)
        yield Update("generator", batch.weight_g * self.w_negative * negative, {"negative": negative})

    def _mutual_information(self, generator: Generator, batch: Batch) -> Update:
        features = generator.encoder.features(batch.images)
        z = _draw(generator.encoder.mu(features), generator.encoder.bounded_log_var(features))
        judge = generator.feature_discriminator
        mutual = mutual_information_loss(judge(features, z), judge(features, z.roll(1, 0)))
        return Update("generator", batch.weight_g * self.w_mutual * mutual, {"mutual": mutual})


def outlier_codes(means: Tensor, num: int, distance: float) -> Tensor:
    """Codes that normal images don't have: drawn around random means in every direction, the far ones kept.

    Args:
        means: μ_y (K, d).
        num: How many are drawn.
        distance: Of ``losses.is_far``.

    Returns:
        (≤ num, d): those that are far from the other means too.
    """
    centres = means[torch.randint(len(means), (num,), device=means.device)]
    directions = torch.randn(num, means.shape[1], device=means.device)
    directions = directions / directions.square().mean(1, keepdim=True).sqrt()
    codes = centres + directions * distance * torch.empty(num, 1, device=means.device).uniform_(1, FARTHEST)
    return codes[is_far(codes, means, distance)]


def _reconstruct(generator: Generator, images: Tensor) -> Tensor:
    x_hat: Tensor = generator.decoder(_draw(*generator.encoder(images)))
    return x_hat


def _draw(mu: Tensor, log_var: Tensor) -> Tensor:
    """A z of p(z|x) by reparameterisation (Eq. 1)."""
    return mu + (log_var / 2).exp() * torch.randn_like(mu)


def _networks(batch: Batch) -> tuple[Generator, nn.Module]:
    generator, critic = batch.gan.generator, batch.gan.discriminator
    if not isinstance(generator, Generator) or critic is None:
        raise KdganError(
            "CVGAD's objective must train a cvgad generator and its critic",
            f"got {type(generator).__name__} and {type(critic).__name__}",
            "Build the GAN by family cvgad, or give the objective of its own family",
        )
    return generator, critic
