"""GAN families: each is a generator, a discriminator, its taps, its score and its objective."""

from kdgan_compress.gans.architecture import Architecture, ImageFormat, Norm, channels_from_width, num_blocks
from kdgan_compress.gans.checks import check_gan, check_score
from kdgan_compress.gans.entry_points import is_entry_point
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
from kdgan_compress.gans.registry import FAMILIES, build, find_family, load_family

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
    "check_gan",
    "check_score",
    "eval_mode",
    "find_family",
    "has_score_terms",
    "is_entry_point",
    "load_family",
    "normalize_images",
    "num_blocks",
    "to_device",
]
