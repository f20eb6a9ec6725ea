"""Reports: plots and pictures of what was trained."""

from kdgan_compress.reports.grids import Row, plot_rows
from kdgan_compress.reports.pictures import Reconstruction, plot_reconstructions
from kdgan_compress.reports.plots import plot_curves, plot_scores, plot_speed

__all__ = ["Reconstruction", "Row", "plot_curves", "plot_reconstructions", "plot_rows", "plot_scores", "plot_speed"]
