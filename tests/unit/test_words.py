"""Plain words: identifiers, docstrings, messages, help, documents and recipes use the field's terms."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "kdgan_compress").rglob("*.py"))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.yaml")])

FORBIDDEN = {
    r"\b(ours|theirs|anew|beside|yardstick|pupil)\b": "student, teacher, again, next to, baseline",
    r"\bportions?\b": "batch",
    r"\b(cries wolf|leaves the house|learnt by heart|taken anew|goes on|that is meant)\b": "plain prose",
    r"\b(is|are) told\b": "is reported",
    r"\bmust have\b": "needs",
    r"(?<!here )\b(is|are|was) no (?!longer\b|more\b|less\b|smaller\b|larger\b)[a-z]+": "is not a …",
    r"\b(a|an|one) (line|file|image|step|pass|folder|number|model|group) an? [a-z]+": "one … per …",
    r"\b(images|lines|seconds|steps) a (step|second|stage|file|class|image)\b": "… per …",
    r"\b(MOST|FEWEST|LEAST|LARGEST|SMALLEST)_[A-Z]": "MAX_, MIN_",
    r"\baverag(ed|e) weights\b(?! \(EMA\))": "EMA",
    r"(?<!_)\bper_image\b": "instance",
    r"\bchannel plans?\b": "channels",
    r"[Aa]sked \|": "target",
}
"""Pattern → what to write instead."""

NAMES = {
    *("own", "ours", "theirs", "told", "place", "places", "fall", "falls", "portion", "portions", "shares"),
    *("master", "pupil", "judge", "judges", "yardstick", "anew"),
}
"""Variable and parameter names that say nothing or have a standard term."""

ALIASES = {"experiment/aliases.py"}
"""Modules that name old keys on purpose."""


@pytest.mark.parametrize("path", [*MODULES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_and_no_module_uses_a_forbidden_word(path):
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    if str(path).endswith(tuple(ALIASES)):
        return
    found = {match.group(0): instead for pattern, instead in FORBIDDEN.items() for match in re.finditer(pattern, text)}
    assert not found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_docstrings_say_what_they_are(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert not names & NAMES
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    assert not [text for text in docstrings if text.startswith("Of ")]


def test_a_module_has_at_most_300_lines_and_says_what_is_in_it():
    assert not {path.name for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 300}
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize(
    "bad", ["their own and ours", "it is no tensor", "a line an image", "MOST_IMAGES", "it must have"]
)
def test_the_patterns_find_what_they_forbid(bad):
    assert any(re.search(pattern, bad) for pattern in FORBIDDEN)
