"""Data sets that may have to be downloaded: read once before workers start, which would download them at once."""

from collections.abc import Sequence

from kdgan_compress.data.sources import TorchvisionSource, open_source
from kdgan_compress.errors import KdganError
from kdgan_compress.sweeps.grid import Cell


def download_data(cells: Sequence[Cell]) -> None:
    """Download what is missing; a failure is left to the cells, which report it."""
    for source, root in sorted({(cell.recipe.data.source, cell.recipe.data.root or "") for cell in cells}):
        try:
            opened = open_source(source, root or None)
            if isinstance(opened, TorchvisionSource):
                opened.read()
        except KdganError:
            continue
