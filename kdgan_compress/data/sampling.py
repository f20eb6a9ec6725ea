"""Random sampling that the protocols are made of: shuffles, 80/20 splits, fractions of outliers, and their checks."""

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError

MIN_IMAGES_TO_SPLIT = 3
"""With fewer images, 80 % rounds to all of them."""

Indices = NDArray[np.int64]
NO_INDICES: Indices = np.zeros(0, dtype=np.int64)


def flatnonzero(mask: NDArray[np.bool_]) -> Indices:
    return np.flatnonzero(mask).astype(np.int64)


def shuffle_by_class(labels: Indices, rng: np.random.Generator) -> dict[int, Indices]:
    """The indices of each class in random order; classes ascending."""
    return {int(label): rng.permutation(flatnonzero(labels == label)) for label in np.unique(labels)}


def split_80_20(images: Indices, label: int) -> tuple[Indices, Indices]:
    """The first 80 %, rounded to the nearest image (there are no ties), and the rest."""
    check_num_images(len(images), label, MIN_IMAGES_TO_SPLIT)
    num_train = (len(images) * 4 + 2) // 5
    return images[:num_train], images[num_train:]


def interleave(groups: list[Indices], rng: np.random.Generator) -> Indices:
    """One image per group in turn, groups in random order, so that any prefix is spread evenly over the groups."""
    shuffled = [groups[number] for number in rng.permutation(len(groups))]
    rounds = np.concatenate([NO_INDICES, *(np.arange(len(group)) for group in shuffled)])
    return np.concatenate([NO_INDICES, *shuffled])[np.argsort(rounds, kind="stable")]


def limit_to_fraction(normals: Indices, anomalous: Indices, outliers: float) -> tuple[Indices, Indices]:
    """The longest prefixes of both such that anomalous images are the fraction ``outliers``."""
    if len(anomalous) == 0:
        raise KdganError("The test split needs outliers", "found no image of another class", "Use a larger data set")
    wanted = num_outliers(len(normals), outliers)
    if wanted <= len(anomalous):
        return normals, anomalous[:wanted]
    return normals[: max(1, round(len(anomalous) * (1 - outliers) / outliers))], anomalous


def num_outliers(num_normals: int, outliers: float) -> int:
    return max(1, round(num_normals * outliers / (1 - outliers)))


def make_rng(name: str, number: int, num_per_seed: int = 1) -> np.random.Generator:
    """A generator seeded by ``number // num_per_seed``; ``name`` is what the error message calls the number."""
    if number < 0:
        raise KdganError(f"The {name} must be 0 or more", f"got {number}", f"Give another {name}")
    return np.random.default_rng(number // num_per_seed)


def check_class(labels: Indices, wanted: int, problem: str) -> None:
    classes = np.unique(labels).tolist()
    if wanted not in classes:
        hint = f"Classes with images are {', '.join(map(str, classes))}"
        raise KdganError(problem, f"found none of class {wanted}", hint)


def check_num_images(num_images: int, label: int, minimum: int) -> None:
    if num_images < minimum:
        problem = f"Splitting a class needs at least {minimum} images"
        raise KdganError(problem, f"found {num_images} of class {label}", "Use a data set with more images")


def check_fraction(outliers: float) -> None:
    if not 0 < outliers < 1:
        problem = "The fraction of outliers must be between 0 and 1"
        raise KdganError(problem, f"got {outliers:g}", "Give for example 0.5")
