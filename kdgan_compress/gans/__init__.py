"""GAN families: each is a generator, a discriminator, its taps and its score."""

from kdgan_compress.accel.stacking import stack_gans, stack_weights, unstack_weights
from kdgan_compress.gans.architecture import Architecture, ImageFormat, Norm, channels_from_width, num_blocks
from kdgan_compress.gans.gan import (
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
    "stack_gans",
    "stack_weights",
    "to_device",
    "unstack_weights",
]
