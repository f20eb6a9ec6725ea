"""YAML of recipes and of ``--set``: mappings, lists, numbers and text; dates are text.

Aliases may repeat a section, but a small file may not stand for an endless value.
"""

import itertools
from typing import Any

import yaml

from kdgan_compress.errors import first_line

MAX_BYTES = 100_000
MAX_VALUES = 10_000
"""Bound on the values of a text, those that an alias repeats included."""

MAX_DIGITS = 300
MAX_DEPTH = 100
SEPARATORS = "\n[{,"
"""Counted before the text is parsed, which takes seconds if they are many."""

TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _RecipeLoader(yaml.SafeLoader):
    """``SafeLoader`` without dates and endless numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as in its base class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_int(self, node: Any) -> int:
        if len(node.value) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "the number is too long", node.start_mark)
        number: int = self.construct_yaml_int(node)
        return number


_RecipeLoader.add_constructor("tag:yaml.org,2002:int", _RecipeLoader.construct_int)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: It is not valid, or too long; the message is one line.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text):,} characters, more than {MAX_BYTES:,}")
    if sum(map(text.count, SEPARATORS)) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} lines, lists and sections")
    if _max_depth(text) > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    try:
        loader = _RecipeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _num_values(node, {}) > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # PyYAML's constructors raise anything
        raise ValueError(f"a value can't be read: {first_line(error)}") from None


def _max_depth(text: str) -> int:
    """How deeply brackets are nested; PyYAML's time grows with its square."""
    steps = ((character in "[{") - (character in "]}") for character in text)
    return max(itertools.accumulate(steps), default=0)


def _num_values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values below a node, with repetition.

    Raises:
        ValueError: A value contains itself.
    """
    if id(node) in known:
        number = known[id(node)]
        if number is None:
            raise ValueError("it contains itself")
        return number
    known[id(node)] = None
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    known[id(node)] = number = 1 + sum(_num_values(child, known) for child in children)
    return number
