"""The scorer of images and photos against a loop over tiles."""

import numpy as np
import pytest
import torch

from kdgan_compress.data.tiles import TileGrid
from kdgan_compress.gans import Architecture, build, eval_mode
from kdgan_compress.scores import FittedScorer
from kdgan_compress.scores.fit import fit_gaussian, fit_position_gaussian
from kdgan_compress.scores.scorer import features_of, photo_score

ARCHITECTURE = Architecture(channels=(2, 4, 8), latent_size=12, norm="batch")
GRID = TileGrid((48, 64), 32, 16)


@pytest.mark.parametrize("family", ["ede", "ed", "ed_ehat", "cvgad"])
@pytest.mark.parametrize("features", ["residual", "latents"])
def test_features_are_z1_and_z2(family: str, features: str) -> None:
    generator = build(Architecture(family=family, channels=(2, 4, 8), latent_size=12)).generator.eval()
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        if family == "cvgad":
            z1, x_hat = generator(images)
            z2, _ = generator(x_hat)
        else:
            z1 = generator.encoder(images)  # type: ignore[operator]
            z2 = (generator.encoder2 or generator.encoder)(generator.decoder(z1))  # type: ignore[operator]
        found = features_of(generator, images, features)  # type: ignore[arg-type]
    torch.testing.assert_close(found, z1 - z2 if features == "residual" else torch.cat([z1, z2], 1))


def test_photo_scores_are_those_of_its_tiles_one_by_one() -> None:
    generator = build(ARCHITECTURE).generator.eval()
    photos = torch.rand(12, 1, *GRID.frame) * 2 - 1
    with torch.no_grad():
        unfitted = FittedScorer(generator, None, grid=GRID).eval()
        statistic = fit_position_gaussian(unfitted.position_features(photos).double().numpy(), rank=4)
        scorer = FittedScorer(generator, statistic, grid=GRID).eval()
        scores, own = scorer.tile_scores(photos), unfitted.tile_scores(photos)
        position = 0
        for top in (0, 16):
            for left in (0, 16, 32):
                tiles = photos[:, :, top : top + 32, left : left + 32]
                features = features_of(generator, tiles, "latents")
                white = (statistic.project(features) - statistic.means[position]) @ statistic.whitening[position]
                torch.testing.assert_close(scores[:, position], white.norm(dim=1), rtol=1e-3, atol=1e-4)
                torch.testing.assert_close(own[:, position], generator.anomaly_score(tiles))  # type: ignore[operator]
                position += 1
        torch.testing.assert_close(scorer.anomaly_score(photos), scores.max(1).values)
        torch.testing.assert_close(scorer.anomaly_map(photos), GRID.map(scores))


def test_images_without_tiles_are_scored_by_the_statistic() -> None:
    generator = build(ARCHITECTURE).generator
    images = torch.rand(20, 1, 32, 32)
    with torch.no_grad(), eval_mode(generator):
        features = features_of(generator, images, "residual")
        statistic = fit_gaussian(features.double().numpy()[:, None])
        scorer = FittedScorer(generator, statistic, "residual")
        torch.testing.assert_close(scorer.anomaly_score(images), statistic(features[:, None])[:, 0])


def test_photo_score() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 60))
    top = np.sort(scores, axis=1)[:, -3:].mean(1)
    np.testing.assert_allclose(photo_score(torch.from_numpy(scores), "top5"), top)
    np.testing.assert_allclose(photo_score(torch.from_numpy(scores), "max"), scores.max(1))
    np.testing.assert_allclose(photo_score(torch.from_numpy(scores[:, :4]), "top5"), scores[:, :4].max(1))
