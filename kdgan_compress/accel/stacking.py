"""Fleets: K networks of one shape as one with ``groups=K``, made of single ones and taken apart again."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.gan import Gan


def stack_gans(gans: Sequence[Gan]) -> Gan:
    """One GAN that does what all of these do, side by side.

    Args:
        gans: K ≥ 1 single ones of one shape, from ``build``.

    Returns:
        Its networks take images (B, K · C, S, S) and give z1, x̂ and z2 alike, member after member. One GAN is returned
        as it is, many are copied.

    Raises:
        KdganError: They have no fleet form, or differ in shape.
    """
    if len(gans) == 1:
        return gans[0]
    if gans[0].build_fleet is None:
        raise KdganError(
            "A fleet must be of a family that has one, with norm per_image",
            "got a GAN that can't be stacked",
            "Train these one after the other (--fleet 1)",
        )
    if any(gan.networks().keys() != {"generator", "discriminator"} for gan in gans):
        raise KdganError(
            "Members of a fleet must have a generator and a discriminator",
            "found one without a discriminator",
            "Train it alone (--fleet 1)",
        )
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        fleet = gans[0].build_fleet(len(gans))
    for name, network in fleet.networks().items():
        network.load_state_dict(stack_weights([gan.networks()[name] for gan in gans]), assign=True)
    return fleet


def stack_weights(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The state of a fleet's network, out of its members'.

    Raises:
        KdganError: The members differ in shape.
    """
    states = [network.state_dict() for network in networks]
    shapes = [{name: tuple(weight.shape) for name, weight in state.items()} for state in states]
    for member, own in enumerate(shapes):
        if own != shapes[0]:
            name = next(name for name in [*shapes[0], *own] if own.get(name) != shapes[0].get(name))
            first, other = (shape.get(name, "missing") for shape in (shapes[0], own))
            raise KdganError(
                "Members of a fleet must be of one shape",
                f"{name} is {first} in member 0 and {other} in member {member}",
                "Give them one family, image format, latent size and channel plan",
            )
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def unstack_weights(fleet: nn.Module, networks: Sequence[nn.Module | None]) -> None:
    """Write a fleet's weights back into its members' networks; None passes one over."""
    theirs = [None if network is None else network.state_dict() for network in networks]
    for name, weights in fleet.state_dict().items():
        for state, own in zip(theirs, weights.chunk(len(networks)), strict=True):
            if state is not None:
                state[name].copy_(own)
