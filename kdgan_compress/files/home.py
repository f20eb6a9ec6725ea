"""Paths that begin with ``~``."""

from pathlib import Path

from kdgan_compress.errors import KdganError


def expand_user(path: str | Path) -> Path:
    """The path with ``~`` replaced by the user's home folder.

    Raises:
        KdganError: The user has none, as in a container that runs under a number.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        found = f"{path} needs it, and neither HOME nor the system's list of users names it"
        raise KdganError("The home folder must be known", found, "Set HOME, or give a path without ~") from None
