"""Atomic writing of files."""

import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kdgan_compress.errors import KdganError
from kdgan_compress.files.stale import lock, remove_stale_files


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; at the end, flush the file and rename it to ``path``.

    After an error, the temporary file is removed and an older file is unchanged.

    Raises:
        KdganError: The path is not writable.
    """
    with atomic_paths([path]) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """``atomic_path`` for files that belong together: none is renamed before all have been written and flushed.

    Raises:
        KdganError: A path is not writable; older files are unchanged.
    """
    with ExitStack() as stack:
        temporaries = [stack.enter_context(_temporary(path)) for path in paths]
        modes = [temporary.stat().st_mode for temporary in temporaries]
        try:
            yield temporaries
            for temporary, mode in zip(temporaries, modes, strict=True):
                with temporary.open("r+b") as file:
                    os.fsync(file.fileno())
                temporary.chmod(mode)  # some writers create files that only their owner can read
            for path, temporary in zip(paths, temporaries, strict=True):
                temporary.replace(path)
        except OSError as error:
            raise unwritable(paths[0], error) from error


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """An empty file next to ``path``, locked so that other processes see that it is in use; removed at the end."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # another process may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise unwritable(path, error) from None
    if sys.platform == "win32":  # where an open file can't be renamed
        os.close(descriptor)
    else:
        lock(descriptor)
    try:
        yield temporary
    finally:
        if sys.platform != "win32":
            os.close(descriptor)
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")  # equal files on every system
        except UnicodeEncodeError as error:
            raise unwritable(
                path, OSError(f"its text has {error.object[error.start]!r}, which UTF-8 has not")
            ) from None


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: after an error, all of them are as before.

    Raises:
        KdganError: A path is not writable, or the disk is full.
    """
    for folder in {path.parent for path in contents}:
        remove_stale_files(folder)
    with atomic_paths(list(contents)) as temporaries:
        for path, temporary in zip(contents, temporaries, strict=True):
            try:
                temporary.write_bytes(contents[path])
            except OSError as error:
                raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> KdganError:
    """The error for an output path that can't be written."""
    hint = "Choose another path, or free space and permissions"
    return KdganError("The output path must be writable", f"{path}: {error.strerror or error}", hint)
