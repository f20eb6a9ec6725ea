"""Errors of code that a user wrote, as one line with the user's file and line."""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kdgan_compress.errors import KdganError

LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
THIS_PACKAGE, TORCH = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)
MAX_REASON = 200
"""Characters of an exception's message that are shown; torch prints whole graphs."""


@contextmanager
def user_code(problem: str, hint: str = "Fix it there") -> Iterator[None]:
    """Turn an exception inside ``with`` into a ``KdganError`` that names the user's line; KdganErrors pass.

    A module that ends the program, as a script without ``if __name__ == "__main__"`` may, counts as an exception.
    """
    try:
        yield
    except KdganError:
        raise
    except (Exception, SystemExit) as error:
        raise KdganError(problem, describe(error), hint) from error


def describe(error: BaseException) -> str:
    """Kind, message and place of an exception: ``ValueError: too wide (/home/me/mygan.py, line 7)``."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    message = lines[0].rstrip(".") if lines else ""
    if len(message) > MAX_REASON:
        message = f"{message[:MAX_REASON]}…"
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{text} ({place(error)})"


def place(error: BaseException) -> str:
    """File and line of the innermost frame outside of libraries or, if there is none, of torch and this package."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    for excluded in ((*LIBRARIES, THIS_PACKAGE), (THIS_PACKAGE, TORCH)):
        for frame in reversed(frames):
            if not _is_in(frame.filename, excluded):
                return f"{frame.filename}, line {frame.lineno}"
    return "inside of torch or this package"


def _is_in(file: str, folders: tuple[str | None, ...]) -> bool:
    path = Path(file)
    return any(path.is_relative_to(folder) for folder in folders if folder is not None)
