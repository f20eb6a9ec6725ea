"""Which images are normal and which novel, as pure functions of labels."""

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError

HELD_OUT_STEP = 10
FEWEST_TO_HOLD_OUT, MOST_TO_HOLD_OUT = 50, 1000


def simo(
    y_train: NDArray[np.int64], y_test: NDArray[np.int64], normal: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Single class inlier, multiple classes outlier (section IV of P-KDGAN).

    Args:
        y_train: Labels of the official training split (N,).
        y_test: Labels of the official test split (M,).
        normal: The normal class.

    Returns:
        Indices of the training images, all of the normal class; for the whole test split (M,) whether an image is
        novel, that is of any other class.

    Raises:
        KdganError: The training split has no image of the normal class.
    """
    train = np.flatnonzero(y_train == normal)
    if len(train) == 0:
        there = sorted({int(label) for label in np.unique(y_train)})
        raise KdganError(
            "The normal class must have training images",
            f"found none of class {normal}",
            f"Classes with images are {', '.join(map(str, there))}",
        )
    return train, y_test != normal


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
