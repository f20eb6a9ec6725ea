"""The CVAE-GAN family of CVGAD (Bian et al., 2019, Fig. 1): reconstructs through a clustered latent space.

The generator is the paper's CVAE (encoder, decoder, classifier p(y|z), means μ_y) with its feature discriminator FD,
which shares the encoder's objective. The score needs no more than encoder and decoder.
"""

import torch
from torch import Tensor, nn

from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.blocks import LEAKY_SLOPE, Decoder, FeatureExtractor, initialise, vector_head
from kdgan_compress.gans.gan import Gan
from kdgan_compress.losses import l1_per_image, ssim_loss_per_image

SMALLEST_RANGE = 1e-6
LOG_VAR_BOUND = 5.0
"""|log σ²| stays below it: e^(log σ²) grows so fast that one bad step could end in infinity."""


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
    """FD of Eq. 10: whether a code belongs to a feature map, judged at each of its places by 1×1 convolutions.

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
        everywhere = z[:, :, None, None].expand(-1, -1, *features.shape[2:])
        logits: Tensor = self.layers(torch.cat([features, everywhere], dim=1))
        return logits


class Generator(nn.Module):
    """The CVAE and FD.

    Attributes:
        means: μ_y (K, latent_size), learnable, N(0, 1) at first.
        score_scale: (2,) the ranges of −log SSIM and of L1 over training normals, which ``fit_score_scale`` finds.
    """

    means: Tensor
    score_scale: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, num_clusters = architecture.channels[-1], architecture.num_clusters or 1
        self.encoder = Encoder(architecture).apply(initialise)
        self.decoder = Decoder(architecture).apply(initialise)
        self.classifier = nn.Sequential(
            nn.Linear(architecture.latent_size, width), nn.LeakyReLU(LEAKY_SLOPE), nn.Linear(width, num_clusters)
        )
        self.means = nn.Parameter(torch.randn(num_clusters, architecture.latent_size))
        self.feature_discriminator = FeatureDiscriminator(architecture)
        self.register_buffer("score_scale", torch.ones(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) in [−1, 1] → μ (B, latent) and x̂ decoded from it, without any noise."""
        mu, _ = self.encoder(images)
        return mu, self.decoder(mu)

    def score_terms(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → −log SSIM and mean |x − x̂| of each, (B, 2)."""
        x_hat = self.decoder(self.encoder.mu(self.encoder.features(images)))
        return torch.stack([ssim_loss_per_image(images, x_hat), l1_per_image(images, x_hat)], dim=1)

    def fit_score_scale(self, terms: Tensor) -> None:
        """Take the scale of both terms from those of training normals (N, 2), so that each ranges over 1 there."""
        self.score_scale.copy_((terms.amax(0) - terms.amin(0)).clamp(min=SMALLEST_RANGE))

    def anomaly_score(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → scores (B,) ≥ 0: both terms by their scale (section II-F)."""
        return (self.score_terms(images) / self.score_scale).sum(1)


class Critic(nn.Module):
    """The WGAN-GP discriminator: the encoder's blocks without norm, which the gradient penalty forbids, and one number.

    Shape: (B, C, S, S) → (B,), unbounded.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.features = FeatureExtractor(architecture, normalise=False)
        self.head = nn.Linear(16 * architecture.channels[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        value: Tensor = self.head(self.features(images).flatten(1))
        return value.flatten()


def build(architecture: Architecture) -> Gan:
    """A freshly initialised member; encoder and decoder as in P-KDGAN, the rest as torch initialises it."""
    return Gan(Generator(architecture), {"z1": "encoder.mu", "x_hat": "decoder"}, Critic(architecture))
