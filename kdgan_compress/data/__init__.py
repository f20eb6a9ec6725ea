"""Data: where images come from, and which of them are normal, novel, trained on and tested on."""

from kdgan_compress.data.prepare import resize, to_channels
from kdgan_compress.data.protocols import IndexSplit, coil100, gpnd_5fold, held_out, miso_8020, ocgan_p1, simo
from kdgan_compress.data.settings import PROTOCOLS, DataSettings
from kdgan_compress.data.split import Split, load_split, native_channels

__all__ = [
    "PROTOCOLS",
    "DataSettings",
    "IndexSplit",
    "Split",
    "coil100",
    "gpnd_5fold",
    "held_out",
    "load_split",
    "miso_8020",
    "native_channels",
    "ocgan_p1",
    "resize",
    "simo",
    "to_channels",
]
