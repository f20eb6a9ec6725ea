"""Calls of the command line in tests, and checks of their output."""

import json
from collections.abc import Callable
from typing import Any

Cli = Callable[..., tuple[int, str, str]]


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """Check for exit code 1 and a single line on stderr that contains these words."""
    code, out, err = result
    assert code == 1
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


def only_json(text: str) -> Any:
    """Parse a command's output, one JSON object on one line."""
    (line,) = text.splitlines()
    return json.loads(line)
