"""What the tests of the command line share: how a command is called, and what is asked of its output."""

import json
from collections.abc import Callable
from typing import Any

Cli = Callable[..., tuple[int, str, str]]


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 1, and nothing but one line on stderr, which has these words."""
    code, out, err = result
    assert code == 1
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


def only_json(text: str) -> Any:
    """What a command printed, which must be one JSON object on one line."""
    (line,) = text.splitlines()
    return json.loads(line)
