"""A user's own family is imported only where it is named, and what is wrong with it is said in one line."""

import importlib
import sys

import pytest
import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import FAMILIES, Architecture, build, load_family
from kdgan_compress.gans.ede import GanomalyObjective

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHITECTURE = {"channels": (1, 2), "image_size": 16, "latent_size": 4}

GOOD = """
from pathlib import Path
from dataclasses import dataclass

from kdgan_compress.gans import Family
from kdgan_compress.gans import build as build_by_name
from kdgan_compress.gans import ede

Path(__file__).with_name("imported").touch()

def build(architecture):
    return ede.build(architecture)

@dataclass(frozen=True)
class Mine:
    weight: float = 1.0

    def train_step(self, state, images, weight_g, weight_d, step=0, k_l=None):
        return {}

class Namespace:
    family = Family(build, Mine)

number = 3
shared = ede.build(__import__("kdgan_compress").Architecture(channels=(1, 2), image_size=16, latent_size=4))
build_shared = lambda architecture: shared
build_network = lambda architecture: build(architecture).generator

def build_badly(architecture):
    raise ValueError("too few channels\\nmore lines")

class NotADataclass:
    def train_step(self): ...

@dataclass
class WithoutDefaults:
    weight: float
    def train_step(self): ...

bad_objective = Family(build, NotADataclass)
no_defaults = Family(build, WithoutDefaults)
instance = Family(build, Mine())
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of a name of its own; what is imported and registered is forgotten after the test."""
    families, modules = dict(FAMILIES), set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text, name="mine"):
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    yield write
    FAMILIES.clear()
    FAMILIES.update(families)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_function_is_a_family_with_ganomalys_losses(module):
    module(GOOD)
    family = load_family("mine:build")
    assert family.objective is GanomalyObjective
    assert load_family("mine:build") is family
    gan = build(Architecture(family="mine:build", **ARCHITECTURE), seed=3)
    expected = build(Architecture(family="ede", **ARCHITECTURE), seed=3)
    for name, weight in expected.generator.state_dict().items():
        assert torch.equal(gan.generator.state_dict()[name], weight)


def test_a_family_has_its_objective_and_may_be_an_attribute_of_an_attribute(module):
    module(GOOD)
    assert load_family("mine:Namespace.family").objective().weight == 1.0


def test_a_family_of_the_package_is_found_by_its_name():
    assert load_family("ede") is FAMILIES["ede"]


def test_nothing_but_load_family_imports_a_module(module):
    folder = module(GOOD)
    with pytest.raises(KdganError, match=r"did not come with this package; mine:build.*trust.*--family mine:build"):
        build(Architecture(family="mine:build", **ARCHITECTURE))
    assert not (folder / "imported").exists()
    assert "mine" not in sys.modules
    load_family("mine:build")
    assert (folder / "imported").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing:build", r"no module 'nothing'.*without \.py"),
        ("nothing.inside:build", "no module 'nothing.inside'"),
        ("mine.py:build", "no module 'mine.py'"),
        ("folder/mine.py:build", "no module 'folder/mine.py'"),
        (":build", "does not name a module"),
        ("..mine:build", "does not name a module"),
        ("mine:bild", r"mine\.py defines no 'bild'\. Write mine:build"),
        ("mine:", "does not name an attribute"),
        ("mine:number", "needs to be a GAN family; it is of type int"),
        ("mine:bad_objective", "needs to be a dataclass with a method train_step; got NotADataclass"),
        ("mine:no_defaults", r"needs a default for each field; TypeError: .*weight"),
        ("mine:instance", "needs to be a dataclass with a method train_step; got an object of type Mine"),
        ("no_such_family", "The family does not exist; got 'no_such_family'. Choose one of cvgad, ed"),
    ],
)
def test_what_is_no_family_is_refused(module, name, message):
    module(GOOD)
    with pytest.raises(KdganError, match=message):
        load_family(name)
    assert name not in FAMILIES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "\nimport nothing_like_this",
            r"ModuleNotFoundError: No module named 'nothing_like_this' \(.*broken\.py, line 2\)",
        ),
        ("def f(:", r"SyntaxError: invalid syntax \(.*broken\.py, line 1\)"),
        ("import sys\n\nsys.exit('usage: train.py')", r"SystemExit: usage: train\.py \(.*broken\.py, line 3\)"),
        ("raise ValueError", r"failed; ValueError \(.*broken\.py, line 1\)"),
        ("import numpy\nnumpy.reshape([1, 2], 3)", r"ValueError: cannot reshape .*broken\.py, line 2\)"),
        ("import json\n\njson.loads('{')", r"JSONDecodeError: .*broken\.py, line 3\)"),
    ],
)
def test_an_exception_while_importing_names_the_users_line(module, text, message):
    module(text, "broken")
    with pytest.raises(KdganError, match=message) as caught:
        load_family("broken:build")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None
    module("from kdgan_compress.gans import ede\nbuild = ede.build", "broken")
    importlib.invalidate_caches()
    assert load_family("broken:build").objective is GanomalyObjective  # once it is mended


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mine:build_badly",
            r"Building mine:build_badly failed; ValueError: too few channels \(.*mine\.py, line \d+\)",
        ),
        ("mine:build_network", "needs to build a Gan; got Generator"),
        ("mine:build_shared", "needs to build new networks at each call"),
    ],
)
def test_what_builds_no_gan_is_refused(module, name, message):
    module(GOOD)
    load_family(name)
    with pytest.raises(KdganError, match=message):
        build(Architecture(family=name, **ARCHITECTURE))


def test_a_gan_is_checked_once_per_architecture(module, monkeypatch):
    module(GOOD)
    load_family("mine:build")
    checked = []
    monkeypatch.setattr(
        "kdgan_compress.gans.entry_points.check_gan", lambda gan, architecture: checked.append(architecture)
    )
    first, second = (Architecture(family="mine:build", **ARCHITECTURE | {"latent_size": n}) for n in (4, 5))
    for architecture in (first, first, second, first):
        build(architecture)
    assert checked == [first, second]
