"""Statistics of lower rank: their threshold against folds by hand, their loss, and scores without such statistics."""

import numpy as np
import pytest
import torch
from fitted import GRID, fitted, normals
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from kdgan_compress.errors import KdganError
from kdgan_compress.export.rank import measure_truncation, truncate_rank
from kdgan_compress.export.validation.gate import ValidationData
from kdgan_compress.gans import normalize_images
from kdgan_compress.scores.fit import NUM_FOLDS, fit_position_gaussian


def photos(number: int, seed: int, network) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, *GRID.frame, network.image_channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def scored():
    """A scorer of rank 6, and data of which the normals are those that it was fitted to."""
    scorer, network = fitted()
    inside = normals(25, network).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    anomalous = np.arange(12) % 3 == 0
    test = np.where(anomalous[:, None, None, None], photos(12, 0, network), np.concatenate([inside[:12]]) // 2 + 60)
    return scorer, ValidationData(inside, inside, test.astype(np.uint8), anomalous, in_fit=True)


def scores(scorer, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return scorer.anomaly_score(normalize_images(torch.from_numpy(images).permute(0, 3, 1, 2))).double().numpy()


def test_truncated_scores_are_those_of_the_first_directions(scored):
    scorer, data = scored
    truncated = truncate_rank(scorer, 2)
    assert truncated.statistic.means.shape == (GRID.num_tiles, 2)
    assert (truncated.grid, truncated.photo, truncated.features) == (scorer.grid, scorer.photo, scorer.features)
    with torch.no_grad():
        features = scorer.position_features(normalize_images(torch.from_numpy(data.test).permute(0, 3, 1, 2))).double()
        statistic = scorer.statistic
        projected = (features @ statistic.projection.double() - statistic.offset)[:, :, :2] - statistic.means[:, :2]
        white = torch.einsum("bpr,prs->bps", projected, statistic.whitening[:, :2, :2].double())
    np.testing.assert_allclose(scores(truncated, data.test), white.norm(dim=2).amax(1).numpy(), rtol=1e-3)


def test_threshold_is_found_on_photos_outside_the_fit(scored):
    scorer, data = scored
    truncated = truncate_rank(scorer, 2)
    threshold, agreement = measure_truncation(scorer, truncated, 7.5, data)
    with torch.no_grad():
        images = normalize_images(torch.from_numpy(data.normals).permute(0, 3, 1, 2))
        features = scorer.position_features(images).double()
    expected = np.empty(25)
    parts = np.array_split(np.random.default_rng(0).permutation(25), NUM_FOLDS)
    for k, part in enumerate(parts):
        rest = np.concatenate([*parts[:k], *parts[k + 1 :]])
        statistic = fit_position_gaussian(features[rest].numpy(), 6).truncate(2)
        expected[part] = statistic(features[part].float()).amax(1).numpy()
    assert threshold == pytest.approx(np.quantile(expected, 0.99), rel=1e-3)
    old, new = scores(scorer, data.test), scores(truncated, data.test)
    auc = roc_auc_score(data.test_is_anomalous, new)
    assert agreement.auc == pytest.approx(auc)
    assert agreement.auc_diff == pytest.approx(auc - roc_auc_score(data.test_is_anomalous, old))
    assert agreement.label_agreement == np.mean((old > 7.5) == (new > threshold))
    assert agreement.spearman == pytest.approx(spearmanr(old, new).statistic)


def test_other_photos_set_the_threshold_themselves(scored):
    scorer, data = scored
    truncated = truncate_rank(scorer, 2)
    other = photos(30, 1, fitted()[1])
    elsewhere = ValidationData(other, other, data.test, data.test_is_anomalous)
    threshold, _ = measure_truncation(scorer, truncated, 7.5, elsewhere)
    assert threshold == pytest.approx(np.quantile(scores(truncated, other), 0.99), rel=1e-4)


@pytest.mark.parametrize("rank", [0, -1, 6, 100])
def test_rank_out_of_range(scored, rank):
    with pytest.raises(KdganError, match=rf"The rank must be 1 to 5; got {rank}\. Leave it out to keep all 6"):
        truncate_rank(scored[0], rank)


@pytest.mark.parametrize(("kind", "found"), [("gaussian", "this score is a gaussian"), (None, "this score has none")])
def test_rank_is_for_gaussians_per_position(kind, found):
    for scorer in (fitted(kind)[0], fitted()[0].generator):
        with pytest.raises(KdganError, match="--rank is for Gaussians per grid position") as caught:
            truncate_rank(scorer, 2)
    assert caught.value.found == "this score has none"
    with pytest.raises(KdganError, match=found):
        truncate_rank(fitted(kind)[0], 2)
