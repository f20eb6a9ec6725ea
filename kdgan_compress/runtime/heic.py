"""HEIC, the photo format of phones: read through pillow-heif, which the extra ``heic`` installs."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

from kdgan_compress.errors import KdganError

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIC_HINT = "pip install 'kdgan-compress[heic]'"
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
HEADER_SIZE = 64


def has_heic_support() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def is_heic(header: bytes) -> bool:
    """Whether a file is HEIC, by its first ``HEADER_SIZE`` bytes: its name may say ``.jpg``."""
    brands = {header[i : i + 4] for i in range(8, len(header), 4)}
    return header[4:8] == b"ftyp" and not HEIC_BRANDS.isdisjoint(brands)


@cache
def register_heic() -> None:
    """Let Pillow open HEIC files.

    Raises:
        KdganError: pillow-heif is missing.
    """
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise KdganError("Reading HEIC needs pillow-heif", "it is not installed", f"Run {HEIC_HINT}") from None
