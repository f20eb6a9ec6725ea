"""Pixel AUROC against scikit-learn, AUPRO against a loop over thresholds, and cases counted by hand."""

import numpy as np
import pytest
from reference.pixel_curves import connected_regions, pro_area, roc_area
from sklearn.metrics import roc_auc_score

from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import PixelMetrics, aupro, pixel_auroc, pixel_metrics

BOTH = [pixel_auroc, aupro]


def random_photos(seed, levels=None, shape=(5, 9, 7)):
    """Maps, with ties if ``levels`` is given, and masks of which the last is empty."""
    rng = np.random.default_rng(seed)
    masks = rng.random(shape) < 0.15
    masks[-1] = False
    masks[0, 0, :2] = True
    maps = rng.normal(size=shape) + masks * rng.uniform(-0.5, 2)
    return (maps if levels is None else np.round(maps * levels) / levels), masks


def grid(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("seed", range(3))
def test_pixel_auroc_is_scikit_learns(seed, levels, dtype):
    maps, masks = random_photos(seed, levels)
    maps = maps.astype(dtype)
    expected = roc_auc_score(masks.ravel(), maps.ravel())
    assert pixel_auroc(maps, masks) == pytest.approx(expected, abs=1e-12)
    assert roc_area(maps, masks) == pytest.approx(expected)
    assert type(pixel_auroc(maps, masks)) is float


@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("seed", range(4))
def test_aupro_is_that_of_a_loop_over_thresholds(seed, levels, max_fpr):
    maps, masks = random_photos(seed, levels)
    assert sum(map(len, map(connected_regions, masks))) > 20
    assert aupro(maps, masks, max_fpr) == pytest.approx(pro_area(maps, masks, max_fpr), abs=1e-12)


def test_the_limit_is_0_3():
    maps, masks = random_photos(0)
    assert aupro(maps, masks) == pytest.approx(pro_area(maps, masks, 0.3), abs=1e-12)


def test_a_small_defect_counts_as_much_as_a_large_one():
    """The single pixel lies above all normal ones, the four pixels below: overlap 1/2 at every rate, AUROC 1/5."""
    masks = grid("#....", "...##", "...##")[None]
    maps = np.where(masks, 0.0, np.linspace(1, 2, 15).reshape(1, 3, 5))
    maps[0, 0, 0] = 9
    assert aupro(maps, masks) == pytest.approx(1 / 2)
    assert pixel_auroc(maps, masks) == pytest.approx(1 / 5)


def test_pixels_that_touch_at_a_corner_are_one_region():
    """One region of three pixels, of which one is found, and not three regions; as two it would be 1/2 · (1/2 + 0)."""
    masks = grid("#...", ".#..", "..#.", "....")[None]
    maps = np.where(masks, 0.0, np.linspace(1, 2, 16).reshape(1, 4, 4))
    maps[0, 1, 1] = 9
    assert aupro(maps, masks) == pytest.approx(1 / 3)
    masks[0, 1, 1] = False  # without it, two regions
    maps[0, 0, 0], maps[0, 1, 1] = 9, 0.5
    assert aupro(maps, masks) == pytest.approx(1 / 2)


def test_the_curve_is_cut_at_the_limit():
    """Ten normal pixels 1 … 10; the defect at 8.5 is found from a rate of 2/10 on: 0.1 of 0.3, 0.8 of 1."""
    masks = np.zeros((1, 1, 11), dtype=bool)
    masks[0, 0, 10] = True
    maps = np.array([[[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 8.5]]])
    assert aupro(maps, masks) == pytest.approx(1 / 3)
    assert aupro(maps, masks, 0.2) == pytest.approx(0)
    assert aupro(maps, masks, 0.25) == pytest.approx(0.05 / 0.25)
    assert aupro(maps, masks, 1.0) == pixel_auroc(maps, masks) == pytest.approx(0.8)


def test_a_tie_is_a_straight_line():
    """The defect ties with all ten normal pixels: the curve is the diagonal, up to 0.3 a triangle of height 0.3."""
    masks = np.zeros((1, 1, 11), dtype=bool)
    masks[0, 0, 10] = True
    maps = np.ones((1, 1, 11))
    assert pixel_auroc(maps, masks) == pytest.approx(1 / 2)
    assert aupro(maps, masks) == pytest.approx(0.3 / 2)


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, 0.0)])
@pytest.mark.parametrize("metric", BOTH)
def test_a_perfect_and_an_inverted_map(metric, sign, expected):
    _, masks = random_photos(0)
    assert metric(sign * masks.astype(np.float32), masks) == pytest.approx(expected)


@pytest.mark.parametrize("metric", BOTH)
def test_photos_of_different_sizes_in_any_order(metric):
    maps, masks = random_photos(0)
    other_maps, other_masks = random_photos(1, shape=(2, 3, 20))
    lists = [*maps, *other_maps], [*masks, *other_masks]
    expected = {pixel_auroc: roc_area, aupro: pro_area}[metric](*lists)
    assert metric(*lists) == pytest.approx(expected)
    assert metric(*(each[::-1] for each in lists)) == pytest.approx(expected)


@pytest.mark.parametrize("metric", BOTH)
def test_only_the_order_of_values_counts_and_nothing_is_changed(metric):
    maps, masks = random_photos(0, 3)
    before = maps.copy(), masks.copy()
    assert metric(np.exp(maps), masks) == pytest.approx(metric(maps, masks))
    assert metric(1e6 + 1e-6 * maps, masks) == pytest.approx(metric(maps, masks))
    assert metric(maps, masks * np.uint8(255)) == metric(maps, masks)
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(masks, before[1])


@pytest.mark.parametrize("metric", BOTH)
@pytest.mark.parametrize(("value", "found"), [(False, "18 normal and 0"), (True, "0 normal and 18")])
def test_one_kind_of_pixels_alone_is_an_error(metric, value, found):
    with pytest.raises(KdganError, match=f"need normal and anomalous pixels; found {found} anomalous"):
        metric(np.ones((2, 3, 3)), np.full((2, 3, 3), value))


@pytest.mark.parametrize("metric", BOTH)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_maps_are_finite(metric, value):
    maps, masks = random_photos(0)
    maps[3, 2, 1] = value
    with pytest.raises(KdganError, match="maps must be finite; photo 3 has NaN or infinity"):
        metric(maps, masks)


@pytest.mark.parametrize("metric", BOTH)
def test_sizes_and_numbers_must_agree(metric):
    maps, masks = random_photos(0)
    with pytest.raises(KdganError, match="differ in number; got 5 and 4"):
        metric(maps, masks[:4])
    with pytest.raises(KdganError, match=r"photo 1 has \(7, 9\) and \(9, 7\)"):
        metric(maps, [masks[0], masks[1].T, *masks[2:]])


@pytest.mark.parametrize("max_fpr", [0.0, -0.1, 1.01, float("nan")])
def test_the_limit_is_checked(max_fpr):
    with pytest.raises(KdganError, match="max_fpr is out of range"):
        aupro(*random_photos(0), max_fpr)


# A labelled split


def test_a_split_with_all_masks():
    maps, masks = random_photos(0)
    is_anomalous = np.array([True, True, True, True, False])
    metrics = pixel_metrics(maps, [*masks[:4], None], is_anomalous)
    assert metrics == PixelMetrics(pixel_auroc(maps, masks), aupro(maps, masks), num_masks=4, num_without_mask=0)


@pytest.mark.parametrize("missing", [None, np.zeros((9, 7), dtype=bool)], ids=["no mask", "empty mask"])
def test_anomalous_photos_without_a_mask_are_left_out_and_counted(missing):
    maps, masks = random_photos(0)
    is_anomalous = np.array([True, True, True, True, False])
    metrics = pixel_metrics(list(maps), [masks[0], missing, masks[2], missing, None], is_anomalous)
    kept = [0, 2, 4]
    expected = pixel_auroc(maps[kept], masks[kept]), aupro(maps[kept], masks[kept])
    assert metrics == PixelMetrics(*expected, num_masks=2, num_without_mask=2)


def test_the_pixels_of_normal_photos_are_normal():
    maps, masks = random_photos(0)
    is_anomalous = np.array([True, False, True, True, False])
    metrics = pixel_metrics(maps, list(masks), is_anomalous)
    masks[1] = False
    assert metrics == PixelMetrics(pixel_auroc(maps, masks), aupro(maps, masks), num_masks=3, num_without_mask=0)


@pytest.mark.parametrize("masks", [[None] * 4, [np.zeros((3, 3), dtype=bool)] * 4, [np.ones((3, 3), dtype=bool)] * 4])
def test_a_split_without_both_kinds_of_pixels_has_no_pixel_metrics(masks):
    assert pixel_metrics(np.ones((4, 3, 3)), masks, np.ones(4, dtype=bool)) is None


def test_a_split_of_normal_photos_has_no_pixel_metrics():
    assert pixel_metrics(np.ones((2, 3, 3)), [None, None], np.zeros(2, dtype=bool)) is None
    assert pixel_metrics([], [], np.zeros(0, dtype=bool)) is None


def test_a_split_needs_one_label_per_photo():
    maps, masks = random_photos(0)
    with pytest.raises(KdganError, match="labels differ in number; got 5 and 5 and 3"):
        pixel_metrics(maps, list(masks), np.ones(3, dtype=bool))
