"""The GAN families: one dictionary, a name to what builds and trains it."""

import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import cvgad, ede, ganomaly
from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.gan import Family, Gan

FAMILIES: dict[str, Family] = {
    "cvgad": cvgad.FAMILY,
    "ed": ede.FAMILY,
    "ed_ehat": ede.FAMILY,
    "ede": ede.FAMILY,
    ganomaly.PUBLIC_CODE: ganomaly.FAMILY,
    ganomaly.ANOMALIB: ganomaly.FAMILY,
}


def build(architecture: Architecture, seed: int = 0) -> Gan:
    """Build a GAN with weights drawn from a seed; the global random state is unchanged.

    Raises:
        KdganError: The family does not exist, or has no clusters or extra layers but a number of them is given.
    """
    if architecture.family not in FAMILIES:
        hint = f"Choose one of {', '.join(sorted(FAMILIES))}"
        raise KdganError("The family does not exist", f"got {architecture.family!r}", hint)
    family = FAMILIES[architecture.family]
    if architecture.num_clusters is not None and not family.has_clusters:
        problem = f"The family {architecture.family} has no clusters"
        hint = f"Leave it out, or choose {', '.join(name for name, f in FAMILIES.items() if f.has_clusters)}"
        raise KdganError(problem, f"got num_clusters = {architecture.num_clusters}", hint)
    if architecture.extra_layers is not None and not family.has_extra_layers:
        problem = f"The family {architecture.family} has no extra layers"
        hint = f"Leave it out, or choose {', '.join(name for name, f in FAMILIES.items() if f.has_extra_layers)}"
        raise KdganError(problem, f"got extra_layers = {architecture.extra_layers}", hint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.build(architecture)
