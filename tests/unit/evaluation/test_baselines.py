import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.svm import OneClassSVM

from kdgan_compress.evaluation import baselines
from kdgan_compress.evaluation.baselines import (
    BASELINES,
    brightness,
    isolation_forest,
    kernel_density,
    nearest_neighbour,
    one_class_svm,
    pca_residual,
    pixel_pca_residual,
)


def images(count, seed, channels=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=generator)


def correlation(a, b):
    return np.corrcoef(a.flatten().double(), b.flatten().double())[0, 1]


def unit(image):
    pixels = image.flatten().double().numpy()
    pixels = pixels - pixels.mean()
    return pixels / np.sqrt((pixels**2).sum())


@pytest.mark.parametrize("channels", [1, 3])
def test_nearest_neighbour_is_by_correlation(channels):
    train, test = images(12, 0, channels), images(5, 1, channels)
    test[0] = train[3] // 2 + 100  # another contrast and brightness
    expected = [min(np.sqrt(max(2 - 2 * correlation(image, other), 0)) for other in train) for image in test]
    scores = nearest_neighbour(train, test).scores
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert scores[0] < 0.05 < scores[1]
    assert scores.dtype == np.float64


def test_of_many_training_images_an_even_choice_is_taken(monkeypatch):
    train = images(7, 0)
    monkeypatch.setattr(baselines, "MAX_REFERENCE_IMAGES", 3)
    scores = nearest_neighbour(train, train).scores
    assert (scores < 1e-2).tolist() == [i in (0, 3, 6) for i in range(7)]
    monkeypatch.setattr(baselines, "MAX_REFERENCE_IMAGES", 7)
    assert (nearest_neighbour(train, train).scores < 1e-2).all()


@pytest.mark.parametrize("num_train", [40, 17])
def test_pca_residual_is_what_16_components_leave(num_train):
    train, test = images(num_train, 0), images(6, 1)
    normals = np.array([unit(image) for image in train])
    mean = normals.mean(0)
    _, _, directions = np.linalg.svd(normals - mean, full_matrices=False)
    expected = []
    for image in test:
        rest = unit(image) - mean
        for direction in directions[:16]:
            rest = rest - (rest @ direction) * direction
        expected.append(np.sqrt((rest**2).sum()))
    scores = pca_residual(train, test).scores
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float64


@pytest.mark.parametrize("num_train", [2, 9])
def test_few_training_images_are_components_themselves(num_train):
    train = images(num_train, 0)
    scores = pca_residual(train, torch.cat([train, images(1, 1)])).scores
    assert scores[:-1].max() < 1e-3 < 0.5 < scores[-1]


@pytest.mark.parametrize("score", BASELINES.values(), ids=BASELINES)
def test_images_without_contrast_are_scored_too(score):
    flat = torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)
    scores = score(images(20, 0), flat).scores
    assert np.isfinite(scores).all()
    assert scores[0] == scores[1]


@pytest.mark.parametrize("score", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize("num_train", [1, 2])
def test_one_or_two_training_images_are_enough(score, num_train):
    assert np.isfinite(score(images(num_train, 0), images(4, 1)).scores).all()


@pytest.mark.parametrize("score", BASELINES.values(), ids=BASELINES)
def test_equal_images_give_equal_scores_in_any_call(score):
    train, test = images(30, 0), images(5, 1)
    np.testing.assert_array_equal(score(train, test).scores, score(train, test).scores)


def test_kernel_density_is_the_log_of_a_sum_of_gaussians():
    train, test = images(5, 0), images(3, 1)
    normals, others = (np.array([unit(image) for image in group]) for group in (train, test))
    _, _, directions = np.linalg.svd(normals - normals.mean(0), full_matrices=False)
    centres, points = (group @ directions[:4].T for group in (normals, others))
    expected = []
    for point in points:
        log_kernels = -((centres - point) ** 2).sum(1) / (2 * 0.1**2) - 4 * np.log(0.1 * np.sqrt(2 * np.pi))
        expected.append(-np.log(np.exp(log_kernels - log_kernels.max()).mean()) - log_kernels.max())
    np.testing.assert_allclose(kernel_density(train, test).scores, expected, rtol=1e-2)


def test_the_svm_is_a_sum_over_its_support_vectors():
    train, test = images(40, 0), images(4, 1)
    result = one_class_svm(train, test)
    pixels, others = (group.flatten(1).numpy() / np.float32(255) for group in (train, test))
    gamma = 1 / (pixels.shape[1] * pixels.var())
    svm = OneClassSVM(nu=0.1, gamma=gamma).fit(pixels)
    kernel = np.exp(-gamma * ((others[:, None] - svm.support_vectors_) ** 2).sum(2))
    np.testing.assert_allclose(result.scores, -(kernel @ svm.dual_coef_[0] + svm.intercept_), atol=1e-4)
    assert result.size_bytes == len(svm.support_) * (64 + 4) + 8


def test_bytes_are_what_a_device_would_have_to_store():
    train, test = images(20, 0), images(2, 1)
    assert nearest_neighbour(train, test).size_bytes == 20 * 64
    assert pca_residual(train, test).size_bytes == 4 * 17 * 64
    assert pixel_pca_residual(train, test).size_bytes == 4 * (19 + 1) * 64  # 20 images span 19 components
    assert kernel_density(train, test).size_bytes == 4 * (20 * 19 + 20 * 64)
    assert brightness(train, test).size_bytes == 8
    forest = IsolationForest(n_estimators=100, random_state=0).fit(train.flatten(1).numpy() / np.float32(255))
    num_nodes = sum(len(tree.tree_.feature) for tree in forest.estimators_)
    assert isolation_forest(train, test).size_bytes == 12 * num_nodes


def test_kernels_are_centred_on_an_even_choice_of_images(monkeypatch):
    train = images(7, 0)
    monkeypatch.setattr(baselines, "MAX_KERNEL_IMAGES", 3)
    scores = kernel_density(train, train).scores
    assert set(scores.argsort()[:3]) == {0, 3, 6}
    np.testing.assert_array_equal(one_class_svm(train, train).scores, one_class_svm(train[::3], train).scores)


def test_an_odd_one_out_is_found_by_all_but_the_brightness():
    ramp = torch.arange(64).reshape(8, 8)
    noise = torch.randint(0, 9, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    normals = (ramp * 3 + noise).to(torch.uint8)
    test = torch.cat([normals[20:], normals[20:21].flip(3)])
    for name, score in BASELINES.items():
        scores = score(normals[:20], test).scores
        assert (scores.argmax() == len(test) - 1) is np.bool_(name != "brightness")


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_is_the_distance_from_the_mean_in_standard_deviations(channels):
    train, test = images(12, 0, channels), images(5, 1, channels)
    test[0] = 250
    means = [float(np.mean(image.numpy())) for image in train]
    expected = [abs(float(np.mean(image.numpy())) - np.mean(means)) / np.std(means) for image in test]
    scores = brightness(train, test).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert scores.dtype == np.float64
    assert scores.argmax() == 0


def test_brightness_of_images_of_another_size_and_of_equal_training_images():
    train = torch.full((3, 1, 8, 8), 100, dtype=torch.uint8)
    test = torch.stack([torch.full((1, 16, 12), level, dtype=torch.uint8) for level in (100, 101, 90)])
    scores = brightness(train, test).scores
    assert np.isfinite(scores).all()
    assert scores.argsort().tolist() == [0, 1, 2]
