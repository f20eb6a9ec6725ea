"""Protocols: which images are trained on, calibrated on and tested on, as pure functions of labels and a seed.

``labels`` (N,) are those of a pool: every image of a source, the official training split first, then the official test
split. ``normal`` is the label of the normal class, ``outliers`` the fraction of outliers in the test set, in (0, 1),
rounded to the nearest image and at least one. P-KDGAN is measured under SIMO; CVGAD under MISO 80/20, GPND's five folds
and COIL-100's categories; OCGAN under its protocol 1.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError

HOLDOUT_STEP = 10
MIN_IMAGES_FOR_HOLDOUT, MAX_IMAGES_FOR_HOLDOUT = 50, 999

NUM_FOLDS = 5

MIN_IMAGES_TO_SPLIT = 3
"""With fewer images, 80 % rounds to all of them."""

Indices = NDArray[np.int64]
NO_INDICES: Indices = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class IndexSplit:
    """Indices into the pool, each part ascending and without repetition; the parts are disjoint but for ``miso_leaky``.

    Attributes:
        train: Normal images to train on, int64 (N,).
        validation: Normal images to set the threshold on, int64 (V,); V is 0 if the protocol has none.
        test: int64 (M,).
        test_is_anomalous: (M,) whether a test image is anomalous.
    """

    train: Indices
    validation: Indices
    test: Indices
    test_is_anomalous: NDArray[np.bool_]

    @property
    def sha256(self) -> str:
        """A hash of the whole split in hex: runs with the same hash trained and were tested on the same images."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test, self.test_is_anomalous):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


def simo(labels: Indices, num_official_train: int, normal: int) -> IndexSplit:
    """Single class inlier, multiple classes outlier (section IV of P-KDGAN); nothing is random.

    Trains on the normal class of the official training split and tests on the whole official test split.

    Raises:
        KdganError: The training split has no image of the normal class.
    """
    official = labels[:num_official_train]
    _check_class(official, normal, "The normal class needs training images")
    is_anomalous = labels[num_official_train:] != normal
    test = np.arange(num_official_train, len(labels), dtype=np.int64)
    return IndexSplit(_flatnonzero(official == normal), NO_INDICES, test, is_anomalous)


def miso_8020(labels: Indices, novel_class: int, seed: int) -> IndexSplit:
    """Multiple classes inlier, single class outlier, 80/20 (section IV-D of CVGAD).

    One permutation per class splits it: 80 % of each normal class, rounded to the nearest image, are training images,
    the rest is tested together with all images of the novel class. (Sampling the two parts separately, as EGBAD's
    public code does, tests on training images.) A class is split the same way whichever other class is novel.

    Raises:
        KdganError: No image of the novel class or no other class, a class of fewer than 3 images, a negative seed.
    """
    _check_class(labels, novel_class, "The novel class needs images")
    classes = _shuffle_by_class(labels, _make_rng("seed", seed))
    novel = classes.pop(novel_class)
    if not classes:
        found = f"found only images of the novel class {novel_class}"
        raise KdganError("The protocol needs normal classes to train on", found, "Use a data set with several classes")
    splits = [_split_80_20(images, label) for label, images in classes.items()]
    train, tested = (np.concatenate(parts) for parts in zip(*splits, strict=True))
    return _index_split(train, tested, novel)


def miso_leaky(labels: Indices, novel_class: int, seed: int) -> IndexSplit:
    """``miso_8020`` with the leak of EGBAD's public code, only to compare with figures that were measured by it.

    The normal test images are drawn independently of the training images, so four of five of them were trained on.

    Raises:
        KdganError: As ``miso_8020``.
    """
    clean = miso_8020(labels, novel_class, seed)
    classes = _shuffle_by_class(labels, np.random.default_rng([seed, 1]))
    novel = classes.pop(novel_class)
    tested = np.concatenate([_split_80_20(images, label)[1] for label, images in classes.items()])
    return _index_split(clean.train, tested, novel)


def gpnd_5fold(labels: Indices, normal: int, outliers: float, trial: int) -> IndexSplit:
    """Five-fold cross-validation, 60/20/20 (section IV-G of CVGAD, after GPND).

    Every class is shuffled and split into five folds whose sizes differ by at most 1. Of the normal class, one fold is
    tested, the next is validation, three are training. The outliers come from the tested folds of the other classes,
    spread as evenly as possible. If they are too few, fewer normal images are tested; no image is repeated. The test
    set of a smaller fraction is a subset of a larger one's, as long as no normal image is left out.

    ``trial // 5`` seeds the permutation, and fold ``trial % 5`` is tested.

    Raises:
        KdganError: No or fewer than 5 images of the normal class, a fraction outside (0, 1), a negative trial, or no
            image of another class in the tested fold.
    """
    check_fraction(outliers)
    _check_class(labels, normal, "The normal class needs training images")
    rng = _make_rng("trial", trial, NUM_FOLDS)
    folds = {label: np.array_split(images, NUM_FOLDS) for label, images in _shuffle_by_class(labels, rng).items()}
    _check_num_images(sum(map(len, folds[normal])), normal, NUM_FOLDS)
    tested, validation, *training = (folds[normal][(trial + shift) % NUM_FOLDS] for shift in range(NUM_FOLDS))
    others = [parts[trial % NUM_FOLDS] for label, parts in folds.items() if label != normal]
    tested, anomalous = _limit_to_fraction(tested, _interleave(others, rng), outliers)
    return _index_split(np.concatenate(training), tested, anomalous, validation)


def coil100(labels: Indices, num_categories: int, outliers: float, seed: int, num_test: int = 2) -> IndexSplit:
    """Random normal categories, at most one anomalous image of each other category (section IV-H of CVGAD).

    The paper's fractions of outliers are 0.5 for 1, 0.25 for 4 and 0.15 for 7 categories of 70 + 2 images.

    Of each of the ``num_categories`` normal categories, ``num_test`` images chosen at random are tested and the others
    are trained on.

    Raises:
        KdganError: Fewer than 1 or all of the categories, too few others for the fraction, fewer than 1 image to
            test, a category of fewer than ``num_test + 1`` images, a fraction outside (0, 1), a negative seed.
    """
    check_fraction(outliers)
    if num_test < 1:
        raise KdganError("A normal category needs test images", f"got {num_test}", "Test at least one")
    rng = _make_rng("seed", seed)
    classes = _shuffle_by_class(labels, rng)
    for label, images in classes.items():
        _check_num_images(len(images), label, num_test + 1)
    num_others = len(classes) - num_categories
    if num_categories < 1 or num_others < 1:
        problem = "At least one category must be normal and at least one anomalous"
        raise KdganError(problem, f"got {num_categories} normal of {len(classes)}", "Give another number of categories")
    wanted = _num_outliers(num_categories * num_test, outliers)
    if wanted > num_others:
        problem = f"A fraction of {outliers:g} outliers needs {wanted} anomalous categories"
        hint = "Use a smaller fraction of outliers or fewer normal categories"
        raise KdganError(problem, f"found {num_others}", hint)
    shuffled = rng.permutation(np.array(list(classes), dtype=np.int64)).tolist()
    normals = [classes[label] for label in shuffled[:num_categories]]
    anomalous = [classes[label][0] for label in shuffled[num_categories : num_categories + wanted]]
    train = np.concatenate([images[num_test:] for images in normals])
    tested = np.concatenate([images[:num_test] for images in normals])
    return _index_split(train, tested, np.array(anomalous, dtype=np.int64))


def ocgan_p1(labels: Indices, normal: int, seed: int) -> IndexSplit:
    """Protocol 1 of OCGAN: 80 % of one class is trained on, 20 % tested with as many anomalous images.

    80 % is rounded to the nearest image. Anomalous images are sampled from all other classes together, so a larger
    class contributes more of them. If they are too few, fewer normal images are tested.

    Raises:
        KdganError: No or fewer than 3 images of the normal class, none of another one, a negative seed.
    """
    _check_class(labels, normal, "The normal class needs training images")
    rng = _make_rng("seed", seed)
    train, tested = _split_80_20(rng.permutation(_flatnonzero(labels == normal)), normal)
    tested, anomalous = _limit_to_fraction(tested, rng.permutation(_flatnonzero(labels != normal)), 0.5)
    return _index_split(train, tested, anomalous)


def holdout_mask(num_train: int) -> NDArray[np.bool_]:
    """Which normal images are held out of training to set the threshold on: every tenth of 50 to 999 images.

    Small sets are overfitted: their own scores underestimate those of unseen normal images, and a threshold set on them
    would call every image an anomaly. Larger sets don't show that, and sets below 50 images are too small to split.

    Returns:
        (num_train,) True for a held-out image.
    """
    mask = np.zeros(num_train, dtype=np.bool_)
    if MIN_IMAGES_FOR_HOLDOUT <= num_train <= MAX_IMAGES_FOR_HOLDOUT:
        mask[HOLDOUT_STEP - 1 :: HOLDOUT_STEP] = True
    return mask


def _index_split(train: Indices, normals: Indices, anomalous: Indices, validation: Indices = NO_INDICES) -> IndexSplit:
    test = np.concatenate([normals, anomalous])
    order = np.argsort(test)
    is_anomalous = np.repeat([False, True], [len(normals), len(anomalous)])
    return IndexSplit(np.sort(train), np.sort(validation), test[order], is_anomalous[order])


def _flatnonzero(mask: NDArray[np.bool_]) -> Indices:
    return np.flatnonzero(mask).astype(np.int64)


def _shuffle_by_class(labels: Indices, rng: np.random.Generator) -> dict[int, Indices]:
    """The indices of each class in random order; classes ascending."""
    return {int(label): rng.permutation(_flatnonzero(labels == label)) for label in np.unique(labels)}


def _split_80_20(images: Indices, label: int) -> tuple[Indices, Indices]:
    """The first 80 %, rounded to the nearest image (there are no ties), and the rest."""
    _check_num_images(len(images), label, MIN_IMAGES_TO_SPLIT)
    num_train = (len(images) * 4 + 2) // 5
    return images[:num_train], images[num_train:]


def _interleave(groups: list[Indices], rng: np.random.Generator) -> Indices:
    """One image per group in turn, groups in random order, so that any prefix is spread evenly over the groups."""
    shuffled = [groups[number] for number in rng.permutation(len(groups))]
    rounds = np.concatenate([NO_INDICES, *(np.arange(len(group)) for group in shuffled)])
    return np.concatenate([NO_INDICES, *shuffled])[np.argsort(rounds, kind="stable")]


def _limit_to_fraction(normals: Indices, anomalous: Indices, outliers: float) -> tuple[Indices, Indices]:
    """The longest prefixes of both such that anomalous images are the fraction ``outliers``."""
    if len(anomalous) == 0:
        raise KdganError("The test split needs outliers", "found no image of another class", "Use a larger data set")
    wanted = _num_outliers(len(normals), outliers)
    if wanted <= len(anomalous):
        return normals, anomalous[:wanted]
    return normals[: max(1, round(len(anomalous) * (1 - outliers) / outliers))], anomalous


def _num_outliers(num_normals: int, outliers: float) -> int:
    return max(1, round(num_normals * outliers / (1 - outliers)))


def _make_rng(name: str, number: int, num_per_seed: int = 1) -> np.random.Generator:
    """A generator seeded by ``number // num_per_seed``; ``name`` is what the error message calls the number."""
    if number < 0:
        raise KdganError(f"The {name} must be 0 or more", f"got {number}", f"Give another {name}")
    return np.random.default_rng(number // num_per_seed)


def _check_class(labels: Indices, wanted: int, problem: str) -> None:
    classes = np.unique(labels).tolist()
    if wanted not in classes:
        hint = f"Classes with images are {', '.join(map(str, classes))}"
        raise KdganError(problem, f"found none of class {wanted}", hint)


def _check_num_images(num_images: int, label: int, minimum: int) -> None:
    if num_images < minimum:
        problem = f"Splitting a class needs at least {minimum} images"
        raise KdganError(problem, f"found {num_images} of class {label}", "Use a data set with more images")


def check_fraction(outliers: float) -> None:
    if not 0 < outliers < 1:
        problem = "The fraction of outliers must be between 0 and 1"
        raise KdganError(problem, f"got {outliers:g}", "Give for example 0.5")
