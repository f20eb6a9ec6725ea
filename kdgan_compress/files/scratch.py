"""Folders for files in between; those of processes that were killed are removed by the next one."""

import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdgan_compress.files.stale import lock

SCRATCH_NAME = re.compile(r"\.kdgan-compress\.[0-9a-f]{8}\.tmp")


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder that only this user can read, removed at the end.

    Args:
        parent: Where it is made; None for the system's folder of temporary files.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_stale_folders(parent)
    folder, descriptor = _make(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _make(parent: Path) -> tuple[Path, int | None]:
    """A folder that is locked for this process, and the lock."""
    while True:
        folder = parent / f".kdgan-compress.{secrets.token_hex(4)}.tmp"
        folder.mkdir(mode=0o700)
        if sys.platform == "win32":  # where folders have no locks
            return folder, None
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # taken for a stale one before it was locked
            continue
        if lock(descriptor) and folder.exists():
            return folder, descriptor
        os.close(descriptor)


def _remove_stale_folders(parent: Path) -> None:
    if sys.platform == "win32":
        return
    for folder in [each for each in parent.iterdir() if SCRATCH_NAME.fullmatch(each.name)]:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or no folder
            continue
        try:
            if os.fstat(descriptor).st_uid == os.getuid() and lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
