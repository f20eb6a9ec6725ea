"""Data: where images come from, and which of them are normal, novel, trained on and tested on."""

from kdgan_compress.data.prepare import resize, to_channels
from kdgan_compress.data.protocols import held_out, simo
from kdgan_compress.data.split import DataSettings, Split, load_split, native_channels

__all__ = ["DataSettings", "Split", "held_out", "load_split", "native_channels", "resize", "simo", "to_channels"]
