"""The encoder-decoder-encoder family of P-KDGAN: Table II's networks in Fig. 4's three arrangements.

``ed``: encoder E and decoder D, score ‖x − x̂‖₁. ``ede``: a second encoder Ê follows, score ‖z1 − z2‖₂. ``ed_ehat``: Ê
serves the training only and the score is ‖x − x̂‖₁, as Fig. 4(b) and its caption say and the body text does not.
"""

import functools

import torch
from torch import Tensor, nn

from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.blocks import Decoder, Encoder, initialise
from kdgan_compress.gans.gan import Gan

LATENT_SCORE_FAMILY = "ede"
WITHOUT_SECOND_ENCODER = "ed"


class Generator(nn.Module):
    """E, D and, but for ``ed``, Ê of the same shape with weights of its own."""

    encoder2: Encoder | None

    def __init__(self, architecture: Architecture, groups: int = 1) -> None:
        super().__init__()
        self.scored_by_latent = architecture.family == LATENT_SCORE_FAMILY
        self.encoder = Encoder(architecture, architecture.latent_size, groups)
        self.decoder = Decoder(architecture, groups)
        has_second = architecture.family != WITHOUT_SECOND_ENCODER
        self.encoder2 = Encoder(architecture, architecture.latent_size, groups) if has_second else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, S, S) in [−1, 1] → z1 (B, latent), x̂ like the images, z2 (B, latent) or None."""
        z1 = self.encoder(images)
        x_hat = self.decoder(z1)
        return z1, x_hat, None if self.encoder2 is None else self.encoder2(x_hat)

    def anomaly_score(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → scores (B,) ≥ 0, higher is more novel; runs only what it needs."""
        z1 = self.encoder(images)
        x_hat: Tensor = self.decoder(z1)
        if self.scored_by_latent and self.encoder2 is not None:
            score: Tensor = torch.linalg.vector_norm(z1 - self.encoder2(x_hat), dim=1)
            return score
        return (images - x_hat).abs().flatten(1).sum(1)


class Discriminator(nn.Module):
    """An encoder with one output.

    Shape: (B, C, S, S) → f(x) (B, channels[-1], 4, 4), everything before the last convolution, and the logit (B,), in
    a fleet (B, K); the paper's sigmoid is part of the loss.
    """

    def __init__(self, architecture: Architecture, groups: int = 1) -> None:
        super().__init__()
        self.encoder = Encoder(architecture, outputs=1, groups=groups)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.encoder.features(images)
        logit: Tensor = self.encoder.head(features)
        return features, logit.flatten() if logit.shape[1] == 1 else logit.flatten(1)


def build(architecture: Architecture, num_members: int = 1) -> Gan:
    """Freshly initialised networks: convolutions N(0, 0.02), norm weights N(1, 0.02), norm biases 0.

    A fleet's members would mix in batch norm wherever their batches are of different sizes, so only per-image norm has
    fleets.
    """
    generator = Generator(architecture, num_members).apply(initialise)
    discriminator = Discriminator(architecture, num_members).apply(initialise)
    taps = {"z1": "encoder", "x_hat": "decoder"}
    if generator.encoder2 is not None:
        taps["z2"] = "encoder2"
    per_image = architecture.norm == "instance"
    return Gan(
        generator,
        taps,
        discriminator,
        is_batch_independent=per_image,
        num_members=num_members,
        build_fleet=functools.partial(build, architecture) if per_image else None,
    )
