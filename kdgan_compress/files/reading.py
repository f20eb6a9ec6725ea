"""Read files that anyone may have written: no size is believed before it is checked, and nothing waits for ever.

Functions of this module raise OSError, or ValueError with a short reason; callers know what the file should be and turn
them into a KdganError.
"""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_READ_BYTES = 1 << 24
"""Largest single read of a ``BoundedFile``."""


def check_regular(path: Path) -> int:
    """The size in bytes of a regular file.

    Raises:
        OSError: There is none, or it is a folder, a pipe or a device, from which reading might never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is a pipe or a device")
    return status.st_size


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file.

    Raises:
        OSError: It can't be read.
        ValueError: It is larger than ``max_bytes``.
    """
    size = check_regular(path)
    if size > max_bytes:
        raise ValueError(f"it has {size:,} bytes, more than {max_bytes:,}")
    with path.open("rb") as file:
        return file.read(max_bytes)


def read_text(path: Path, max_bytes: int) -> str:
    """The content of a UTF-8 file; see ``read_bytes``.

    Raises:
        OSError: It can't be read.
        ValueError: It is too large or not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text without NaN and infinity.

    Raises:
        ValueError: It is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it contains {name}")


class BoundedFile(io.FileIO):
    """A file opened for reading that refuses large single reads.

    Libraries that read a length from the file itself, such as zipfile its directory, then take no more memory.
    """

    def __init__(self, path: Path) -> None:
        check_regular(path)
        super().__init__(path, "rb")

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as ``io.FileIO`` does.

        Raises:
            ValueError: More than ``MAX_READ_BYTES`` are to be read.
        """
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > MAX_READ_BYTES:
            raise ValueError(f"one of its parts has {size:,} bytes")
        return super().read(size) or b""
