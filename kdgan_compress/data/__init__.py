"""Data: where images come from, and which of them are normal or anomalous, for training or testing."""

from kdgan_compress.data.settings import PROTOCOLS, DataSettings
from kdgan_compress.data.sources import SOURCES, UNKNOWN, Source
from kdgan_compress.data.split import Split, load_split, native_channels, resolve_tiles
from kdgan_compress.data.tiles import TileGrid, TileSettings

__all__ = [
    "PROTOCOLS",
    "SOURCES",
    "UNKNOWN",
    "DataSettings",
    "Source",
    "Split",
    "TileGrid",
    "TileSettings",
    "load_split",
    "native_channels",
    "resolve_tiles",
]
