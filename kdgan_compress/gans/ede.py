"""The encoder-decoder-encoder family of P-KDGAN: Table II's networks in Fig. 4's three variants, and GANomaly's losses.

``ed``: encoder E and decoder D, score ‖x − x̂‖₁. ``ede``: a second encoder Ê follows, score ‖z1 − z2‖₂. ``ed_ehat``: Ê
is used in training only and the score is ‖x − x̂‖₁, as Fig. 4(b) and its caption say (the body text differs).
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.blocks import Decoder, Encoder, init_weights
from kdgan_compress.gans.gan import Family, Gan
from kdgan_compress.gans.objective import DistillationTerm, GanState, Weight, check_weights, is_nonzero
from kdgan_compress.losses import Distance, discriminator_cross_entropy, l1, l2

if TYPE_CHECKING:
    from jaxtyping import Float

logger = logging.getLogger(__name__)

LATENT_SCORE_FAMILY = "ede"
MAX_REINIT_LOSS = 0.1
"""A discriminator at chance level has a loss of log 2 = 0.69."""

WITHOUT_SECOND_ENCODER = "ed"


class Generator(nn.Module):
    """E, D and, except in ``ed``, Ê: a second encoder of the same shape with its own weights."""

    encoder2: Encoder | None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.scored_by_latent = architecture.family == LATENT_SCORE_FAMILY
        self.encoder = Encoder(architecture, architecture.latent_size)
        self.decoder = Decoder(architecture)
        has_second = architecture.family != WITHOUT_SECOND_ENCODER
        self.encoder2 = Encoder(architecture, architecture.latent_size) if has_second else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, C, S, S) in [−1, 1] → z1 (B, latent), x̂ like the images, z2 (B, latent) or None."""
        z1 = self.encoder(images)
        x_hat = self.decoder(z1)
        return z1, x_hat, None if self.encoder2 is None else self.encoder2(x_hat)

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) in [−1, 1] → z1 and z2 = Ê(x̂), (B, latent) each; in ``ed``, z2 = E(x̂)."""
        z1: Tensor = self.encoder(images)
        z2: Tensor = (self.encoder2 or self.encoder)(self.decoder(z1))
        return z1, z2

    def anomaly_score(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → scores (B,) ≥ 0, higher is more anomalous; runs only what it needs."""
        z1 = self.encoder(images)
        x_hat: Tensor = self.decoder(z1)
        if self.scored_by_latent and self.encoder2 is not None:
            score: Tensor = torch.linalg.vector_norm(z1 - self.encoder2(x_hat), dim=1)
            return score
        return (images - x_hat).abs().flatten(1).sum(1)


class Discriminator(nn.Module):
    """An encoder with one output.

    Shape: (B, C, S, S) → f(x) (B, channels[-1], 4, 4), everything before the last convolution, and the logit (B,); the
    paper's sigmoid is part of the loss.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.encoder = Encoder(architecture, outputs=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.encoder.features(images)
        return features, self.encoder.head(features).flatten()

    def position_features(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → what a score can be fitted to, (B, 16, D): see ``FeatureExtractor``."""
        return self.encoder.features.position_features(images)


@dataclass(frozen=True)
class GanomalyObjective:
    """GANomaly's losses: the generator on L_g (Eq. 6), then the discriminator on L_d, both from one forward pass.

    L_g = w_con S_con + w_enc S_enc + w_adv S_adv. A family without z2 has no S_enc. L_g does not update D, and f(x) is
    a constant in it.

    Attributes:
        w_con: Weight of S_con.
        w_enc: Weight of S_enc.
        w_adv: Weight of S_adv.
        distance: ``"mean"`` or ``"norm"`` for all three (``losses.distances``).
        reinit_discriminator: D gets new initial weights after a step whose L_d is below this value, as in GANomaly's
            public code with 1e-5; 0 for never. Such models train one after the other, not in fleets.
    """

    w_con: float = 10.0
    w_enc: float = 1.0
    w_adv: float = 1.0
    distance: Distance = "mean"
    reinit_discriminator: float = 0.0

    def __post_init__(self) -> None:
        check_weights(w_con=self.w_con, w_enc=self.w_enc, w_adv=self.w_adv)
        if not 0 <= self.reinit_discriminator <= MAX_REINIT_LOSS:
            found = f"got reinit_discriminator = {self.reinit_discriminator:g}"
            hint = f"Set it to 0 (never), 1e-5 (GANomaly's code) or another number up to {MAX_REINIT_LOSS:g}"
            raise KdganError("The loss that re-initialises a discriminator is out of range", found, hint)

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
        trains_g, trains_d = is_nonzero(weight_g), is_nonzero(weight_d)
        losses: dict[str, Tensor] = {}
        loss_g: Tensor | float = 0.0

        outputs = state.forward(images)
        if trains_g or trains_d:
            f_real, logit_real, f_fake, logit_fake = _discriminate(state.gan, images, outputs["x_hat"])
        if trains_g:
            losses["s_con"] = state.reduce(l1(images, outputs["x_hat"], self.distance))
            losses["s_adv"] = state.reduce(l2(f_real.detach(), f_fake, self.distance))
            loss_g = self.w_con * losses["s_con"] + self.w_adv * losses["s_adv"]
            if "z2" in outputs:
                losses["s_enc"] = state.reduce(l2(outputs["z1"], outputs["z2"], self.distance))
                loss_g = loss_g + self.w_enc * losses["s_enc"]
            loss_g = weight_g * loss_g
        if k_l is not None:
            loss_g = loss_g + k_l(outputs)
        if isinstance(loss_g, Tensor):
            state.update("generator", loss_g, retain_graph=trains_d)

        if trains_d:
            losses["s_ce"] = state.reduce(discriminator_cross_entropy(logit_real, logit_fake))
            state.update("discriminator", weight_d * losses["s_ce"])
            if self.reinit_discriminator > 0:
                self._reinit_if_saturated(state.gan, losses["s_ce"].item(), step)
        return losses

    def _reinit_if_saturated(self, gan: Gan, loss: float, step: int) -> None:
        """Give D new weights if its loss is too low; they depend on the step only, so a resumed run draws the same."""
        if not loss < self.reinit_discriminator or gan.discriminator is None:
            return
        weight = next(gan.discriminator.parameters())
        random = torch.Generator(weight.device).manual_seed(step)
        gan.discriminator.apply(functools.partial(init_weights, generator=random))
        text = "The discriminator is re-initialised after step %d: s_ce was %.2g, below %g"
        logger.warning(text, step + 1, loss, self.reinit_discriminator)


def build(architecture: Architecture) -> Gan:
    """A freshly initialised GAN: convolutions N(0, 0.02), norm weights N(1, 0.02), norm biases 0."""
    generator = Generator(architecture).apply(init_weights)
    discriminator = Discriminator(architecture).apply(init_weights)
    taps = {"z1": "encoder", "x_hat": "decoder"}
    if generator.encoder2 is not None:
        taps["z2"] = "encoder2"
    return Gan(generator, taps, discriminator, is_batch_independent=architecture.norm == "instance")


FAMILY = Family(build, GanomalyObjective)


def _discriminate(gan: Gan, images: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f(x), D(x), f(x̂) and D(x̂). L_g and L_d share this forward pass; each updates its own network only."""
    if gan.discriminator is None:
        raise KdganError(
            "A GAN that trains on its own losses needs a discriminator",
            "found none",
            "Give the Gan one, or distil by structure 1 (K_l alone)",
        )
    if not gan.is_batch_independent:
        return *gan.discriminator(images), *gan.discriminator(x_hat)
    features, logits = gan.discriminator(torch.cat([images, x_hat]))
    (f_real, f_fake), (logit_real, logit_fake) = features.chunk(2), logits.chunk(2)
    return f_real, logit_real, f_fake, logit_fake
