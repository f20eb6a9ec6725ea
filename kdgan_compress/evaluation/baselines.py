"""Baseline detectors by scikit-learn, for comparison with GANs: functions of normal images and test images.

Both are uint8, (N, C, S, S), N ≥ 1, and (M, C, S, S). All but the brightness first centre each image and scale it to
unit length, so Euclidean distance ranks images like Pearson correlation.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

NUM_COMPONENTS = 16
MAX_REFERENCE_IMAGES = 5000
MIN_BRIGHTNESS_STD = 1e-3
"""In grey levels."""


def nearest_neighbour_scores(train: Tensor, test: Tensor) -> NDArray[np.float64]:
    """Distance to the nearest training image: (M,) in [0, 2], higher is more anomalous.

    Of more than 5,000 training images, an evenly spaced subset is used.
    """
    references = train[:: -(-len(train) // MAX_REFERENCE_IMAGES)]
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_unit_length(references))
    distances, _ = neighbours.kneighbors(_unit_length(test))
    return np.asarray(distances[:, 0], dtype=np.float64)


def pca_residual_scores(train: Tensor, test: Tensor) -> NDArray[np.float64]:
    """Length of the residual after projection to 16 principal components of the training images: (M,) ≥ 0.

    With fewer than 17 training images, N − 1 components are used.
    """
    normals, images = _unit_length(train), _unit_length(test)
    num_components = min(NUM_COMPONENTS, len(normals) - 1, normals.shape[1])
    residuals = images - normals.mean(0)
    if num_components:
        pca = PCA(num_components, random_state=0).fit(normals)
        residuals = images - pca.inverse_transform(pca.transform(images))
    return np.asarray(np.linalg.norm(residuals, axis=1), dtype=np.float64)


def brightness_scores(train: Tensor, test: Tensor) -> NDArray[np.float64]:
    """Distance of the mean brightness from that of the training images, in their standard deviations: (M,) ≥ 0.

    Lighting often differs between good and bad photos: if this baseline does well, so does a detector that has learnt
    nothing else. The images may have other sizes than the training images.
    """
    normals, images = (pixels.flatten(1).double().mean(1).numpy() for pixels in (train, test))
    return np.asarray(np.abs(images - normals.mean()) / max(normals.std(), MIN_BRIGHTNESS_STD), dtype=np.float64)


BASELINES: dict[str, Callable[[Tensor, Tensor], NDArray[np.float64]]] = {
    "nearest neighbour": nearest_neighbour_scores,
    "PCA-16 residual": pca_residual_scores,
    "brightness": brightness_scores,
}


def _unit_length(images: Tensor) -> NDArray[np.float32]:
    pixels = images.flatten(1).numpy().astype(np.float32)
    centred = pixels - pixels.mean(1, keepdims=True)
    unit: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return unit
