"""The CVAE-GAN family of CVGAD (Bian et al., 2019, Fig. 1): reconstructs through a clustered latent space.

The generator is the paper's CVAE with its feature discriminator FD. The score needs encoder and decoder only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.blocks import LEAKY_SLOPE, Decoder, FeatureExtractor, init_weights, vector_head
from kdgan_compress.gans.gan import Family, Gan, eval_mode
from kdgan_compress.gans.objective import DistillationTerm, GanState, Weight, check_weights, is_nonzero
from kdgan_compress.losses import (
    Distance,
    categorical_loss,
    gradient_penalty,
    l1,
    latent_loss,
    mutual_information_loss,
    negative_loss,
    outlier_codes,
    ssim_loss,
    wasserstein_loss,
)

if TYPE_CHECKING:
    from jaxtyping import Float

MIN_SCORE_RANGE = 1e-6
LOG_VAR_BOUND = 5.0  # of |log σ²|, whose exponential could overflow after a single bad step
NUM_PHASES, CRITIC_PHASE, ADVERSARIAL_PHASE = 6, 4, 5


class Encoder(nn.Module):
    """Features at 4×4 and from them the parameters of p(z|x) = N(μ, σ²).

    Shape: (B, image_channels, S, S) → μ and log σ², both (B, latent_size).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.features = FeatureExtractor(architecture)
        self.mu = nn.Sequential(vector_head(architecture, architecture.latent_size), nn.Flatten())
        self.log_var = nn.Sequential(vector_head(architecture, architecture.latent_size), nn.Flatten())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.mu(features), self.bounded_log_var(features)

    def bounded_log_var(self, features: Tensor) -> Tensor:
        """The features' log σ², within ±5."""
        return LOG_VAR_BOUND * torch.tanh(self.log_var(features) / LOG_VAR_BOUND)


class FeatureDiscriminator(nn.Module):
    """FD of Eq. 10: whether a code belongs to a feature map, decided at each position by 1×1 convolutions.

    Shape: features (B, channels[-1], 4, 4) and z (B, latent_size) → logits (B, 1, 4, 4).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.channels[-1]
        self.layers = nn.Sequential(
            nn.Conv2d(width + architecture.latent_size, width, 1),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            nn.Conv2d(width, width, 1),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        z_map = z[:, :, None, None].expand(-1, -1, *features.shape[2:])
        logits: Tensor = self.layers(torch.cat([features, z_map], dim=1))
        return logits


class Generator(nn.Module):
    """The CVAE (encoder, decoder, classifier p(y|z), means μ_y) with its feature discriminator.

    Attributes:
        means: μ_y (K, latent_size), learnable, initialised from N(0, 1).
        score_scale: (2,) the ranges of −log SSIM and of L1 over training normals, set by ``fit_score_scale``.
    """

    score_scale: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, num_clusters = architecture.channels[-1], architecture.num_clusters or 1
        self.encoder = Encoder(architecture).apply(init_weights)
        self.decoder = Decoder(architecture).apply(init_weights)
        self.classifier = nn.Sequential(
            nn.Linear(architecture.latent_size, width), nn.LeakyReLU(LEAKY_SLOPE), nn.Linear(width, num_clusters)
        )
        self.means = nn.Parameter(torch.randn(num_clusters, architecture.latent_size))
        self.feature_discriminator = FeatureDiscriminator(architecture)
        self.register_buffer("score_scale", torch.ones(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) in [−1, 1] → μ (B, latent) and x̂ decoded from it, without noise."""
        mu, _ = self.encoder(images)
        return mu, self.decoder(mu)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → x̂ decoded from a sample of p(z|x)."""
        x_hat: Tensor = self.decoder(_reparameterize(*self.encoder(images)))
        return x_hat

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) in [−1, 1] → z1 = μ of x and z2 = μ of x̂, (B, latent) each."""
        mu, x_hat = self(images)
        return mu, self.encoder.mu(self.encoder.features(x_hat))

    def score_terms(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → −log SSIM and mean |x − x̂| of each, (B, 2)."""
        x_hat = self.decoder(self.encoder.mu(self.encoder.features(images)))
        return torch.stack([ssim_loss(images, x_hat), l1(images, x_hat)], dim=1)

    def fit_score_scale(self, terms: Tensor) -> None:
        """Set the scale of both terms from those of training normals (N, 2), so that each has a range of 1 there."""
        self.score_scale.copy_((terms.amax(0) - terms.amin(0)).clamp(min=MIN_SCORE_RANGE))

    def anomaly_score(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → scores (B,) ≥ 0: both terms divided by their scale (section II-F)."""
        return (self.score_terms(images) / self.score_scale).sum(1)


class Critic(nn.Module):
    """The WGAN-GP discriminator: the encoder's blocks without norm (the gradient penalty forbids it) and one output.

    Shape: (B, C, S, S) → (B,), unbounded.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.features = FeatureExtractor(architecture, normalise=False)
        self.head = nn.Linear(16 * architecture.channels[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        value: Tensor = self.head(self.features(images).flatten(1))
        return value.flatten()

    def position_features(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → what a score can be fitted to, (B, 16, D): see ``FeatureExtractor``."""
        return self.features.position_features(images)


@dataclass(frozen=True)
class CvgadObjective:
    """CVGAD's Algorithm 1: cycles of six batches (phases). A weight of 0 removes a loss (Table 1).

    Phases 0 to 3: the critic, then the CVAE on reconstruction, latent loss, negative training, mutual information and
    reconstruction again, one after the other. Phase 4: the critic. Phase 5: the CVAE on the critic's score.

    Attributes:
        w_ssim: Weight of −log SSIM.
        w_l1: Weight of the mean absolute difference.
        w_latent: Weight of the latent loss (15 for MNIST in the paper).
        w_categorical: Weight of KL(p(y|z) ‖ uniform); optional in the paper.
        w_mutual: Weight of the mutual information, which needs batches of at least two images.
        w_adv: Weight of the critic's score; at 0 the critic is not trained either.
        w_negative: Weight of active negative training.
        w_penalty: λ of the critic's gradient penalty (Eq. 15).
        negative_distance: Minimum distance of outlier codes from every mean (``losses.is_outlier_code``).
        latent_threshold: T: negative training waits until the latent loss is below it; 256 is one nat per component.
        distance: Of the latent loss: ``"norm"`` is its sum over components, as Eq. 4 is written.
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
    distance: Distance = "norm"

    def __post_init__(self) -> None:
        check_weights(**{name: value for name, value in vars(self).items() if name != "distance"})
        if self.w_ssim == self.w_l1 == 0:
            raise KdganError("CVGAD needs a reconstruction loss", "got w_ssim and w_l1 = 0", "Keep one of the two")

    def train_step(
        self,
        state: GanState,
        images: Float[Tensor, "B C S S"],
        weight_g: Weight,
        weight_d: Weight,
        step: int = 0,
        k_l: DistillationTerm | None = None,
    ) -> dict[str, Tensor]:
        """Train on one batch (``gans.objective.Objective``)."""
        distillation: Tensor | float = 0.0 if k_l is None else k_l(state.forward(images))
        trains_g, trains_d, phase = is_nonzero(weight_g), is_nonzero(weight_d), step % NUM_PHASES
        losses: dict[str, Tensor] = {}

        if trains_g or trains_d:
            generator, critic = _networks(state.gan)
            x_hat = generator.reconstruct(images)
        if trains_d and phase <= CRITIC_PHASE and self.w_adv > 0:
            t = torch.rand(len(images), device=images.device)
            losses["wasserstein"] = state.reduce(wasserstein_loss(critic(images), critic(x_hat.detach())))
            losses["penalty"] = state.reduce(gradient_penalty(critic, images, x_hat, t))
            state.update("discriminator", weight_d * (losses["wasserstein"] + self.w_penalty * losses["penalty"]))

        if trains_g and phase < CRITIC_PHASE:
            self._update_on_reconstruction(state, images, x_hat, weight_g, distillation)
            losses |= self._update_cvae(state, generator, images, weight_g)
        elif trains_g and phase == ADVERSARIAL_PHASE and self.w_adv > 0:
            losses["adversarial"] = state.reduce(-critic(x_hat))
            state.update("generator", weight_g * self.w_adv * losses["adversarial"] + distillation)
        elif isinstance(distillation, Tensor):
            state.update("generator", distillation)
        return losses

    def _update_cvae(
        self, state: GanState, generator: Generator, images: Tensor, weight_g: Weight
    ) -> dict[str, Tensor]:
        """Update by the latent, negative and mutual-information losses, then once more by the reconstruction."""
        mu, log_var = generator.encoder(images)
        logits = generator.classifier(_reparameterize(mu, log_var))
        latent = latent_loss(mu, log_var, generator.means, logits.softmax(1), self.distance)
        losses = {"latent": state.reduce(latent), "categorical": state.reduce(categorical_loss(logits))}
        if self.w_latent > 0 or self.w_categorical > 0:
            weighted = self.w_latent * losses["latent"] + self.w_categorical * losses["categorical"]
            state.update("generator", weight_g * weighted)

        if self.w_negative > 0 and losses["latent"] < self.latent_threshold:
            losses |= self._update_on_outliers(state, generator, len(images), weight_g)

        if self.w_mutual > 0 and len(images) > 1:
            features = generator.encoder.features(images)
            z = _reparameterize(generator.encoder.mu(features), generator.encoder.bounded_log_var(features))
            paired, shuffled = (generator.feature_discriminator(features, code) for code in (z, z.roll(1, 0)))
            losses["mutual"] = state.reduce(mutual_information_loss(paired, shuffled))
            state.update("generator", weight_g * self.w_mutual * losses["mutual"])

        return losses | self._update_on_reconstruction(state, images, generator.reconstruct(images), weight_g)

    def _update_on_outliers(
        self, state: GanState, generator: Generator, num_codes: int, weight_g: Weight
    ) -> dict[str, Tensor]:
        """Negative training, in evaluation mode so that outliers do not change batch norm's statistics."""
        codes = outlier_codes(generator.means.detach(), num_codes, self.negative_distance)
        if len(codes) == 0:
            return {}
        with eval_mode(generator):
            outliers = generator.decoder(codes).detach()
            loss = state.reduce(negative_loss(outliers, generator.reconstruct(outliers), self.w_ssim, self.w_l1))
        state.update("generator", weight_g * self.w_negative * loss)
        return {"negative": loss}

    def _update_on_reconstruction(
        self, state: GanState, images: Tensor, x_hat: Tensor, weight_g: Weight, k_l: Tensor | float = 0.0
    ) -> dict[str, Tensor]:
        losses = {"ssim": state.reduce(ssim_loss(images, x_hat)), "l1": state.reduce(l1(images, x_hat))}
        reconstruction = self.w_ssim * losses["ssim"] + self.w_l1 * losses["l1"]
        state.update("generator", weight_g * reconstruction + k_l)
        return losses


def build(architecture: Architecture) -> Gan:
    """A freshly initialised GAN; encoder and decoder as in P-KDGAN, the rest with torch's initialisation."""
    return Gan(Generator(architecture), {"z1": "encoder.mu", "x_hat": "decoder"}, Critic(architecture))


FAMILY = Family(build, CvgadObjective, has_clusters=True)


def _reparameterize(mu: Tensor, log_var: Tensor) -> Tensor:
    """A sample z of p(z|x) by the reparameterisation trick (Eq. 1)."""
    return mu + (log_var / 2).exp() * torch.randn_like(mu)


def _networks(gan: Gan) -> tuple[Generator, nn.Module]:
    if not isinstance(gan.generator, Generator) or gan.discriminator is None:
        raise KdganError(
            "CVGAD's objective trains a cvgad generator and its critic",
            f"got {type(gan.generator).__name__} and {type(gan.discriminator).__name__}",
            "Build the GAN by family cvgad, or give it the objective of its family",
        )
    return gan.generator, gan.discriminator
