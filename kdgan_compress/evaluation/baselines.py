"""Baseline detectors by scikit-learn, for comparison with GANs: functions of normal images and test images.

Both are uint8, (N, C, S, S), N ≥ 1, and (M, C, S, S). "Unit length" means that each image is first centred and scaled
to unit length, so Euclidean distance ranks images like Pearson correlation. Nothing is random, and no label is used.
Each result has the bytes that a device would have to store: pixels as uint8, all other numbers as float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KernelDensity, NearestNeighbors
from sklearn.svm import OneClassSVM
from torch import Tensor

NUM_COMPONENTS = 16
NUM_PIXEL_COMPONENTS = 32
MAX_REFERENCE_IMAGES = 5000
MAX_KERNEL_IMAGES = 2000
"""For KDE and OC-SVM, whose time per test image grows with the number of training images."""

BANDWIDTH = 0.1
"""Of KDE, in units of the length of an image: near the highest likelihood of held-out normal digits."""

OUTLIER_FRACTION = 0.1
"""ν of the OC-SVM: the fraction of training images that may lie outside."""

NUM_TREES = 100
MIN_BRIGHTNESS_STD = 1e-3
"""In grey levels."""

FLOAT_BYTES = 4
NODE_BYTES = 12
"""Of an isolation tree: feature (2), threshold (4), children (2 × 2), number of training images (2)."""


@dataclass(frozen=True, eq=False)
class BaselineResult:
    """Scores (M,) of the test images, higher is more anomalous, and the bytes that a device would have to store."""

    scores: NDArray[np.float64]
    size_bytes: int


def nearest_neighbour(train: Tensor, test: Tensor) -> BaselineResult:
    """Distance to the nearest training image at unit length, in [0, 2]; stores the training images.

    Of more than 5,000 training images, an evenly spaced subset is used.
    """
    references = _subset(train, MAX_REFERENCE_IMAGES)
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_unit_length(references))
    distances, _ = neighbours.kneighbors(_unit_length(test))
    return BaselineResult(np.asarray(distances[:, 0], dtype=np.float64), references.numel())


def pca_residual(train: Tensor, test: Tensor) -> BaselineResult:
    """Length of the residual after projection to 16 principal components of the training images at unit length.

    With fewer than 17 training images, N − 1 components are used.
    """
    return _pca_residual(_unit_length(train), _unit_length(test), NUM_COMPONENTS)


def pixel_pca_residual(train: Tensor, test: Tensor) -> BaselineResult:
    """The same with 32 principal components of the pixels as they are, in [0, 1]."""
    return _pca_residual(_pixels(train), _pixels(test), NUM_PIXEL_COMPONENTS)


def kernel_density(train: Tensor, test: Tensor) -> BaselineResult:
    """Negative log density by Gaussian kernels in the space of 32 principal components at unit length.

    Kernels are centred on at most 2,000 training images, an evenly spaced subset; the components are those of all.
    """
    normals = _unit_length(train)
    num_components = min(NUM_PIXEL_COMPONENTS, len(normals) - 1, normals.shape[1])
    pca = PCA(num_components, random_state=0).fit(normals) if num_components else None
    centres, images = (
        each if pca is None else pca.transform(each)
        for each in (_unit_length(_subset(train, MAX_KERNEL_IMAGES)), _unit_length(test))
    )
    density = KernelDensity(bandwidth=BANDWIDTH).fit(centres)
    num_floats = centres.size + (0 if pca is None else (num_components + 1) * normals.shape[1])
    return BaselineResult(-np.asarray(density.score_samples(images), dtype=np.float64), FLOAT_BYTES * num_floats)


def one_class_svm(train: Tensor, test: Tensor) -> BaselineResult:
    """Negative decision function of a one-class SVM (ν 0.1, RBF kernel) on pixels; stores the support vectors.

    It is fitted to at most 2,000 training images, an evenly spaced subset.
    """
    svm = OneClassSVM(nu=OUTLIER_FRACTION).fit(_pixels(_subset(train, MAX_KERNEL_IMAGES)))
    num_vectors, num_pixels = svm.support_vectors_.shape
    size_bytes = num_vectors * (num_pixels + FLOAT_BYTES) + 2 * FLOAT_BYTES
    return BaselineResult(-np.asarray(svm.decision_function(_pixels(test)), dtype=np.float64), size_bytes)


def isolation_forest(train: Tensor, test: Tensor) -> BaselineResult:
    """Anomaly score of 100 isolation trees on pixels, in [0, 1]; each tree is grown on at most 256 training images."""
    forest = IsolationForest(n_estimators=NUM_TREES, random_state=0).fit(_pixels(train))
    num_nodes = sum(tree.tree_.node_count for tree in forest.estimators_)
    return BaselineResult(-np.asarray(forest.score_samples(_pixels(test)), dtype=np.float64), NODE_BYTES * num_nodes)


def brightness(train: Tensor, test: Tensor) -> BaselineResult:
    """Distance of the mean brightness from that of the training images, in their standard deviations.

    Lighting often differs between good and bad photos: if this baseline does well, so does a detector that has learnt
    nothing else. The images may have other sizes than the training images.
    """
    normals, images = (pixels.flatten(1).double().mean(1).numpy() for pixels in (train, test))
    scores = np.abs(images - normals.mean()) / max(normals.std(), MIN_BRIGHTNESS_STD)
    return BaselineResult(np.asarray(scores, dtype=np.float64), 2 * FLOAT_BYTES)


BASELINES: dict[str, Callable[[Tensor, Tensor], BaselineResult]] = {
    "nearest neighbour": nearest_neighbour,
    "PCA-16 residual": pca_residual,
    "PCA-32 residual": pixel_pca_residual,
    "KDE": kernel_density,
    "OC-SVM": one_class_svm,
    "isolation forest": isolation_forest,
    "brightness": brightness,
}


def _pca_residual(normals: NDArray[np.float32], images: NDArray[np.float32], max_components: int) -> BaselineResult:
    num_components = min(max_components, len(normals) - 1, normals.shape[1])
    residuals = images - normals.mean(0)
    if num_components:
        pca = PCA(num_components, random_state=0).fit(normals)
        residuals = images - pca.inverse_transform(pca.transform(images))
    scores = np.asarray(np.linalg.norm(residuals, axis=1), dtype=np.float64)
    return BaselineResult(scores, FLOAT_BYTES * (num_components + 1) * normals.shape[1])


def _subset(images: Tensor, size: int) -> Tensor:
    """An evenly spaced subset of at most ``size`` images."""
    return images[:: -(-len(images) // size)]


def _pixels(images: Tensor) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = images.flatten(1).numpy().astype(np.float32) / np.float32(255)
    return scaled


def _unit_length(images: Tensor) -> NDArray[np.float32]:
    pixels = images.flatten(1).numpy().astype(np.float32)
    centred = pixels - pixels.mean(1, keepdims=True)
    unit: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return unit
