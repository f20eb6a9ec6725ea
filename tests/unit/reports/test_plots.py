"""Curves of losses, negative ones among them."""

import pytest

from kdgan_compress.reports import plots


@pytest.mark.parametrize(("value", "scale"), [(0.5, "log"), (-3.0, "symlog")])
def test_a_negative_loss_is_shown_too(tmp_path, monkeypatch, value, scale):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    lines = [{"stage_index": 0, "epoch": epoch, "l1": 0.1, "wasserstein": value} for epoch in (1, 2)]
    plots.plot_curves(lines, tmp_path / "curves.png")
    axis = figures[0].axes[0]
    assert axis.get_yscale() == scale
    assert [list(line.get_ydata()) for line in axis.get_lines()] == [[0.1, 0.1], [value, value]]
    assert axis.get_ylim()[0] < value < axis.get_ylim()[1]
