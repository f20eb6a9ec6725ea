"""What training, distillation and export need to know of a GAN, whoever wrote it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Gan:
    """A detector's networks and the names of what is distilled.

    Attributes:
        generator: Takes images (B, C, S, S) in [−1, 1]. It is only called and tapped, so any module will do. To be
            scored and exported it has a method ``anomaly_score``: images to scores (B,), higher is more novel. Where
            that is a sum of terms by their scales on normal images, it also has ``score_terms`` (images to (B, T)) and
            ``fit_score_scale``, which takes the scales from normals' terms (N, T).
        taps: Which submodule's output is ``z1``, ``x_hat`` and ``z2``: names to dotted paths in the generator. A family
            without a second encoder has no ``z2``.
        discriminator: Returns for images what the objective reads: (f(x), logit), or a critic's value. Needed only
            where L_g's adversarial term or L_d is trained.
        is_batch_independent: Whether no image of a batch touches another in the networks in training mode, as
            with per-image norm; D then sees x and x̂ in one call.
        num_members: K. In a fleet of K the networks run K GANs of one shape as one: channels of images, features and
            vectors stand member after member, and every parameter has the members along its first axis.
        build_fleet: Builds this GAN's networks for K members; None where they have no such form.
    """

    generator: nn.Module
    taps: Mapping[str, str]
    discriminator: nn.Module | None = None
    is_batch_independent: bool = False
    num_members: int = 1
    build_fleet: "Callable[[int], Gan] | None" = None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.generator.parameters()).device

    def networks(self) -> dict[str, nn.Module]:
        """The networks that exist, by name."""
        networks = {"generator": self.generator}
        return networks if self.discriminator is None else networks | {"discriminator": self.discriminator}


def to_device(gan: Gan, device: str) -> Gan:
    """Move a GAN's networks in place; the same GAN."""
    for network in gan.networks().values():
        network.to(device)
    return gan


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside ``with``; each part has its own mode back afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def anomaly_score(generator: nn.Module, images: Tensor) -> Tensor:
    """Score images (B, C, S, S) in [−1, 1] with a generator's own method: (B,), higher is more novel."""
    score: Tensor = generator.anomaly_score(images)  # type: ignore[operator]
    return score


def has_score_terms(generator: nn.Module) -> bool:
    """Whether a generator's score is a sum of terms with scales to be found on normal images."""
    return hasattr(generator, "score_terms")


class Scorer(nn.Module):
    """A generator as a module from images (B, C, S, S) in [−1, 1] to scores (B,): the graph that is deployed."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        return anomaly_score(self.generator, images)


def normalize_images(images: Tensor) -> Tensor:
    """uint8 images (0 … 255) of any shape → float32 in [−1, 1]: the one scaling there is."""
    return images.float() / 127.5 - 1
