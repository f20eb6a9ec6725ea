import numpy as np
import pytest
import torch

from kdgan_compress.evaluation import baselines
from kdgan_compress.evaluation.baselines import (
    BASELINES,
    brightness_scores,
    nearest_neighbour_scores,
    pca_residual_scores,
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
    scores = nearest_neighbour_scores(train, test)
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert scores[0] < 0.05 < scores[1]
    assert scores.dtype == np.float64


def test_of_many_training_images_an_even_choice_is_taken(monkeypatch):
    train = images(7, 0)
    monkeypatch.setattr(baselines, "MAX_REFERENCE_IMAGES", 3)
    scores = nearest_neighbour_scores(train, train)
    assert (scores < 1e-2).tolist() == [i in (0, 3, 6) for i in range(7)]
    monkeypatch.setattr(baselines, "MAX_REFERENCE_IMAGES", 7)
    assert (nearest_neighbour_scores(train, train) < 1e-2).all()


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
    scores = pca_residual_scores(train, test)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.dtype == np.float64


@pytest.mark.parametrize("num_train", [2, 9])
def test_few_training_images_are_components_themselves(num_train):
    train = images(num_train, 0)
    scores = pca_residual_scores(train, torch.cat([train, images(1, 1)]))
    assert scores[:-1].max() < 1e-3 < 0.5 < scores[-1]


@pytest.mark.parametrize("score", BASELINES.values(), ids=BASELINES)
def test_images_without_contrast_are_scored_too(score):
    flat = torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)
    scores = score(images(20, 0), flat)
    assert np.isfinite(scores).all()
    assert scores[0] == scores[1] > 0


def test_pca_of_a_single_training_image():
    assert np.isfinite(pca_residual_scores(images(1, 0), images(4, 1))).all()


def test_an_odd_one_out_is_found_by_all_but_the_brightness():
    ramp = torch.arange(64).reshape(8, 8)
    noise = torch.randint(0, 9, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    normals = (ramp * 3 + noise).to(torch.uint8)
    test = torch.cat([normals[20:], normals[20:21].flip(3)])
    for name, score in BASELINES.items():
        scores = score(normals[:20], test)
        assert (scores[-1] > 2 * scores[:-1].max()) is np.bool_(name != "brightness")


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_is_the_distance_from_the_mean_in_standard_deviations(channels):
    train, test = images(12, 0, channels), images(5, 1, channels)
    test[0] = 250
    means = [float(np.mean(image.numpy())) for image in train]
    expected = [abs(float(np.mean(image.numpy())) - np.mean(means)) / np.std(means) for image in test]
    scores = brightness_scores(train, test)
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert scores.dtype == np.float64
    assert scores.argmax() == 0


def test_brightness_of_images_of_another_size_and_of_equal_training_images():
    train = torch.full((3, 1, 8, 8), 100, dtype=torch.uint8)
    test = torch.stack([torch.full((1, 16, 12), level, dtype=torch.uint8) for level in (100, 101, 90)])
    scores = brightness_scores(train, test)
    assert np.isfinite(scores).all()
    assert scores.argsort().tolist() == [0, 1, 2]
