"""The draws that the protocols are made of: permutations, cuts, shares of novel images, and what they must be given."""

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError

FEWEST_TO_CUT = 3
"""Of fewer images, 80 % rounded would be all."""

Indices = NDArray[np.int64]


def none() -> Indices:
    return np.zeros(0, dtype=np.int64)


def where(chosen: NDArray[np.bool_]) -> Indices:
    return np.flatnonzero(chosen).astype(np.int64)


def permuted(labels: Indices, generator: np.random.Generator) -> dict[int, Indices]:
    """The images of each class in random order; classes ascending."""
    return {int(label): generator.permutation(where(labels == label)) for label in np.unique(labels)}


def cut_80(images: Indices, label: int) -> tuple[Indices, Indices]:
    """80 %, rounded to the nearest image (there are no ties), and the rest."""
    require_size(len(images), label, FEWEST_TO_CUT)
    num_train = (len(images) * 4 + 2) // 5
    return images[:num_train], images[num_train:]


def in_turns(groups: list[Indices], generator: np.random.Generator) -> Indices:
    """All images of the groups, one of each in turn, groups in random order: any beginning is spread evenly."""
    drawn = [groups[number] for number in generator.permutation(len(groups))]
    turns = np.concatenate([none(), *(np.arange(len(group)) for group in drawn)])
    return np.concatenate([none(), *drawn])[np.argsort(turns, kind="stable")]


def balanced(normals: Indices, novel: Indices, outliers: float) -> tuple[Indices, Indices]:
    """The longest beginnings of both in which novel images are the fraction."""
    if len(novel) == 0:
        raise KdganError(
            "The split must leave outliers to test on", "found no image of another class", "Take a larger set"
        )
    wanted = num_novel(len(normals), outliers)
    if wanted <= len(novel):
        return normals, novel[:wanted]
    return normals[: max(1, round(len(novel) * (1 - outliers) / outliers))], novel


def num_novel(num_normals: int, outliers: float) -> int:
    return max(1, round(num_normals * outliers / (1 - outliers)))


def seeded(name: str, number: int, num_per_seed: int = 1) -> np.random.Generator:
    if number < 0:
        raise KdganError(f"The {name} must be 0 or more", f"got {number}", f"Give another {name}")
    return np.random.default_rng(number // num_per_seed)


def require_class(labels: Indices, wanted: int, must: str) -> None:
    there = np.unique(labels).tolist()
    if wanted not in there:
        raise KdganError(must, f"found none of class {wanted}", f"Classes with images are {', '.join(map(str, there))}")


def require_size(num_images: int, label: int, fewest: int) -> None:
    if num_images < fewest:
        raise KdganError(
            f"A class must have at least {fewest} images to be cut",
            f"found {num_images} of class {label}",
            "Take a set with more of them",
        )


def require_fraction(outliers: float) -> None:
    if not 0 < outliers < 1:
        raise KdganError(
            "The fraction of outliers must be between 0 and 1", f"got {outliers:g}", "Give for example 0.5"
        )
