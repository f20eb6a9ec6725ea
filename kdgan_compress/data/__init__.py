"""Data: where images come from, and which of them are normal or anomalous, for training or testing."""

from kdgan_compress.data.prepare import resize, to_channels
from kdgan_compress.data.protocols import IndexSplit, coil100, gpnd_5fold, holdout_mask, miso_8020, ocgan_p1, simo
from kdgan_compress.data.settings import PROTOCOLS, DataSettings
from kdgan_compress.data.sources import SOURCES, Source, open_source
from kdgan_compress.data.split import Split, load_split, native_channels

__all__ = [
    "PROTOCOLS",
    "SOURCES",
    "DataSettings",
    "IndexSplit",
    "Source",
    "Split",
    "coil100",
    "gpnd_5fold",
    "holdout_mask",
    "load_split",
    "miso_8020",
    "native_channels",
    "ocgan_p1",
    "open_source",
    "resize",
    "simo",
    "to_channels",
]
