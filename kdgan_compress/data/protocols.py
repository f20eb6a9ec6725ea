"""Which images are trained on, calibrated on and tested on, as pure functions of labels and a seed.

All index a pool: every image of a source, the official training split first, then the official test split. P-KDGAN is
measured under SIMO; CVGAD under MISO 80/20, GPND's five folds and COIL-100's categories; OCGAN under its protocol 1.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.data.drawing import (
    Indices,
    balanced,
    cut_80,
    in_turns,
    none,
    num_novel,
    permuted,
    require_class,
    require_fraction,
    require_size,
    seeded,
    where,
)
from kdgan_compress.errors import KdganError

HELD_OUT_STEP = 10
FEWEST_TO_HOLD_OUT, MOST_TO_HOLD_OUT = 50, 1000

NUM_FOLDS = 5


@dataclass(frozen=True, eq=False)
class IndexSplit:
    """Indices into the pool, each part ascending; no image is in two parts or twice in one.

    Attributes:
        train: Normal images to train on, int64 (N,).
        validation: Normal images to find the threshold on, int64 (V,); V is 0 where the protocol has none.
        test: int64 (M,).
        test_is_anomalous: (M,) whether a test image is novel.
    """

    train: Indices
    validation: Indices
    test: Indices
    test_is_anomalous: NDArray[np.bool_]

    @property
    def sha256(self) -> str:
        """A fingerprint of the whole split in hex: two runs that share it saw and were tested on the same images."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test, self.test_is_anomalous):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


def simo(labels: Indices, num_official_train: int, normal: int) -> IndexSplit:
    """Single class inlier, multiple classes outlier (section IV of P-KDGAN); nothing is drawn.

    Trains on the normal class of the official training split and tests on the whole official test split.

    Args:
        labels: Of the pool (N,).
        num_official_train: How many of them are the official training split's.
        normal: The normal class.

    Raises:
        KdganError: The training split has no image of the normal class.
    """
    official = labels[:num_official_train]
    require_class(official, normal, "The normal class must have training images")
    is_anomalous = labels[num_official_train:] != normal
    test = np.arange(num_official_train, len(labels), dtype=np.int64)
    return IndexSplit(where(official == normal), none(), test, is_anomalous)


def miso_8020(labels: Indices, novel_class: int, seed: int) -> IndexSplit:
    """Multiple classes inlier, single class outlier, 80/20 (section IV-D of CVGAD).

    One permutation of every class cuts it: 80 % of each normal class, rounded to the nearest image, is trained on, the
    rest is tested with all images of the novel class. (Drawing the two parts separately, as EGBAD's public code does,
    tests on images that were trained on.) A class is cut alike whichever other one is novel.

    Args:
        labels: Of the pool (N,).
        novel_class: The one class that is novel; all others are normal.
        seed: Of the permutations.

    Raises:
        KdganError: No image of the novel class or no other class, a class of fewer than 3 images, a negative seed.
    """
    require_class(labels, novel_class, "The novel class must have images")
    classes = permuted(labels, seeded("seed", seed))
    novel = classes.pop(novel_class)
    if not classes:
        raise KdganError(
            "The split must leave normal classes to train on",
            f"found only images of the novel class {novel_class}",
            "Take a set of several classes",
        )
    cuts = [cut_80(images, label) for label, images in classes.items()]
    train, tested = (np.concatenate(parts) for parts in zip(*cuts, strict=True))
    return _index_split(train, tested, novel)


def gpnd_5fold(labels: Indices, normal: int, outliers: float, trial: int) -> IndexSplit:
    """Five-fold cross-validation, 60/20/20 (section IV-G of CVGAD, after GPND).

    Every class is permuted and cut into five folds whose sizes differ by at most 1. Of the normal class one fold is
    tested, the next is validation, three are training. Novel images are of the other classes' tested fold, spread over
    these classes as evenly as they go. Where they are too few, fewer normal images are tested; none is ever repeated.
    The test set of a smaller fraction is part of a larger one's as long as no normal image has to be left out.

    Args:
        labels: Of the pool (N,).
        normal: The normal class.
        outliers: Fraction of the test set that is novel, in (0, 1); rounded to the nearest image and at least one.
        trial: ``trial // 5`` seeds the permutation, fold ``trial % 5`` is tested.

    Raises:
        KdganError: No or fewer than 5 images of the normal class, a fraction outside (0, 1), a negative trial, or no
            image of another class in the tested fold.
    """
    require_fraction(outliers)
    require_class(labels, normal, "The normal class must have training images")
    generator = seeded("trial", trial, NUM_FOLDS)
    folds = {label: np.array_split(images, NUM_FOLDS) for label, images in permuted(labels, generator).items()}
    require_size(sum(map(len, folds[normal])), normal, NUM_FOLDS)
    tested, validation, *training = (folds[normal][(trial + shift) % NUM_FOLDS] for shift in range(NUM_FOLDS))
    others = [parts[trial % NUM_FOLDS] for label, parts in folds.items() if label != normal]
    tested, novel = balanced(tested, in_turns(others, generator), outliers)
    return _index_split(np.concatenate(training), tested, novel, validation)


def coil100(labels: Indices, num_categories: int, outliers: float, seed: int, num_test: int = 2) -> IndexSplit:
    """Random normal categories, at most one novel image of each other one (section IV-H of CVGAD).

    The paper's fractions of outliers are 0.5 for 1, 0.25 for 4 and 0.15 for 7 categories of 70 + 2 images.

    Args:
        labels: Of the pool (N,).
        num_categories: How many categories, chosen at random, are normal.
        outliers: Fraction of the test set that is novel, in (0, 1); rounded to the nearest image and at least one.
        seed: Of all that is chosen.
        num_test: How many images of each normal category, chosen at random, are tested; the others are trained on.

    Raises:
        KdganError: Fewer than 1 or all of the categories, too few others for the fraction, fewer than 1 image to
            test, a category of fewer than ``num_test + 1`` images, a fraction outside (0, 1), a negative seed.
    """
    require_fraction(outliers)
    if num_test < 1:
        raise KdganError("A normal category must have images to test on", f"got {num_test}", "Test at least one")
    generator = seeded("seed", seed)
    classes = permuted(labels, generator)
    for label, images in classes.items():
        require_size(len(images), label, num_test + 1)
    num_others = len(classes) - num_categories
    if num_categories < 1 or num_others < 1:
        raise KdganError(
            "The normal categories must be at least one and leave another to be novel",
            f"got {num_categories} of {len(classes)}",
            "Give another number of categories",
        )
    wanted = num_novel(num_categories * num_test, outliers)
    if wanted > num_others:
        raise KdganError(
            f"A test set of {outliers:g} outliers must have {wanted} categories beside the normal ones",
            f"found {num_others}",
            "Take a smaller fraction of outliers or fewer normal categories",
        )
    drawn = generator.permutation(np.array(list(classes), dtype=np.int64)).tolist()
    normals = [classes[label] for label in drawn[:num_categories]]
    novel = [classes[label][0] for label in drawn[num_categories : num_categories + wanted]]
    train = np.concatenate([images[num_test:] for images in normals])
    tested = np.concatenate([images[:num_test] for images in normals])
    return _index_split(train, tested, np.array(novel, dtype=np.int64))


def ocgan_p1(labels: Indices, normal: int, seed: int) -> IndexSplit:
    """Protocol 1 of OCGAN: 80 % of one class is trained on, 20 % tested among as many novel images.

    80 % is rounded to the nearest image. Novel images are drawn from all other classes together, so that a larger class
    gives more of them. Where they are too few, fewer normal images are tested.

    Args:
        labels: Of the pool (N,).
        normal: The normal class.
        seed: Of the draw.

    Raises:
        KdganError: No or fewer than 3 images of the normal class, none of another one, a negative seed.
    """
    require_class(labels, normal, "The normal class must have training images")
    generator = seeded("seed", seed)
    train, tested = cut_80(generator.permutation(where(labels == normal)), normal)
    tested, novel = balanced(tested, generator.permutation(where(labels != normal)), 0.5)
    return _index_split(train, tested, novel)


def held_out(num_train: int) -> NDArray[np.bool_]:
    """Which training normals are kept from training to find the threshold on: every tenth of 50 to 999 images.

    A small set is seen so often that its own scores fall far below those of new normal images, and a threshold found on
    them would call every image an anomaly. Larger sets don't show that, and of fewer than 50 none can be spared.

    Returns:
        (num_train,) True for an image that is held out; all False where none is.
    """
    held = np.zeros(num_train, dtype=np.bool_)
    if FEWEST_TO_HOLD_OUT <= num_train < MOST_TO_HOLD_OUT:
        held[HELD_OUT_STEP - 1 :: HELD_OUT_STEP] = True
    return held


def _index_split(train: Indices, normals: Indices, novel: Indices, validation: Indices | None = None) -> IndexSplit:
    test = np.concatenate([normals, novel])
    order = np.argsort(test)
    is_anomalous = np.repeat([False, True], [len(normals), len(novel)])
    kept = none() if validation is None else np.sort(validation)
    return IndexSplit(np.sort(train), kept, test[order], is_anomalous[order])
