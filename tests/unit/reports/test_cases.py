"""The picture of best and worst cases: which photos it shows, what it says about them, and what it draws."""

import numpy as np
import pytest
import torch
from matplotlib.colors import Normalize, to_hex
from matplotlib.contour import QuadContourSet
from matplotlib.transforms import Bbox
from PIL import Image

from kdgan_compress.reports import ScoredPhotos, plot_cases
from kdgan_compress.reports import cases as module
from kdgan_compress.reports.cases import CaseRow, case_rows, overlay_map, verdict


def make_photos(scores, is_anomalous, masks=None, channels=3, shape=(12, 20), classes=None):
    count = len(scores)
    generator = torch.Generator().manual_seed(0)
    return ScoredPhotos(
        photos=torch.randint(0, 256, (count, channels, *shape), dtype=torch.uint8, generator=generator),
        maps=np.random.default_rng(0).random((count, *shape), dtype=np.float32),
        masks=masks or [None] * count,
        scores=np.array(scores, dtype=float),
        is_anomalous=np.array(is_anomalous),
        classes=classes or ["scratch" if each else "good" for each in is_anomalous],
    )


def square(shape=(12, 20)):
    mask = np.zeros(shape, dtype=bool)
    mask[3:8, 4:10] = True
    return mask


@pytest.fixture
def figures(monkeypatch):
    kept, original = [], module.save_figure
    monkeypatch.setattr(module, "save_figure", lambda figure, path: (kept.append(figure), original(figure, path)))
    return kept


def cases_of(figure):
    return [axis for axis in figure.axes if axis.images]


def contours(axis):
    return [each for each in axis.collections if isinstance(each, QuadContourSet)]


def test_the_rows_are_the_worst_and_best_of_each_kind():
    scores = np.array([5.0, 0.5, 7.0, 0.9, 6.0, 8.0, 1.5, 4.0, 3.0, 9.0, 0.2])
    is_anomalous = np.array([True, True, True, False, True, True, False, True, True, True, False])
    assert case_rows(scores, is_anomalous, threshold=1.0) == [
        CaseRow("Defects with the\nlowest scores", "1 of 8 missed", [1, 8, 7, 0]),
        CaseRow("Good photos with\nthe highest scores", "1 of 3 false alarms", [6, 3, 10]),
        CaseRow("Defects with the\nhighest scores", "7 of 8 found", [9, 5, 2, 4]),
    ]


@pytest.mark.parametrize(
    ("is_anomalous", "shown"),
    [([True], [[0]]), ([False], [[0]]), ([True] * 3, [[0, 1], [2]]), ([True] * 5, [[0, 1, 2], [4, 3]])],
)
def test_few_photos_are_shown_once(is_anomalous, shown):
    scores = np.arange(len(is_anomalous), dtype=float)
    assert [row.indices for row in case_rows(scores, np.array(is_anomalous), 1.0)] == shown


@pytest.mark.parametrize(
    ("score", "threshold", "is_anomalous", "expected"),
    [
        (3.0, 2.0, True, ("1.50 × limit: found", True)),
        (3.0, 2.0, False, ("1.50 × limit: false alarm", False)),
        (2.0, 2.0, True, ("1.00 × limit: missed", False)),
        (1.0, 2.0, False, ("0.50 × limit: passed", True)),
        (-1.0, -2.0, True, ("-1, limit -2: found", True)),
        (-0.123456, 0.0, False, ("-0.123, limit 0: passed", True)),
    ],
)
def test_a_score_is_stated_relative_to_the_threshold(score, threshold, is_anomalous, expected):
    assert verdict(score, threshold, is_anomalous) == expected


def test_high_values_hide_the_photo_and_low_ones_leave_it_grey():
    photo = np.zeros((1, 3, 3))
    photo[..., 0] = 0.9
    overlay = overlay_map(photo, np.array([[-5.0, 0.5, 99.0]]), Normalize(0, 1, clip=True))
    assert overlay.shape == (1, 3, 3)
    np.testing.assert_allclose(overlay[0, 0], 0.3)
    bright = np.array(module.MAP_COLORS(1.0)[:3])
    np.testing.assert_allclose(overlay[0, 2], 0.3 * 0.15 + 0.85 * bright)
    middle = np.array(module.MAP_COLORS(0.5)[:3])
    np.testing.assert_allclose(overlay[0, 1], 0.3 * (1 - 0.425) + 0.425 * middle)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_shows_photo_map_mask_and_verdict(tmp_path, figures, channels):
    is_anomalous = [True, True, False, False]
    scored = make_photos([4.0, 1.0, 3.0, 0.5], is_anomalous, [square(), square(), None, None], channels)
    plot_cases(scored, 2.0, tmp_path / "cases.png")
    with Image.open(tmp_path / "cases.png") as picture:
        assert picture.format == "PNG"
    axes = cases_of(figures[0])
    assert [(axis.get_title(), to_hex(axis.title.get_color())) for axis in axes] == [
        ("scratch\n0.50 × limit: missed", "#d62728"),
        ("good\n1.50 × limit: false alarm", "#d62728"),
        ("good\n0.25 × limit: passed", "#000000"),
        ("scratch\n2.00 × limit: found", "#000000"),
    ]
    assert [len(contours(axis)) for axis in axes] == [1, 0, 0, 1]
    (contour,) = contours(axes[0])
    loops = contour.get_paths()[0].to_polygons(closed_only=False)
    left, right = sorted((Bbox([loop.min(0), loop.max(0)]) for loop in loops), key=lambda box: box.x0)
    assert (left.x0, left.y0, left.x1, left.y1) == pytest.approx((3.5, 2.5, 9.5, 7.5))
    assert right.x0 - left.x0 == 20 + 1  # the map begins after the photo and a gap
    pixels = axes[0].images[0].get_array()
    assert pixels.shape == (12, 41, 3)
    expected = np.broadcast_to(scored.photos[1].permute(1, 2, 0).numpy() / 255, (12, 20, 3))
    np.testing.assert_allclose(pixels[:, :20], expected)
    assert (pixels[:, 20] == 1).all()


@pytest.mark.parametrize("mask", [None, np.zeros((12, 20), dtype=bool), np.ones((12, 20), dtype=bool)])
def test_a_mask_without_an_outline_is_left_out(tmp_path, figures, mask):
    plot_cases(make_photos([1.0], [True], [mask]), 2.0, tmp_path / "cases.png")
    assert contours(cases_of(figures[0])[0]) == []


def test_the_scale_begins_at_the_good_photos_and_marks_the_limit(tmp_path, figures):
    scored = make_photos([4.0, 1.0, 3.0], [True, True, False])
    low = np.median(scored.maps[2])
    for limit, high in ((None, np.quantile(scored.maps, 0.995)), (0.9, low + 1.5 * (0.9 - low))):
        plot_cases(scored, 2.0, tmp_path / "cases.png", map_threshold=limit)
        bar = next(axis for axis in figures[-1].axes if axis.get_ylabel() == "anomaly map")
        assert bar.get_ylim() == pytest.approx((low, high))
        assert ("limit" in [label.get_text() for label in bar.get_yticklabels()]) == (limit is not None)


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_equal_maps_and_odd_class_names_are_plotted_too(tmp_path, figures, threshold):
    scored = make_photos([1.0, 1.0], [True, False], classes=["$x_{", "y" * 99])
    scored.maps[:] = 0.5
    plot_cases(scored, 2.0, tmp_path / "cases.png", map_threshold=threshold)
    assert [axis.get_title().split("\n")[0] for axis in cases_of(figures[0])] == ["$x_{", "y" * 32]
