"""The training steps of the families as plain loops on torch's layers, to compare the engine with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.optim.swa_utils import AveragedModel

from kdgan_compress import losses
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.gans import Gan, eval_mode, normalize_images
from kdgan_compress.losses import outlier_codes

GENERATOR, DISCRIMINATOR = 0, 1


class ReferenceTrainer:
    """Two networks with their optimisers and the generator's EMA."""

    def __init__(self, gan: Gan, has_gan_losses: bool) -> None:
        assert gan.discriminator is not None
        self.generator: Any = gan.generator
        self.discriminator, self.has_gan_losses = gan.discriminator, has_gan_losses
        self.optimizers: list[Any] = [
            torch.optim.Adam(network.parameters(), betas=(0.5, 0.99))
            for network in (self.generator, self.discriminator)
        ]
        self.parameters = [list(network.parameters()) for network in (self.generator, self.discriminator)]
        self.ema = AveragedModel(self.generator, multi_avg_fn=_lerp)

    def update(self, network: int, loss: Tensor, lr: float) -> None:
        """One optimiser step of one network."""
        self.optimizers[network].param_groups[0]["lr"] = lr
        self.optimizers[network].zero_grad()
        loss.backward(inputs=self.parameters[network])
        self.optimizers[network].step()
        if network == GENERATOR:
            self.ema.update_parameters(self.generator)


class ReferenceGanomaly(ReferenceTrainer):
    """GANomaly's public order: forward, D(x) and D(x̂) for L_d, D of both again for L_g, update of G, update of D."""

    def step(self, images: Tensor, step: int, lr: float, targets: tuple[Tensor, ...] | None) -> None:
        """Train on one batch."""
        z1, x_hat, z2 = self.generator(images)
        loss = torch.zeros(())
        if self.has_gan_losses:
            (_, logit), (_, logit_hat) = self.discriminator(images), self.discriminator(x_hat.detach())
            (features, _), (features_hat, _) = self.discriminator(images), self.discriminator(x_hat)
            loss = 10 * (images - x_hat).abs().mean() + (features - features_hat).square().mean()
            loss = loss + (z1 - z2).square().mean()
        if targets is not None:
            distance = 50 * (z1 - targets[0]).square().mean() + 10 * (x_hat - targets[1]).abs().mean()
            loss = loss + distance + 50 * (z2 - targets[2]).square().mean()
        self.update(GENERATOR, loss, lr)
        if self.has_gan_losses:
            real, fake = torch.ones_like(logit), torch.zeros_like(logit_hat)
            self.update(DISCRIMINATOR, (cross_entropy(logit, real) + cross_entropy(logit_hat, fake)) / 2, lr)


class ReferenceCvgad(ReferenceTrainer):
    """Algorithm 1 as it is printed, each line with its own forward pass; default weights, no K_l."""

    def step(self, images: Tensor, step: int, lr: float, targets: tuple[Tensor, ...] | None) -> None:
        """Train on one batch."""
        phase = step % 6
        if phase <= 4:
            self.update_critic(images, lr)
        if phase == 5:
            self.update(GENERATOR, -self.discriminator(self.reconstruct(images)).mean(), lr)
        if phase <= 3:
            self.update(GENERATOR, self.reconstruction_loss(images), lr)
            mu, log_var = self.generator.encoder(images)
            logits = self.generator.classifier(self.reparameterize(mu, log_var))
            latent = losses.latent_loss(mu, log_var, self.generator.means, logits.softmax(1), "norm").mean()
            self.update(GENERATOR, 5 * latent + losses.categorical_loss(logits).mean(), lr)
            if latent < 256:
                self.update_on_outliers(len(images), lr)
            encoder = self.generator.encoder
            features = encoder.features(images)
            z = self.reparameterize(encoder.mu(features), encoder.bounded_log_var(features))
            feature_discriminator = self.generator.feature_discriminator
            paired, shuffled = feature_discriminator(features, z), feature_discriminator(features, z.roll(1, 0))
            self.update(GENERATOR, 10 * losses.mutual_information_loss(paired, shuffled).mean(), lr)
            self.update(GENERATOR, self.reconstruction_loss(images), lr)

    def update_critic(self, images: Tensor, lr: float) -> None:
        """One step of WGAN-GP's critic."""
        with torch.no_grad():
            x_hat = self.reconstruct(images)
        wasserstein = losses.wasserstein_loss(self.discriminator(images), self.discriminator(x_hat)).mean()
        penalty = losses.gradient_penalty(self.discriminator, images, x_hat, torch.rand(len(images))).mean()
        self.update(DISCRIMINATOR, wasserstein + 10 * penalty, lr)

    def update_on_outliers(self, num_codes: int, lr: float) -> None:
        """Active negative training."""
        codes = outlier_codes(self.generator.means.detach(), num_codes, 2.0)
        if len(codes) == 0:
            return
        with eval_mode(self.generator):
            with torch.no_grad():
                outliers = self.generator.decoder(codes)
            loss = losses.negative_loss(outliers, self.reconstruct(outliers), 50, 10).mean()
        self.update(GENERATOR, loss, lr)

    def reconstruction_loss(self, images: Tensor) -> Tensor:
        """50 −log SSIM + 10 L1."""
        x_hat = self.reconstruct(images)
        return (50 * losses.ssim_loss(images, x_hat) + 10 * losses.l1(images, x_hat)).mean()

    def reconstruct(self, images: Tensor) -> Tensor:
        """x̂ of a sampled z."""
        x_hat: Tensor = self.generator.decoder(self.reparameterize(*self.generator.encoder(images)))
        return x_hat

    @staticmethod
    def reparameterize(mu: Tensor, log_var: Tensor) -> Tensor:
        """Z of N(μ, σ²)."""
        return mu + (log_var / 2).exp() * torch.randn_like(mu)


REFERENCE_TRAINERS: dict[str, type[ReferenceCvgad] | type[ReferenceGanomaly]] = {
    "cvgad": ReferenceCvgad,
    "ede": ReferenceGanomaly,
}


def reference_loop(family: str, stage: Stage, student: Gan, teacher: Gan, batch_size: int) -> Callable[[Tensor], None]:
    """A loop over batches that makes a stage's updates; it is called with uint8 images (N, C, S, S).

    Args:
        family: ``ede``, or ``cvgad`` from scratch.
        stage: Loss set and learning rates.
        student: Trained in place.
        teacher: Trained in place if the loss set says so.
        batch_size: Images per step.
    """
    loss_set, make = stage.loss_set, REFERENCE_TRAINERS[family]
    student_trainer, teacher_trainer = make(student, loss_set.mu > 0), make(teacher, has_gan_losses=True)
    if not loss_set.trains_teacher:
        teacher.generator.requires_grad_(False)

    def run(images: Tensor) -> None:
        batches = torch.randperm(len(images)).split(batch_size)
        for step, indices in enumerate(batches):
            batch = normalize_images(images[indices])
            lr_factor = 1 - step / len(batches)
            targets = None
            if loss_set.trains_teacher:
                teacher_trainer.step(batch, step, stage.teacher_learning_rate * lr_factor, None)
            if loss_set.lam > 0:
                with torch.no_grad():
                    targets = teacher_trainer.generator(batch)
            student_trainer.step(batch, step, stage.learning_rate * lr_factor, targets)

    return run


def _lerp(averaged: Any, current: Any, num_averaged: Any) -> None:
    step = float(num_averaged)
    torch._foreach_lerp_(averaged, current, 1 - min(0.99, step / (step + 10)))
