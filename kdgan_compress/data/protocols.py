"""Which images are normal and which novel, as pure functions of labels."""

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.errors import KdganError


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
