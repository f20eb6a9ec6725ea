"""The GAN families: one dictionary, a name to what builds and trains it; a user's own are added by ``load_family``."""

import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import cvgad, ede, ganomaly
from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.entry_points import import_family, is_entry_point
from kdgan_compress.gans.gan import Family, Gan

FAMILIES: dict[str, Family] = {
    "cvgad": cvgad.FAMILY,
    "ed": ede.FAMILY,
    "ed_ehat": ede.FAMILY,
    "ede": ede.FAMILY,
    ganomaly.PUBLIC_CODE: ganomaly.FAMILY,
    ganomaly.ANOMALIB: ganomaly.FAMILY,
}


def load_family(name: str) -> Family:
    """A family by name; one of a user's own code, ``module:attribute``, is imported and known from then on.

    Importing runs the module's code, and only this function does it: a recipe or model file whose family has not been
    loaded is refused.

    Raises:
        KdganError: It does not exist, can't be imported or is not a family.

    Example:
        >>> load_family("mygan:build")  # doctest: +SKIP
    """
    if is_entry_point(name) and name not in FAMILIES:
        FAMILIES[name] = import_family(name)
    return find_family(name)


def find_family(name: str) -> Family:
    """A family that is built in or has been loaded.

    Raises:
        KdganError: There is none of that name.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    if is_entry_point(name):
        found = f"{name} is not loaded unless you name it"
        hint = f"If you trust this code, add --family {name} (in Python, call load_family)"
        raise KdganError("The family is Python code that did not come with this package", found, hint)
    raise KdganError("The family does not exist", f"got {name!r}", f"Choose one of {', '.join(sorted(FAMILIES))}")


def build(architecture: Architecture, seed: int = 0) -> Gan:
    """Build a GAN with weights drawn from a seed; the global random state is unchanged.

    Raises:
        KdganError: The family does not exist, or has no clusters or extra layers but a number of them is given.
    """
    family = find_family(architecture.family)
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
