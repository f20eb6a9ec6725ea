"""GAN families: each is a generator, a discriminator, its taps, its score and its objective."""

from kdgan_compress.gans.architecture import Architecture, ImageFormat, Norm, channels_from_width, num_blocks
from kdgan_compress.gans.gan import (
    Family,
    Gan,
    Scorer,
    anomaly_score,
    eval_mode,
    has_score_terms,
    normalize_images,
    to_device,
)
from kdgan_compress.gans.registry import FAMILIES, build

__all__ = [
    "FAMILIES",
    "Architecture",
    "Family",
    "Gan",
    "ImageFormat",
    "Norm",
    "Scorer",
    "anomaly_score",
    "build",
    "channels_from_width",
    "eval_mode",
    "has_score_terms",
    "normalize_images",
    "num_blocks",
    "to_device",
]
