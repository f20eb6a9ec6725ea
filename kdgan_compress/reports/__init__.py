"""Reports: plots of runs and pictures of images."""

from kdgan_compress.reports.cases import ScoredPhotos, plot_cases
from kdgan_compress.reports.grids import ImageRow, Reconstruction, plot_reconstructions, plot_rows
from kdgan_compress.reports.plots import curves_figure, plot_curves, plot_scores, plot_speed, scores_figure

__all__ = [
    "ImageRow",
    "Reconstruction",
    "ScoredPhotos",
    "curves_figure",
    "plot_cases",
    "plot_curves",
    "plot_reconstructions",
    "plot_rows",
    "plot_scores",
    "plot_speed",
    "scores_figure",
]
