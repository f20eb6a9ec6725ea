"""Paths inside files: stored relative to the file's folder, so that a tree of folders can be moved or sent."""

import os
from pathlib import Path


def relative_path(path: str, folder: Path) -> str:
    """An absolute path relative to a folder, with ``/``; a relative path as it is.

    On Windows, a path on another drive stays absolute.
    """
    if not Path(path).is_absolute():
        return path
    try:
        return Path(os.path.relpath(Path(path).resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path


def absolute_path(path: str, folder: Path) -> str:
    """The path that a file in a folder names; an absolute path as it is."""
    return path if Path(path).is_absolute() else os.path.normpath(folder.resolve() / path)
