"""The description from which a network is built: family, channels, image format, latent size and norm."""

from dataclasses import dataclass, fields
from typing import Literal

from kdgan_compress.errors import KdganError

Norm = Literal["instance", "batch"]
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096
MAX_CHANNELS = MAX_LATENT_SIZE = 65_536
MAX_CLUSTERS, MAX_EXTRA_LAYERS = 65_536, 100
"""Far beyond use: they bound what a file can ask for."""


_LIMITS = {
    "channels": MAX_CHANNELS,
    "latent_size": MAX_LATENT_SIZE,
    "num_clusters": MAX_CLUSTERS,
    "extra_layers": MAX_EXTRA_LAYERS,
}


@dataclass(frozen=True)
class ImageFormat:
    """The images that a network takes; enough to count and export a user's generator.

    Attributes:
        image_size: Side of the square image in pixels.
        image_channels: 1 (grey) or 3 (RGB).
    """

    image_size: int = 32
    image_channels: int = 1

    def describe(self) -> dict[str, str]:
        """Every attribute that is not None as text, for a detector's metadata."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class Architecture(ImageFormat):
    """The description of a family's generator and discriminator; written into every checkpoint.

    Attributes:
        family: A name in ``FAMILIES``, such as ``ede``, or a user's own, such as ``mygan:build``.
        channels: Output channels of the encoder's strided blocks, outermost first; one per halving of the image
            down to 4×4, so three at 32×32 (Table II of P-KDGAN).
        image_size: Side of the square image in pixels, a power of two ≥ 16.
        latent_size: Length of z1 and z2.
        norm: ``"instance"``: instance norm, which equals batch norm in training at batch size 1. ``"batch"``: batch
            norm, with running statistics in evaluation.
        num_clusters: K, the Gaussians of ``cvgad``'s latent space; None in families that have none.
        extra_layers: Number of 3×3 layers that each network of ``ganomaly`` has beyond its blocks; None for none.
    """

    family: str = "ede"
    channels: tuple[int, ...] = (64, 128, 256)
    latent_size: int = 256
    norm: Norm = "instance"
    num_clusters: int | None = None
    extra_layers: int | None = None

    def __post_init__(self) -> None:
        expected = num_blocks(self.image_size)
        if len(self.channels) != expected:
            raise KdganError(
                f"A {self.image_size}×{self.image_size} image needs {expected} channel numbers",
                f"got {len(self.channels)} ({self.channels_str})",
                f"Name {expected} numbers, or give --width u for u, 2u, 4u, …",
            )
        if min(self.channels) < 1:
            raise KdganError("A channel number is below 1", f"got {self.channels_str}", "Choose a width of 1 or more")
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and (max(value) if isinstance(value, tuple) else value) > limit:
                found = f"got {self.channels_str if isinstance(value, tuple) else value}"
                raise KdganError(f"{name} must be at most {limit:,}", found, "Choose less")
        if self.image_channels not in (1, 3):
            raise KdganError("Images have 1 (grey) or 3 (RGB) channels", f"got {self.image_channels}", "Choose 1 or 3")
        if self.latent_size < 1:
            raise KdganError("The latent size is below 1", f"got {self.latent_size}", "The papers use 256")
        if self.norm not in ("instance", "batch"):
            raise KdganError("norm is neither instance nor batch", f"got {self.norm!r}", "Choose one of the two")
        if self.num_clusters is not None and self.num_clusters < 1:
            raise KdganError(
                "The number of clusters K is below 1",
                f"got {self.num_clusters}",
                "Estimate how many kinds of normal images there are",
            )
        if self.extra_layers is not None and self.extra_layers < 1:
            raise KdganError(
                "The number of extra layers is below 1", f"got {self.extra_layers}", "Leave it out for none"
            )

    @property
    def channels_str(self) -> str:
        """The channels as one text: ``64-128-256``."""
        return "-".join(map(str, self.channels))


def num_blocks(image_size: int) -> int:
    """Number of strided blocks that bring an image of this side (pixels) down to 4×4."""
    if image_size > MAX_IMAGE_SIZE:
        raise KdganError(f"The image size is more than {MAX_IMAGE_SIZE}", f"got {image_size}", "Choose a smaller one")
    if image_size < MIN_IMAGE_SIZE or image_size & (image_size - 1):
        raise KdganError(
            f"The image size is not a power of two of at least {MIN_IMAGE_SIZE}",
            f"got {image_size}",
            "Choose 16, 32, 64, 128, …; images are resized to it",
        )
    return image_size.bit_length() - 3


def channels_from_width(width: int, image_size: int = 32) -> tuple[int, ...]:
    """Channels (u, 2u, 4u, …) of width u, one number per block (Table II, student units)."""
    if width < 1:
        raise KdganError("The width is below 1", f"got {width}", "Try --width 2 (MNIST) or --width 8 (CIFAR-10)")
    return tuple(width << block for block in range(num_blocks(image_size)))
