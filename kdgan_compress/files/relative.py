"""Paths inside files: stored relative to the file's folder, so that a tree of folders can be moved or sent."""

import os
import re
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
    """The path that a file in a folder names; an absolute path as it is.

    If there is nothing, the folder may have been moved on its own: a path that climbs is looked for in every folder
    above as well.
    """
    if Path(path).is_absolute():
        return path
    folder = folder.resolve()
    stored = os.path.normpath(folder / path)
    below = re.sub(r"^(\.\./)+", "", path)
    if below == path or os.path.lexists(stored):
        return stored
    return next((str(above / below) for above in folder.parents if os.path.lexists(above / below)), stored)
