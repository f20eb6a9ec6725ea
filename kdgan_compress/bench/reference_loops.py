"""The families' training steps written out as bare loops, which ``bench`` holds the engine against."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.optim.swa_utils import AveragedModel

from kdgan_compress import losses
from kdgan_compress.accel import layers
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.gans import Gan, eval_mode, normalize_images
from kdgan_compress.gans.cvgad_objective import outlier_codes

GENERATOR, DISCRIMINATOR = 0, 1


class _Plain:
    """Two networks with their optimisers and the generator's average."""

    def __init__(self, gan: Gan, own_losses: bool) -> None:
        assert gan.discriminator is not None
        for network in gan.networks().values():
            _use_torchs_layers(network)
        self.generator: Any = gan.generator
        self.discriminator, self.own_losses = gan.discriminator, own_losses
        self.optimizers: list[Any] = [
            torch.optim.Adam(network.parameters(), betas=(0.5, 0.99))
            for network in (self.generator, self.discriminator)
        ]
        self.parameters = [list(network.parameters()) for network in (self.generator, self.discriminator)]
        self.average = AveragedModel(self.generator, multi_avg_fn=_lerp)

    def move(self, network: int, loss: Tensor, rate: float) -> None:
        self.optimizers[network].param_groups[0]["lr"] = rate
        self.optimizers[network].zero_grad()
        loss.backward(inputs=self.parameters[network])
        self.optimizers[network].step()
        if network == GENERATOR:
            self.average.update_parameters(self.generator)


class _PlainGanomaly(_Plain):
    """GANomaly's public order: forward, D(x) and D(x̂) for L_d, D of both again for L_g, G's update, D's update."""

    def step(self, images: Tensor, number: int, rate: float, targets: tuple[Tensor, ...] | None) -> None:
        z1, x_hat, z2 = self.generator(images)
        loss = torch.zeros(())
        if self.own_losses:
            (_, logit), (_, logit_hat) = self.discriminator(images), self.discriminator(x_hat.detach())
            (features, _), (features_hat, _) = self.discriminator(images), self.discriminator(x_hat)
            loss = 10 * (images - x_hat).abs().mean() + (features - features_hat).square().mean()
            loss = loss + (z1 - z2).square().mean()
        if targets is not None:
            distance = 50 * (z1 - targets[0]).square().mean() + 10 * (x_hat - targets[1]).abs().mean()
            loss = loss + distance + 50 * (z2 - targets[2]).square().mean()
        self.move(GENERATOR, loss, rate)
        if self.own_losses:
            real, fake = torch.ones_like(logit), torch.zeros_like(logit_hat)
            self.move(DISCRIMINATOR, (cross_entropy(logit, real) + cross_entropy(logit_hat, fake)) / 2, rate)


class _PlainCvgad(_Plain):
    """Algorithm 1 as it is printed, each of its lines with a forward pass of its own; default weights, no K_l."""

    def step(self, images: Tensor, number: int, rate: float, targets: tuple[Tensor, ...] | None) -> None:
        count = number % 6
        if count <= 4:
            self.critic(images, rate)
        if count == 5:
            self.move(GENERATOR, -self.discriminator(self.reconstruct(images)).mean(), rate)
        if count <= 3:
            self.move(GENERATOR, self.reconstruction_loss(images), rate)
            mu, log_var = self.generator.encoder(images)
            logits = self.generator.classifier(self.draw(mu, log_var))
            latent = losses.latent_loss(mu, log_var, self.generator.means, logits.softmax(1), "norm")
            self.move(GENERATOR, 5 * latent + losses.categorical_loss(logits), rate)
            if latent < 256:
                self.negative(len(images), rate)
            features = self.generator.encoder.features(images)
            z = self.draw(self.generator.encoder.mu(features), self.generator.encoder.bounded_log_var(features))
            judge = self.generator.feature_discriminator
            mutual = losses.mutual_information_loss(judge(features, z), judge(features, z.roll(1, 0)))
            self.move(GENERATOR, 10 * mutual, rate)
            self.move(GENERATOR, self.reconstruction_loss(images), rate)

    def critic(self, images: Tensor, rate: float) -> None:
        with torch.no_grad():
            x_hat = self.reconstruct(images)
        wasserstein = losses.wasserstein_loss(self.discriminator(images), self.discriminator(x_hat))
        penalty = losses.gradient_penalty(self.discriminator, images, x_hat, torch.rand(len(images)))
        self.move(DISCRIMINATOR, wasserstein + 10 * penalty, rate)

    def negative(self, num: int, rate: float) -> None:
        codes = outlier_codes(self.generator.means.detach(), num, 2.0)
        if len(codes) == 0:
            return
        with eval_mode(self.generator):
            with torch.no_grad():
                outliers = self.generator.decoder(codes)
            loss = losses.negative_loss(outliers, self.reconstruct(outliers), 50, 10)
        self.move(GENERATOR, loss, rate)

    def reconstruction_loss(self, images: Tensor) -> Tensor:
        x_hat = self.reconstruct(images)
        return 50 * losses.ssim_loss(images, x_hat) + 10 * losses.l1(images, x_hat)

    def reconstruct(self, images: Tensor) -> Tensor:
        x_hat: Tensor = self.generator.decoder(self.draw(*self.generator.encoder(images)))
        return x_hat

    @staticmethod
    def draw(mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + (log_var / 2).exp() * torch.randn_like(mu)


PLAIN: dict[str, type[_PlainCvgad] | type[_PlainGanomaly]] = {"cvgad": _PlainCvgad, "ede": _PlainGanomaly}


def plain_loop(family: str, stage: Stage, student: Gan, teacher: Gan, batch: int) -> Callable[[Tensor], None]:
    """A loop over batches that makes a stage's updates; it is called with uint8 images (N, C, S, S).

    Args:
        family: ``ede``, or ``cvgad`` trained alone.
        stage: Loss set and rates.
        student: Is moved.
        teacher: Is moved where the loss set says so.
        batch: Images a step.
    """
    loss_set = stage.loss_set
    pupil, master = PLAIN[family](student, loss_set.mu > 0), PLAIN[family](teacher, own_losses=True)
    if not loss_set.trains_teacher:
        teacher.generator.requires_grad_(False)

    def run(images: Tensor) -> None:
        order = torch.randperm(len(images)).split(batch)
        for number, chosen in enumerate(order):
            chunk = normalize_images(images[chosen])
            fall = 1 - number / len(order)
            targets = None
            if loss_set.trains_teacher:
                master.step(chunk, number, stage.teacher_learning_rate * fall, None)
            if loss_set.lam > 0:
                with torch.no_grad():
                    targets = master.generator(chunk)
            pupil.step(chunk, number, stage.learning_rate * fall, targets)

    return run


def _lerp(averaged: Any, current: Any, num_averaged: Any) -> None:
    step = float(num_averaged)
    torch._foreach_lerp_(averaged, current, 1 - min(0.99, step / (step + 10)))


def _use_torchs_layers(network: nn.Module) -> None:
    """Undo what ``gans.layers`` does for speed: each layer computes as the torch class that it is made of."""
    for module in network.modules():
        if type(module).__module__ == layers.__name__:
            module.__class__ = type(module).__mro__[1]
