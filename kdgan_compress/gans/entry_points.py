"""GAN families of a user's own code, named by an entry point ``module:attribute`` such as ``mygan:build``.

Importing one runs its code, so only ``registry.load_family`` does it, where a user names it.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from importlib import import_module, invalidate_caches
from types import ModuleType
from typing import Any

from kdgan_compress.errors import KdganError
from kdgan_compress.gans.architecture import Architecture
from kdgan_compress.gans.checks import check_discriminator, check_gan
from kdgan_compress.gans.ede import GanomalyObjective
from kdgan_compress.gans.gan import Family, Gan
from kdgan_compress.gans.user_code import user_code

HINT = "Name a Family, or a function from an Architecture to a Gan (docs/own-gan.md)"


def is_entry_point(family: str) -> bool:
    """Whether a family's name is ``module:attribute``."""
    return ":" in family


def import_family(name: str) -> Family:
    """Import a family; each GAN that it builds is checked, once per architecture.

    Args:
        name: ``module:attribute``, where the attribute is a ``Family``, or a function ``build(architecture) -> Gan``
            whose GANs train by GANomaly's losses.

    Raises:
        KdganError: The module or attribute does not exist, the module raises an exception, or the attribute is
            something else.
    """
    module_name, _, attribute = name.partition(":")
    found = _find_attribute(name, _import_module(name, module_name), attribute)
    if not isinstance(found, Family):
        if not callable(found):
            raise KdganError(f"{name} needs to be a GAN family", f"it is of type {type(found).__name__}", HINT)
        found = Family(found, GanomalyObjective)
    _check_objective(name, found.objective)
    return dataclasses.replace(found, build=_checked_build(name, found))


def _import_module(name: str, module_name: str) -> ModuleType:
    try:
        with user_code(f"Importing {name} failed"):
            invalidate_caches()  # the file may have been written a moment ago
            return import_module(module_name)
    except KdganError as error:
        cause = error.__cause__
        is_missing = isinstance(cause, ModuleNotFoundError) and f"{module_name}.".startswith(f"{cause.name}.")
        if not is_missing and module_name and not module_name.startswith("."):
            raise
        hint = "Write it as in `import`, without .py, and run the command in its folder or install its package"
        raise KdganError(f"{name} does not name a module", f"there is no module {module_name!r}", hint) from None


def _find_attribute(name: str, module: ModuleType, attribute: str) -> Any:
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        names = sorted(key for key in vars(module) if not key.startswith("_"))
        near = difflib.get_close_matches(attribute, names, n=1)
        hint = f"Write {module.__name__}:{near[0]}" if near else HINT
        found = f"{module.__file__} defines no {attribute!r}"
        raise KdganError(f"{name} does not name an attribute", found, hint) from None


def _check_objective(name: str, objective: Any) -> None:
    """Check that an objective can be stored in a recipe, and trains."""
    is_dataclass = isinstance(objective, type) and dataclasses.is_dataclass(objective)
    if not is_dataclass or not callable(getattr(objective, "train_step", None)):
        problem = f"The objective of {name} needs to be a dataclass with a method train_step"
        found = objective.__name__ if isinstance(objective, type) else f"an object of type {type(objective).__name__}"
        raise KdganError(problem, f"got {found}", "Decorate the class with @dataclass(frozen=True)")
    with user_code(f"The objective of {name} needs a default for each field"):
        objective()


def _checked_build(name: str, family: Family) -> Callable[[Architecture], Gan]:
    checked: set[Architecture] = set()

    def build(architecture: Architecture) -> Gan:
        with user_code(f"Building {name} failed"):
            gan = family.build(architecture)
        if architecture not in checked:
            check_gan(gan, architecture)
            if family.objective is GanomalyObjective:
                check_discriminator(gan, architecture)
            _check_is_new(name, gan, family, architecture)
            checked.add(architecture)
        return gan

    return build


def _check_is_new(name: str, gan: Gan, family: Family, architecture: Architecture) -> None:
    """Check that a GAN shares no weight with the next one of its family, as teacher and student would."""
    weights = {id(weight) for network in gan.networks().values() for weight in network.parameters()}
    with user_code(f"Building {name} twice failed"):
        networks = family.build(architecture).networks().values()
    if any(id(weight) in weights for network in networks for weight in network.parameters()):
        problem, found = f"{name} needs to build new networks at each call", "two calls returned the same weights"
        raise KdganError(problem, found, "Create the networks inside the function")
