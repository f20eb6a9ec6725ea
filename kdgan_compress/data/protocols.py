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

from kdgan_compress.data.sampling import (
    NO_INDICES,
    Indices,
    check_class,
    check_fraction,
    check_num_images,
    flatnonzero,
    interleave,
    limit_to_fraction,
    make_rng,
    num_outliers,
    shuffle_by_class,
    split_80_20,
)
from kdgan_compress.errors import KdganError

HOLDOUT_STEP = 10
MIN_IMAGES_FOR_HOLDOUT, MAX_IMAGES_FOR_HOLDOUT = 50, 999

NUM_FOLDS = 5


@dataclass(frozen=True, eq=False)
class IndexSplit:
    """Indices into the pool, each part ascending; the parts are disjoint and without repetition.

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
    check_class(official, normal, "The normal class needs training images")
    is_anomalous = labels[num_official_train:] != normal
    test = np.arange(num_official_train, len(labels), dtype=np.int64)
    return IndexSplit(flatnonzero(official == normal), NO_INDICES, test, is_anomalous)


def miso_8020(labels: Indices, novel_class: int, seed: int) -> IndexSplit:
    """Multiple classes inlier, single class outlier, 80/20 (section IV-D of CVGAD).

    One permutation per class splits it: 80 % of each normal class, rounded to the nearest image, are training images,
    the rest is tested together with all images of the novel class. (Sampling the two parts separately, as EGBAD's
    public code does, tests on training images.) A class is split the same way whichever other class is novel.

    Raises:
        KdganError: No image of the novel class or no other class, a class of fewer than 3 images, a negative seed.
    """
    check_class(labels, novel_class, "The novel class needs images")
    classes = shuffle_by_class(labels, make_rng("seed", seed))
    novel = classes.pop(novel_class)
    if not classes:
        found = f"found only images of the novel class {novel_class}"
        raise KdganError("The protocol needs normal classes to train on", found, "Use a data set with several classes")
    splits = [split_80_20(images, label) for label, images in classes.items()]
    train, tested = (np.concatenate(parts) for parts in zip(*splits, strict=True))
    return _index_split(train, tested, novel)


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
    check_class(labels, normal, "The normal class needs training images")
    rng = make_rng("trial", trial, NUM_FOLDS)
    folds = {label: np.array_split(images, NUM_FOLDS) for label, images in shuffle_by_class(labels, rng).items()}
    check_num_images(sum(map(len, folds[normal])), normal, NUM_FOLDS)
    tested, validation, *training = (folds[normal][(trial + shift) % NUM_FOLDS] for shift in range(NUM_FOLDS))
    others = [parts[trial % NUM_FOLDS] for label, parts in folds.items() if label != normal]
    tested, anomalous = limit_to_fraction(tested, interleave(others, rng), outliers)
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
    rng = make_rng("seed", seed)
    classes = shuffle_by_class(labels, rng)
    for label, images in classes.items():
        check_num_images(len(images), label, num_test + 1)
    num_others = len(classes) - num_categories
    if num_categories < 1 or num_others < 1:
        problem = "At least one category must be normal and at least one anomalous"
        raise KdganError(problem, f"got {num_categories} normal of {len(classes)}", "Give another number of categories")
    wanted = num_outliers(num_categories * num_test, outliers)
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
    check_class(labels, normal, "The normal class needs training images")
    rng = make_rng("seed", seed)
    train, tested = split_80_20(rng.permutation(flatnonzero(labels == normal)), normal)
    tested, anomalous = limit_to_fraction(tested, rng.permutation(flatnonzero(labels != normal)), 0.5)
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
