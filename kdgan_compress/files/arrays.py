"""Read NumPy's ``.npy`` and ``.npz`` files without ``np.load``, which believes the sizes that a file states.

Only plain arrays of numbers, truth values and text are read. As in ``reading``, errors are OSError or ValueError.
"""

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdgan_compress.files.reading import BoundedFile

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 4096
MAX_DIMENSIONS = 16
MAX_RATIO = 1032
"""No deflated data unpacks to more times its size."""

CHUNK_BYTES = 1 << 20
DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[biufU]\d{1,6}|\|?\?)['"]""")
ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([\d,\s]*)\)""")
MAX_DIGITS = 18
LAST_CODE_POINT, SURROGATES = 0x10FFFF, (0xD800, 0xDFFF)

ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(RuntimeError, LookupError, ArithmeticError, AttributeError, TypeError),
)
"""What zipfile raises for damaged archives, besides OSError and ValueError."""


class ArrayHeader(NamedTuple):
    """What precedes the values of an array.

    Attributes:
        dtype: Of numbers, truth values or text.
        shape: Its dimensions.
        is_fortran: Whether the first index changes fastest.
        offset: Size of the header in bytes; the values follow.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_array_header(stream: IO[bytes] | io.RawIOBase) -> ArrayHeader:
    """Read the header of a ``.npy`` file; the stream is then at the values.

    Raises:
        ValueError: It is not one, or of another kind of array.
    """
    start = _read_exactly(stream, 8)
    if start[:6] != MAGIC or start[6] not in (1, 2, 3):
        raise ValueError("it is not an array of NumPy")
    length_format = "<H" if start[6] == 1 else "<I"
    length_size = struct.calcsize(length_format)
    (length,) = struct.unpack(length_format, _read_exactly(stream, length_size))
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"an array's header has {length:,} bytes")
    text = _read_exactly(stream, length).decode("latin1")
    descr, order, shape = DESCR.search(text), ORDER.search(text), SHAPE.search(text)
    if descr is None or order is None or shape is None:
        raise ValueError("an array's header is damaged, or it has another type of values")
    sides = [side.strip() for side in shape[1].split(",") if side.strip()]
    if len(sides) > MAX_DIMENSIONS or not all(side.isdecimal() and len(side) <= MAX_DIGITS for side in sides):
        raise ValueError("an array's shape is not valid")
    try:
        dtype = np.dtype(descr[1])
    except TypeError:
        raise ValueError(f"NumPy has no type {descr[1]}") from None
    return ArrayHeader(dtype, tuple(map(int, sides)), order[1] == "True", 8 + length_size + length)


def read_arrays(
    path: Path, max_bytes: int, names: Collection[str] | None = None, max_arrays: int = 4096
) -> dict[str, NDArray[Any]]:
    """Read the arrays of an ``.npz`` file.

    Args:
        path: The file.
        max_bytes: Bound on their values together.
        names: Those to read, where they exist; None for all.
        max_arrays: Bound on their number.

    Raises:
        OSError: The file can't be read.
        ValueError: It is damaged, too large, or has other content.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name == info.filename or (names is not None and name not in names):
                    continue
                if len(arrays) == max_arrays:
                    raise ValueError(f"it has more than {max_arrays} arrays")
                arrays[name] = _read_member(archive, info, max_bytes)
                max_bytes -= arrays[name].nbytes
    except ZIP_ERRORS as error:
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from None
    return arrays


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> NDArray[Any]:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed in another way than NumPy's")
    if info.file_size > MAX_RATIO * (info.compress_size + 1):
        raise ValueError(f"{info.filename} can't be as large as it says")
    with archive.open(info) as stream:
        header = read_array_header(stream)
        if header.num_bytes > max_bytes:
            raise ValueError(f"{info.filename} has {header.num_bytes:,} bytes, more than the {max_bytes:,} allowed")
        if header.num_bytes != info.file_size - header.offset:
            raise ValueError(f"{info.filename} is incomplete, or its shape does not fit its size")
        values = bytearray(header.num_bytes)
        for start in range(0, len(values), CHUNK_BYTES):
            chunk = memoryview(values)[start : start + CHUNK_BYTES]
            chunk[:] = _read_exactly(stream, len(chunk))
        stream.read(1)  # the end, where the checksum is compared
    order: Literal["F", "C"] = "F" if header.is_fortran else "C"
    array: NDArray[Any] = np.ndarray(header.shape, header.dtype, values, order=order)
    _check_values(info.filename, array)
    return array


def _check_values(name: str, array: NDArray[Any]) -> None:
    """Check bytes that are not values of their type: NumPy would raise an exception when they are used."""
    if array.dtype.kind == "b" and (array.reshape(-1).view(np.uint8) > 1).any():
        raise ValueError(f"{name} has truth values that are neither true nor false")
    if array.dtype.kind == "U" and array.size:
        points = np.ascontiguousarray(array).reshape(-1).view(array.dtype.byteorder.replace("|", "=") + "u4")
        if ((points > LAST_CODE_POINT) | ((points >= SURROGATES[0]) & (points <= SURROGATES[1]))).any():
            raise ValueError(f"{name} has text that is not Unicode")


def _read_exactly(stream: IO[bytes] | io.RawIOBase, number: int) -> bytes:
    parts = []
    while number:
        part = stream.read(number)
        if not part:
            raise ValueError("it ends too early")
        parts.append(part)
        number -= len(part)
    return b"".join(parts)
