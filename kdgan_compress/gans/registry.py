"""The families there are: one dict, a name to what builds it."""

from collections.abc import Callable

import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import cvgad, ede
from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.gan import Gan

FAMILIES: dict[str, Callable[[Architecture], Gan]] = {
    "cvgad": cvgad.build,
    "ed": ede.build,
    "ed_ehat": ede.build,
    "ede": ede.build,
}

FAMILIES_WITH_CLUSTERS = ("cvgad",)
"""Families whose latent space has K means."""


def build(architecture: Architecture, seed: int = 0) -> Gan:
    """Build a GAN with weights drawn from a seed; the caller's random state is left as it was.

    Raises:
        KdganError: No such family, or clusters in one that has none.
    """
    if architecture.family not in FAMILIES:
        raise KdganError(
            "The family must be one that exists",
            f"got {architecture.family!r}",
            f"Choose one of {', '.join(sorted(FAMILIES))}",
        )
    if architecture.num_clusters is not None and architecture.family not in FAMILIES_WITH_CLUSTERS:
        raise KdganError(
            f"The number of clusters must be left out in family {architecture.family}",
            f"got {architecture.num_clusters}",
            f"It is for {', '.join(FAMILIES_WITH_CLUSTERS)}",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FAMILIES[architecture.family](architecture)
