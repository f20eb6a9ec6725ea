"""A score on the discriminator's features: against pooling and Mahalanobis distances written out, and end to end."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import nn

from kdgan_compress.data import Split, TileSettings
from kdgan_compress.evaluation import fit_scorer, score_images
from kdgan_compress.gans import Architecture, build, normalize_images
from kdgan_compress.scores import FittedScorer, PositionGaussian, ScoreSettings
from kdgan_compress.scores.fit import fit_scaled_positions

SETTINGS = ScoreSettings("gaussian", "discriminator")
ARCHITECTURE = Architecture(channels=(2, 4, 8), image_channels=1, norm="instance")


def split_of(num_images: int = 60) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 1, 32, 32), generator=generator, dtype=torch.uint8)
    labels = np.arange(len(images)) % 2 == 1
    return Split(images, images, images, labels, labels.astype(str))


@pytest.mark.parametrize("family", ["ede", "ed", "ed_ehat", "cvgad"])
def test_features_are_every_blocks_activations_averaged_to_4x4(family: str) -> None:
    architecture = dataclasses.replace(ARCHITECTURE, family=family, num_clusters=1 if family == "cvgad" else None)
    discriminator = build(architecture).discriminator
    blocks = discriminator.features if family == "cvgad" else discriminator.encoder.features
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    levels = []
    with torch.no_grad():
        features = discriminator.position_features(images)
        values = images
        for block in blocks:
            values = block(values)
            if isinstance(block, nn.LeakyReLU):
                levels.append(values.clone())
    assert [tuple(level.shape[1:]) for level in levels] == [(2, 16, 16), (4, 8, 8), (8, 4, 4)]
    assert features.shape == (3, 16, 14)
    for row in range(4):
        for column in range(4):
            expected = []
            for level in levels:
                size = level.shape[-1] // 4
                cell = level[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
                expected.append(cell.mean((2, 3)))
            torch.testing.assert_close(features[:, 4 * row + column], torch.cat(expected, 1))


def test_a_scaled_gaussian_per_position_is_ledoit_wolfs_of_the_standardised_features() -> None:
    rng = np.random.default_rng(0)
    scales = np.array([1, 10, 100, 1, 1, 1])
    features = rng.normal(size=(80, 5, 6)) @ rng.normal(size=(6, 6)) * scales + rng.normal(size=6)
    features[:, :, 3] = 7
    statistic = fit_scaled_positions(features).double()
    assert statistic.projection.shape == (6, 5)
    scaled = (features / features.std((0, 1)).clip(1e-9))[:, :, [0, 1, 2, 4, 5]]
    scores = statistic(torch.from_numpy(features)).numpy()
    for position in range(5):
        expected = LedoitWolf().fit(scaled[:, position]).mahalanobis(scaled[:, position])
        np.testing.assert_allclose(scores[:, position] ** 2, expected, rtol=1e-4)


def test_an_images_score_is_the_mean_over_positions() -> None:
    gan, split = build(ARCHITECTURE), split_of()
    fitted = fit_scorer(gan.generator, split, SETTINGS, discriminator=gan.discriminator)
    assert isinstance(fitted.scorer, FittedScorer)
    assert isinstance(fitted.scorer.statistic, PositionGaussian)
    assert fitted.scorer.generator is gan.discriminator
    assert fitted.description == "one Gaussian per position of the discriminator's features"
    with torch.no_grad():
        features = gan.discriminator.eval().position_features(normalize_images(split.test))
        expected = fitted.scorer.statistic(features).mean(1)
    np.testing.assert_allclose(score_images(fitted.scorer, split.test), expected.numpy(), rtol=1e-4)


def test_a_tiles_score_is_the_mean_over_its_positions_and_a_photos_the_maximum_over_its_tiles() -> None:
    discriminator = build(ARCHITECTURE).discriminator.eval()
    grid = TileSettings(frame=(48, 48), stride=16).grid(32)
    photos = torch.rand(25, 1, 48, 48) * 2 - 1
    with torch.no_grad():
        unfitted = FittedScorer(discriminator, None, "discriminator", grid)
        features = unfitted.position_features(photos)
        assert features.shape == (25, 4 * 16, 14)
        tile = photos[:, :, 16:48, 0:32]
        torch.testing.assert_close(features[:, 2 * 16 : 3 * 16], discriminator.position_features(tile))
        statistic = fit_scaled_positions(features.double().numpy())
        scorer = FittedScorer(discriminator, statistic, "discriminator", grid)
        by_tile = statistic(features).reshape(25, 4, 16).mean(2)
        torch.testing.assert_close(scorer.tile_scores(photos), by_tile)
        torch.testing.assert_close(scorer.anomaly_score(photos), by_tile.amax(1))
        assert scorer.anomaly_map(photos).shape == (25, 48, 48)


def test_a_discriminator_without_features_leaves_the_generators_own_score() -> None:
    gan = build(ARCHITECTURE)
    fitted = fit_scorer(gan.generator, split_of(), SETTINGS, discriminator=nn.Identity())
    assert fitted.scorer is gan.generator
    assert fitted.description.endswith("its discriminator has no method position_features for a fitted one")
