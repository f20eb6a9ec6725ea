"""Curves of losses, and histograms of scores."""

import numpy as np
import pytest
from PIL import Image

from kdgan_compress.reports import plots


@pytest.mark.parametrize(("value", "scale"), [(0.5, "log"), (-3.0, "symlog")])
def test_a_negative_loss_is_shown_too(tmp_path, monkeypatch, value, scale):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    lines = [{"stage_index": 0, "epoch": epoch, "l1": 0.1, "wasserstein": value} for epoch in (1, 2)]
    plots.plot_curves(lines, tmp_path / "curves.png")
    axis = figures[0].axes[0]
    assert axis.get_yscale() == scale
    assert [list(line.get_ydata()) for line in axis.get_lines()] == [[0.1, 0.1], [value, value]]
    assert axis.get_ylim()[0] < value < axis.get_ylim()[1]


def test_a_run_whose_metrics_are_lost_has_empty_curves(tmp_path):
    plots.plot_curves([], tmp_path / "curves.png")  # warnings are errors
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 100


@pytest.mark.parametrize(("auc_raw", "labels"), [(0.5, ["EMA", "without EMA"]), (None, ["EMA"])])
def test_auc_without_ema_is_plotted_if_it_was_measured(tmp_path, monkeypatch, auc_raw, labels):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    lines = [{"stage_index": 0, "epoch": epoch, "l1": 0.1, "auc": 0.9, "auc_raw": auc_raw} for epoch in (1, 2)]
    plots.plot_curves(lines, tmp_path / "curves.png")
    assert [line.get_label() for line in figures[0].axes[1].get_lines()] == labels


@pytest.mark.parametrize(
    ("calibration", "normal", "anomalous"),
    [
        ([0.0], [0.0, 0.0], [0.0]),
        ([2.5, 2.5], [2.5], [2.5]),
        ([1.0], [], []),
        ([0.1, 0.2], [0.15], [1e9]),
        ([-3.0, -2.0], [-2.5], [-1.0]),
        ([0.1] * 300, [0.2] * 300, [50.0]),
    ],
)
def test_scores_are_plotted_without_a_warning_and_none_is_left_out(
    tmp_path, monkeypatch, calibration, normal, anomalous
):
    """Equal scores, negative ones, and a group that lies beyond the last bin."""
    figures, original = [], plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda *arguments: (figures.append(arguments[0]), original(*arguments)))
    test = np.array([*normal, *anomalous], dtype=float)
    is_anomalous = np.repeat([False, True], [len(normal), len(anomalous)])
    plots.plot_scores(np.array(calibration), test, is_anomalous, 1.0, tmp_path / "scores.png")
    with Image.open(tmp_path / "scores.png") as picture:
        assert picture.format == "PNG"
    num_groups = sum(1 for group in (calibration, normal, anomalous) if group)
    patches = figures[0].axes[0].patches
    assert len(patches) == num_groups
    assert all(patch.get_xy()[:, 1].max() > 0 for patch in patches)
