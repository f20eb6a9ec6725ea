"""Read what ``torch.save`` wrote: only tensors and plain values, and no more than the file's own size.

``weights_only`` keeps torch from executing code, but not from reserving whatever memory a file asks for.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from kdgan_compress.errors import first_line
from kdgan_compress.files import BoundedFile, check_regular
from kdgan_compress.files.arrays import ZIP_ERRORS

MAX_PICKLE_BYTES = 4_000_000
MAX_RECORDS = 100_000
RESERVING = frozenset({"bytearray", "_rebuild_qtensor", "_rebuild_wrapper_subclass"})
"""Functions that torch allows, and that reserve as much memory as the file says."""


def load_torch_file(path: Path) -> Any:
    """The content of a file, with its tensors on the CPU.

    Raises:
        OSError: The file can't be read.
        ValueError: It is damaged, or needs more memory than its size.
        pickle.UnpicklingError: It has objects of other types than tensors and plain values.
    """
    check_regular(path)
    if zipfile.is_zipfile(path):
        _check_archive(path)
    return torch.load(path, weights_only=True, map_location="cpu")


def _check_archive(path: Path) -> None:
    try:
        with BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if len(records) > MAX_RECORDS or len({info.filename for info in records}) < len(records):
                raise ValueError("it has too many records, or one of them twice")
            if any(info.compress_type != zipfile.ZIP_STORED for info in records):
                raise ValueError("torch does not compress its files")
            if sum(info.file_size for info in records) > check_regular(path):
                raise ValueError("its records would be larger than the file")
            for info in records:
                if info.filename.endswith("data.pkl"):
                    _check_pickle(archive, info)
    except ZIP_ERRORS as error:
        raise ValueError(first_line(error)) from None


def _check_pickle(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    if info.file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its description of the tensors has {info.file_size:,} bytes")
    for operation, argument, _ in pickletools.genops(archive.read(info)):
        if operation.name == "GLOBAL" and str(argument).rpartition(" ")[2] in RESERVING:
            raise ValueError(f"it calls {argument}")
