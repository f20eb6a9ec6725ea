"""Charts: curves by scikit-learn, and SVG that a page can hold."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from entries import entry
from sklearn.metrics import auc, roc_auc_score

from kdgan_compress.reports import scores_figure
from kdgan_compress.reports.charts import epochs_figure, mean_roc, pareto_figure, roc_figure, setting_figure, svg_text


def scored(seed, shift=1.0, count=400):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2 == 1
    return rng.normal(0, 1, count) + shift * labels, labels


def test_the_area_below_the_mean_curve_is_the_mean_auc():
    runs = [scored(0), scored(1, 2.0), scored(2, 0.3)]
    fpr, tpr = mean_roc(runs)
    assert (fpr[0], fpr[-1], tpr[-1]) == (0, 1, 1)
    expected = np.mean([roc_auc_score(labels, scores) for scores, labels in runs])
    assert auc(fpr, tpr) == pytest.approx(expected, abs=2e-3)


def test_an_svg_has_no_ground_no_link_and_no_date_and_says_what_it_shows():
    figure = roc_figure({"teacher": [scored(0)], "student": [scored(1)]})
    svg = svg_text(figure, 'AUC "by" <class>')
    root = ET.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'AUC "by" <class>'
    assert "width" not in root.attrib
    assert "viewBox" in root.attrib
    assert "#000000" not in svg
    assert "currentColor" in svg
    assert "<metadata" not in svg
    assert svg == svg_text(roc_figure({"teacher": [scored(0)], "student": [scored(1)]}), 'AUC "by" <class>')
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"teacher", "student", "false-positive rate"} <= texts


def test_the_legend_of_a_histogram_has_no_ground_either():
    scores, labels = scored(0)
    svg = svg_text(scores_figure(scores[~labels], scores, labels, 1.0), "scores")
    assert "#ffffff" not in svg


def test_auc_per_epoch_is_the_mean_over_the_runs():
    figure = epochs_figure({"student": [[0.5, 0.7], [0.7, 0.9]]})
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), [60, 80])


def test_every_known_cost_is_a_point_and_poor_baselines_are_left_out():
    entries = [
        entry("teacher", 0.9, size_bytes=1000),
        entry("student", 0.5, size_bytes=10),
        entry("PCA", 0.8, size_bytes=100, is_baseline=True),
        entry("brightness", 0.5, size_bytes=8, is_baseline=True),
        entry("unknown", 0.9),
    ]
    axis = pareto_figure(entries, "size_bytes").axes[0]
    front, *points = axis.get_lines()
    assert [point.get_label() for point in points] == ["teacher", "student", "PCA"]
    np.testing.assert_allclose(front.get_xdata(), [10, 100, 1000])
    assert axis.get_xscale() == "log"


def test_auc_against_a_setting_has_the_interval():
    line = [(1.0, entry("1", 0.6, ci95=0.05)), (2.0, entry("2", 0.7, ci95=0.01)), (4.0, entry("4", 0.8))]
    axis = setting_figure("batch size", {"ede": line}).axes[0]
    assert [float(y) for y in axis.containers[0].lines[0].get_ydata()] == pytest.approx([60, 70, 80])
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "4"]
