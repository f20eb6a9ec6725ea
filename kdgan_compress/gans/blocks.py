"""The convolutional blocks of the families: P-KDGAN's Table II, whose decoder is DCGAN's."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.architecture import Architecture

LEAKY_SLOPE = 0.2
INIT_STD = 0.02


class FeatureExtractor(nn.Sequential):
    """Strided blocks (conv 4×4, norm, LeakyReLU), each of which halves the image, down to 4×4.

    Shape: (B, image_channels, S, S) → (B, channels[-1], 4, 4).

    Args:
        architecture: The number of blocks, their channels and the norm.
        normalise: False leaves the norm layers out and gives the convolutions a bias instead.
    """

    def __init__(self, architecture: Architecture, normalise: bool = True) -> None:
        blocks: list[nn.Module] = []
        channels = (architecture.image_channels, *architecture.channels)
        for before, after in itertools.pairwise(channels):
            blocks.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not normalise))
            if normalise:
                blocks.append(norm_layer(architecture, after))
            blocks.append(nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
        super().__init__(*blocks)
        self._image_size = architecture.image_size

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        for block in self:
            images = block(images)
        return images

    def position_features(self, images: Tensor) -> Tensor:
        """The activations of all blocks, averaged to 4×4 positions, side by side: (B, 16, sum of the channels)."""
        self._check(images)
        levels = []
        for block in self:
            images = block(images)
            if isinstance(block, nn.LeakyReLU):
                levels.append(avg_pool2d(images, images.shape[-1] // 4))
        return torch.cat(levels, dim=1).flatten(2).transpose(1, 2)

    def _check(self, images: Tensor) -> None:
        expected: tuple[Any, ...] = (self[0].in_channels, self._image_size, self._image_size)
        if tuple(images.shape[1:]) != expected:
            raise KdganError(
                f"The network takes images of {expected} (channels, height, width)",
                f"got {tuple(images.shape[1:])}",
                "Convert and resize them, or build the network for such images",
            )


class Encoder(nn.Module):
    """Features at 4×4, then a bare 4×4 convolution to a vector.

    Shape: (B, image_channels, S, S) → (B, outputs).
    """

    def __init__(self, architecture: Architecture, outputs: int) -> None:
        super().__init__()
        self.features = FeatureExtractor(architecture)
        self.head = vector_head(architecture, outputs)

    def forward(self, images: Tensor) -> Tensor:
        head: Tensor = self.head(self.features(images))
        return head.flatten(1)


class Decoder(nn.Module):
    """The encoder backwards: a transposed 4×4 convolution from z, strided blocks (norm, ReLU), tanh at the image.

    Shape: (B, latent_size) → (B, image_channels, S, S) in [−1, 1].
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels = (architecture.latent_size, *reversed(architecture.channels))
        blocks: list[nn.Module] = []
        for block, (before, after) in enumerate(itertools.pairwise(channels)):
            stride, padding = (1, 0) if block == 0 else (2, 1)
            blocks += [
                nn.ConvTranspose2d(before, after, 4, stride=stride, padding=padding, bias=False),
                norm_layer(architecture, after),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*blocks)
        self.head = nn.ConvTranspose2d(channels[-1], architecture.image_channels, 4, stride=2, padding=1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.head(self.features(z[:, :, None, None])))


def vector_head(architecture: Architecture, outputs: int) -> nn.Conv2d:
    """The bare 4×4 convolution from features (B, channels[-1], 4, 4) to (B, outputs, 1, 1)."""
    return nn.Conv2d(architecture.channels[-1], outputs, 4, bias=False)


def norm_layer(architecture: Architecture, channels: int) -> nn.Module:
    """The norm that the architecture names."""
    if architecture.norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels, affine=True)


def init_weights(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Initial weights of one layer: convolutions N(0, 0.02), norm weights N(1, 0.02), norm biases 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, INIT_STD, generator)
    elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
        nn.init.normal_(module.weight, 1.0, INIT_STD, generator)
        nn.init.zeros_(module.bias)
