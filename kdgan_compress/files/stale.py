"""Temporary files of processes that were killed: recognised by their name and by not being locked."""

import os
import re
import sys
from pathlib import Path

WINDOWS_LOCK_OFFSET = 1 << 30
"""Windows lets nobody read a locked byte: one behind the end keeps the content readable."""

TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def lock(descriptor: int) -> bool:
    """Lock an open file for this process, without waiting; False if another process has it locked.

    The system frees the lock when the process ends, however that happens. Where a file system has no locks, every
    file is taken to be free.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, WINDOWS_LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def remove_stale_files(folder: Path) -> None:
    """Remove temporary files that no running process is writing; nothing happens if the folder does not exist."""
    if sys.platform == "win32" or not folder.is_dir():
        return
    for path in [each for each in folder.iterdir() if TEMPORARY_NAME.fullmatch(each.name)]:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if lock(descriptor):
                path.unlink(missing_ok=True)
        except OSError:
            continue
        finally:
            os.close(descriptor)
