"""YAML of recipes: any text gives a value or a ValueError of one line, quickly."""

import time

import pytest

from kdgan_compress.experiment.recipe_yaml import parse_yaml


def test_values():
    text = "a: 1\nb: [x, 2.5, true, null]\nc: 2020-12-31\nd: &d {e: 0x1f}\nf: *d\n"
    assert parse_yaml(text) == {"a": 1, "b": ["x", 2.5, True, None], "c": "2020-12-31", "d": {"e": 31}, "f": {"e": 31}}
    assert parse_yaml("") is None


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcd", "bcde", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        *("&a [*a]", ALIASES, "[" * 50_000, "[" * 9_000, "{a: " * 200, "- " * 5000, "? " * 5000, "a: b\n" * 20_000),
        *("!!float x", "!!int", "!!timestamp x", "!!python/object:os.system x", "9" * 5000, "a: b: c", "\x00"),
        *("*a", "%YAML 9", "'" * 99_999, "a" * 100_001),
    ],
)
def test_what_is_refused(text):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_yaml(text)
    assert time.process_time() - start < 2
