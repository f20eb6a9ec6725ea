"""What training, distillation and export need to know about a GAN, built here or by a user."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.architecture import Architecture


@dataclass(frozen=True, eq=False)
class Gan:
    """A detector's networks and the names of the features that are distilled.

    Attributes:
        generator: Takes images (B, C, S, S) in [−1, 1]. It is only called and hooked, so it may be any module. To be
            scored and exported it has a method ``anomaly_score``: images to scores (B,), higher is more anomalous. If
            the score is a sum of terms divided by their ranges on normal images, it also has ``score_terms`` (images
            to (B, T)) and ``fit_score_scale``, which takes the terms of normal images (N, T). With a method
            ``latents`` (images to z1 and z2, (B, D) each) it can have a fitted score.
        taps: Which submodule's output is ``z1``, ``x_hat`` and ``z2``: names to dotted paths in the generator. A family
            without a second encoder has no ``z2``.
        discriminator: Returns what the objective reads: (f(x), logit), or a critic's value. Needed only where L_g's
            adversarial loss or L_d is trained. With a method ``position_features`` (images to (B, 16, D)), a score
            can be fitted to it.
        is_batch_independent: Whether no image of a batch affects another in training mode, as with instance norm; D
            then sees x and x̂ in one call.
    """

    generator: nn.Module
    taps: Mapping[str, str]
    discriminator: nn.Module | None = None
    is_batch_independent: bool = False

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.generator.parameters()).device

    def networks(self) -> dict[str, nn.Module]:
        """The networks by name: ``generator`` and, if there is one, ``discriminator``."""
        networks = {"generator": self.generator}
        return networks if self.discriminator is None else networks | {"discriminator": self.discriminator}


@dataclass(frozen=True)
class Family:
    """One GAN family, as ``registry.FAMILIES`` lists it or an entry point ``module:attribute`` names it.

    Attributes:
        build: Builds a freshly initialised GAN from an architecture.
        objective: Class of its training losses, a frozen dataclass of weights (``gans.objective.Objective``).
        has_clusters: Whether its latent space has K means (``Architecture.num_clusters``).
        has_extra_layers: Whether its networks may have further layers (``Architecture.extra_layers``).
        student: Family of its students unless a recipe names one; None for the same family.
    """

    build: Callable[[Architecture], Gan]
    objective: type
    has_clusters: bool = False
    has_extra_layers: bool = False
    student: str | None = None


def to_device(gan: Gan, device: str) -> Gan:
    """Move a GAN's networks in place and return the same GAN."""
    for network in gan.networks().values():
        network.to(device)
    return gan


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside ``with``, and each submodule back into its mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def anomaly_score(generator: nn.Module, images: Tensor) -> Tensor:
    """Score images (B, C, S, S) in [−1, 1] with the generator's method: (B,), higher is more anomalous."""
    if not hasattr(generator, "anomaly_score"):
        hint = "Give it a method anomaly_score(images) that returns one score per image"
        raise KdganError("The generator needs an anomaly score", f"{type(generator).__name__} has none", hint)
    score: Tensor = generator.anomaly_score(images)  # type: ignore[operator]
    return score


def has_score_terms(generator: nn.Module) -> bool:
    """Whether a generator's score is a sum of terms with scales to be fitted on normal images."""
    return hasattr(generator, "score_terms")


class Scorer(nn.Module):
    """A generator as a module from images (B, C, S, S) in [−1, 1] to scores (B,): the graph that is deployed."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        return anomaly_score(self.generator, images)


def normalize_images(images: Tensor) -> Tensor:
    """uint8 images (0 … 255) of any shape → the default float dtype in [−1, 1], as every network takes them."""
    return images.to(torch.get_default_dtype()) / 127.5 - 1
