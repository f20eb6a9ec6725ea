"""``metrics.jsonl``: one line of losses per epoch, for people and plots. Nothing that is trained depends on it.

So a damaged line is left out and reported, and the run continues.
"""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import read_bytes, unwritable, write_text

MAX_BYTES = 64_000_000
MAX_LINE_LENGTH = 100_000
MAX_VALUE = 1e300

REQUIRED: dict[str, type | tuple[type, ...]] = {
    "stage_index": int,
    "stage": str,
    "epoch": int,
    "num_images": int,
    "seconds": (int, float),
    "images_per_s": (int, float),
    "auc": (int, float, type(None)),
    "auc_raw": (int, float, type(None)),
}
"""What the line of an epoch has, and its types; further values are losses."""

logger = logging.getLogger(__name__)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one line, and flush it to the disk.

    Raises:
        KdganError: The file can't be written.
    """
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from None


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Replace the file's lines."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; empty if there is no file.

    Raises:
        KdganError: The file can't be read or is far too large.
    """
    if not path.exists():
        return []
    try:
        content = read_bytes(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        hint = "Remove the file; only plots need it"
        raise KdganError("The metrics of a run must be readable", f"{path}: {first_line(error)}", hint) from None
    *lines, _ = content.split(b"\n")
    parsed = [_parse(line) for line in lines]
    valid = [line for line in parsed if line is not None]
    if len(valid) < len(parsed):
        logger.info("%s has %d damaged lines, which are left out", path, len(parsed) - len(valid))
    return valid


def _parse(content: bytes) -> dict[str, Any] | None:
    """A line's values by name, or None if it is damaged."""
    if len(content) > MAX_LINE_LENGTH:
        return None
    try:
        line = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    is_flat = isinstance(line, dict) and all(isinstance(v, str | int | float | None) for v in line.values())
    return line if is_flat else None


def is_epoch(line: dict[str, Any]) -> bool:
    """Whether a line has what the runner writes about an epoch, with finite numbers."""
    for name, value in line.items():
        if name not in REQUIRED and not isinstance(value, int | float):
            return False
        if isinstance(value, bool) or (isinstance(value, int | float) and not abs(value) <= MAX_VALUE):
            return False
    return (
        all(isinstance(line.get(name, ...), kinds) for name, kinds in REQUIRED.items())
        and min(line["stage_index"], line["num_images"], line["seconds"]) >= 0
        and line["epoch"] >= 1
    )
