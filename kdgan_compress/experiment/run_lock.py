"""The lock of a run folder: one process trains in it. The system frees it when the process ends, even by SIGKILL."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdgan_compress.errors import KdganError
from kdgan_compress.files import lock, parse_json, read_text, remove_stale_files, unwritable

LOCK_FILE = ".lock"
MAX_BYTES = 10_000


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder inside ``with``, and first remove what a killed process left in it.

    Raises:
        KdganError: Another process has the lock; the message says which.
    """
    path, new = folder / LOCK_FILE, [each for each in (folder, *folder.parents) if not each.exists()]
    descriptor = _acquire(path)
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
        remove_stale_files(folder)
        yield
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        _release(path, descriptor)
        for each in new:
            if each.is_dir() and not any(each.iterdir()):  # nothing came of it
                each.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left in the folder of a finished run, in which nobody trains again."""
    if (folder / LOCK_FILE).exists():
        with suppress(KdganError), locked(folder):
            pass


def _acquire(path: Path) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise unwritable(path.parent, error) from None
        if not lock(descriptor):
            os.close(descriptor)
            raise _in_use(path)
        try:
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except (FileNotFoundError, PermissionError):
            pass  # its owner has just removed it; Windows refuses access to such a file
        os.close(descriptor)


def _release(path: Path, descriptor: int) -> None:
    """Remove the lock's file, then free the lock; the other way round on Windows, which keeps files that are open."""
    if sys.platform == "win32":
        os.close(descriptor)
        with suppress(OSError):  # the next process has opened it already
            path.unlink(missing_ok=True)
    else:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _in_use(path: Path) -> KdganError:
    try:
        owner = parse_json(read_text(path, MAX_BYTES))
        found = f"process {owner['pid']} on {owner['host']} has been training in {path.parent} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        found = f"another one has {path.parent}"
    return KdganError("Only one process can train in a run folder", found, "Wait until it ends, or stop it")
