"""The families ``ganomaly`` and ``ganomaly-anomalib``: GANomaly's networks as its public code and anomalib build them.

They differ from ``ede`` in the first layers, which have no norm, in optional 3×3 layers, in the score, and in that the
networks work on images normalised by a mean and a standard deviation. Checkpoints of both projects are imported into
these families (``experiment/import_ganomaly.py``).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import blocks
from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.blocks import LEAKY_SLOPE, init_weights, norm_layer
from kdgan_compress.gans.ede import GanomalyObjective
from kdgan_compress.gans.gan import Family, Gan

PUBLIC_CODE, ANOMALIB = "ganomaly", "ganomaly-anomalib"
ANOMALIB_PADDING = 4
"""Of the first convolution in anomalib, where the public code pads by 1."""

MIN_ANOMALIB_SIZE = 32
"""With that padding the blocks end at 4×4 only from 32 pixels on."""

STUDENT_FAMILY = "ede"


class Normalizer(nn.Module):
    """Images in [−1, 1] → (images in [0, 1] − mean) / std, which is scale · image + offset; by default unchanged.

    Attributes:
        scale: (1, C, 1, 1), 0.5 / std.
        offset: (1, C, 1, 1), (0.5 − mean) / std.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, image_channels, 1, 1))
        self.register_buffer("offset", torch.zeros(1, image_channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.offset

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and the standard deviation of each channel, (C,), for images in [0, 1]."""
        self.scale.copy_((0.5 / std)[None, :, None, None])
        self.offset.copy_(((0.5 - mean) / std)[None, :, None, None])


class Denormalizer(Normalizer):
    """The inverse of the normalizer with the same buffers."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.offset) / self.scale


class Encoder(nn.Module):
    """Strided blocks down to 4×4, the first one without norm, then a bare 4×4 convolution to a vector.

    Shape: (B, image_channels, S, S) → (B, outputs).
    """

    def __init__(self, architecture: Architecture, outputs: int) -> None:
        super().__init__()
        channels = architecture.channels
        padding = ANOMALIB_PADDING if architecture.family == ANOMALIB else 1
        layers: list[nn.Module] = [
            nn.Conv2d(architecture.image_channels, channels[0], 4, stride=2, padding=padding, bias=False),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            *_extra_layers(architecture, is_leaky=True),
        ]
        for before, after in itertools.pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                norm_layer(architecture, after),
                nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels[-1], outputs, 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        head: Tensor = self.head(self.features(images))
        return head.flatten(1)


class Decoder(blocks.Decoder):
    """The decoder of ``blocks`` with further layers before the last one.

    Shape: (B, latent_size) → (B, image_channels, S, S) in [−1, 1], in the units of the normalised images.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.features.extend(_extra_layers(architecture, is_leaky=architecture.family == ANOMALIB))


class Generator(nn.Module):
    """Two encoders and a decoder, named as in both projects, on normalised images."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.normalizer = Normalizer(architecture.image_channels)
        self.encoder1 = Encoder(architecture, architecture.latent_size)
        self.decoder = Decoder(architecture)
        self.encoder2 = Encoder(architecture, architecture.latent_size)
        self.denormalizer = Denormalizer(architecture.image_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, S, S) in [−1, 1] → z1 (B, latent), x̂ in the units of the images, z2 (B, latent)."""
        z1: Tensor = self.encoder1(self.normalizer(images))
        decoded = self.decoder(z1)
        return z1, self.denormalizer(decoded), self.encoder2(decoded)

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) in [−1, 1] → z1 and z2, (B, latent) each."""
        z1, _, z2 = self(images)
        return z1, z2

    def anomaly_score(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [−1, 1] → the mean of (z1 − z2)², (B,), the score of both projects."""
        z1, z2 = self.latents(images)
        return (z1 - z2).square().mean(1)


class Discriminator(nn.Module):
    """An encoder with one output, on normalised images.

    Shape: (B, C, S, S) → f(x) (B, channels[-1], 4, 4) and the logit (B,).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.normalizer = Normalizer(architecture.image_channels)
        self.encoder = Encoder(architecture, outputs=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.encoder.features(self.normalizer(images))
        return features, self.encoder.head(features).flatten()


def set_normalization(gan: Gan, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a GAN's networks normalise images in [0, 1] by the mean and the standard deviation of each channel."""
    means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    for network in gan.networks().values():
        for module in network.modules():
            if isinstance(module, Normalizer):
                module.set(means, stds)


def build(architecture: Architecture) -> Gan:
    """A freshly initialised GAN, with images in [−1, 1] left as they are.

    Raises:
        KdganError: The images are too small for anomalib's padding.
    """
    if architecture.family == ANOMALIB and architecture.image_size < MIN_ANOMALIB_SIZE:
        problem = f"{ANOMALIB} needs images of at least {MIN_ANOMALIB_SIZE} pixels"
        raise KdganError(problem, f"got {architecture.image_size}", f"Use --image-size {MIN_ANOMALIB_SIZE} or more")
    generator = Generator(architecture).apply(init_weights)
    discriminator = Discriminator(architecture).apply(init_weights)
    taps = {"z1": "encoder1", "x_hat": "denormalizer", "z2": "encoder2"}
    return Gan(generator, taps, discriminator, is_batch_independent=architecture.norm == "instance")


FAMILY = Family(build, GanomalyObjective, has_extra_layers=True, student=STUDENT_FAMILY)


def _extra_layers(architecture: Architecture, is_leaky: bool) -> list[nn.Module]:
    """The 3×3 layers after the encoder's first convolution or before the decoder's last one."""
    width, layers = architecture.channels[0], list[nn.Module]()
    for _ in range(architecture.extra_layers or 0):
        activation = nn.LeakyReLU(LEAKY_SLOPE, inplace=True) if is_leaky else nn.ReLU(inplace=True)
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), norm_layer(architecture, width), activation]
    return layers
