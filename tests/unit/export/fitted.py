"""Tiny scorers with fitted statistics, with and without tiles."""

import functools

import numpy as np
import onnx_ir as ir
import torch
from tiny_graphs import architecture, generator_of

from kdgan_compress.data.tiles import TileGrid
from kdgan_compress.export.graph.trace import trace
from kdgan_compress.gans import Architecture
from kdgan_compress.scores import FittedScorer
from kdgan_compress.scores.fit import fit_gaussian, fit_mixture, fit_position_gaussian

GRID = TileGrid((24, 40), 16, 8)
"""2×4 tiles of the tiny networks' size."""

FITS = {
    "gaussian": fit_gaussian,
    "mixture": lambda features: fit_mixture(features, 2, 10),
    "position-gaussian": lambda features: fit_position_gaussian(features, 6),
}


@functools.cache
def fitted(
    kind: str | None = "position-gaussian", features="residual", grid: TileGrid | None = GRID, photo="max", **described
) -> tuple[FittedScorer, Architecture]:
    """A scorer whose statistic is fitted to noise; ``described`` as for ``architecture``."""
    network = architecture(**described)
    generator = generator_of(network)
    scorer = FittedScorer(generator, None, features, grid, photo).eval()
    if kind is not None:
        with torch.no_grad():
            values = scorer.position_features(normals(80 if grid is None else 25, network, grid) / 127.5 - 1)
        noise = np.random.default_rng(0).normal(scale=0.1 * float(values.std()), size=values.shape)
        statistic = FITS[kind](values.double().numpy() + noise)  # noise keeps the whitening from magnifying rounding
        scorer = FittedScorer(generator, statistic, features, grid, photo).eval()
    return scorer, network


def normals(number: int, network: Architecture, grid: TileGrid | None = GRID) -> torch.Tensor:
    """Images or photos (number, C, H, W), 0 to 255: the same ramp with other noise."""
    size = (network.image_size,) * 2 if grid is None else grid.frame
    noise = np.random.default_rng(3).uniform(-100, 100, (number, network.image_channels, *size))
    ramp = np.linspace(60, 180, size[1]) + np.linspace(0, 20, size[0])[:, None]
    return torch.from_numpy(noise + ramp).float()


_CORES: dict[FittedScorer, ir.Model] = {}


def trace_once(scorer: FittedScorer, network: Architecture, x_hat: str | None = None, opset: int = 18) -> ir.Model:
    """In place of ``trace``, which takes seconds: a copy of the scorer's core."""
    if scorer not in _CORES:
        _CORES[scorer] = trace(scorer, network, x_hat, opset)
    return _CORES[scorer].clone()


def traced(*arguments, **described) -> tuple[FittedScorer, Architecture, ir.Model]:
    """The scorer of ``fitted`` with its core."""
    scorer, network = fitted(*arguments, **described)
    return scorer, network, trace_once(scorer, network)
