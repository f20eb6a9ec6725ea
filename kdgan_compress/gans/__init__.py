"""GAN families: each is a generator, a discriminator, its taps and its score."""

from kdgan_compress.gans.architecture import Architecture, ImageFormat, Norm, num_blocks, plan_for_width
from kdgan_compress.gans.catalog import FAMILIES, build
from kdgan_compress.gans.fleet import split_weights, stack_gans, stacked_weights
from kdgan_compress.gans.gan import (
    Gan,
    Scorer,
    anomaly_score,
    evaluating,
    has_score_terms,
    to_device,
    to_network_range,
)

__all__ = [
    "FAMILIES",
    "Architecture",
    "Gan",
    "ImageFormat",
    "Norm",
    "Scorer",
    "anomaly_score",
    "build",
    "evaluating",
    "has_score_terms",
    "num_blocks",
    "plan_for_width",
    "split_weights",
    "stack_gans",
    "stacked_weights",
    "to_device",
    "to_network_range",
]
