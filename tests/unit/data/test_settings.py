from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from kdgan_compress.data import PROTOCOLS, DataSettings
from kdgan_compress.errors import KdganError


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (DataSettings(), "sample-sneaker"),
        (DataSettings("sample", "bag"), "sample-bag"),
        (DataSettings("mnist", "5"), "mnist-5"),
        (DataSettings("mnist"), "mnist"),
        (DataSettings("folder:/data/bottle/"), "bottle"),
        (DataSettings("folder:/data/bottle", "good"), "bottle"),
        (DataSettings("npz:/data/parts.npz", "2"), "parts-2"),
        (DataSettings("mnist", "5", trial=3), "mnist-5"),
        (DataSettings("cifar10", protocol="miso-8020", novel="deer"), "cifar10-not-deer-miso-8020"),
        (DataSettings("cifar10", protocol="miso-8020", novel="deer", trial=2), "cifar10-not-deer-miso-8020-trial2"),
        (DataSettings("sample", protocol="miso-8020"), "sample-miso-8020"),
        (DataSettings("sample", protocol="gpnd-5fold"), "sample-sneaker-gpnd-5fold-trial0"),
        (
            DataSettings("fashion-mnist", "sneaker", protocol="gpnd-5fold", trial=3),
            "fashion-mnist-sneaker-gpnd-5fold-trial3",
        ),
        (DataSettings("mnist", "1", protocol="gpnd-5fold", outliers=0.07), "mnist-1-gpnd-5fold-outliers7-trial0"),
        (DataSettings("coil100", protocol="coil100"), "coil100-1-category-trial0"),
        (DataSettings("coil100", protocol="coil100", num_categories=4), "coil100-4-categories-trial0"),
        (DataSettings("mnist", protocol="coil100", num_categories=4), "mnist-coil100-4-categories-trial0"),
        (DataSettings("coil100", "obj3", protocol="ocgan-p1"), "coil100-obj3-ocgan-p1"),
        (DataSettings("coil100", "obj3", protocol="ocgan-p1", trial=1), "coil100-obj3-ocgan-p1-trial1"),
    ],
)
def test_name(data, name):
    assert data.name == name


def test_absolute_paths_hold_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert DataSettings("folder:photos/bottle", "good").absolute() == DataSettings(
        f"folder:{tmp_path / 'photos/bottle'}", "good"
    )
    assert DataSettings("npz:~/a.npz", "5", "data").absolute() == DataSettings(
        f"npz:{tmp_path / 'home/a.npz'}", "5", str(tmp_path / "data")
    )
    assert DataSettings("mnist", "5").absolute() == DataSettings("mnist", "5")


@pytest.mark.parametrize(
    ("source", "normal", "root", "expected"),
    [
        (None, None, None, ("mnist", "5", "/data")),
        (None, "7", None, ("mnist", "7", "/data")),
        (None, None, "/other", ("mnist", "5", "/other")),
        ("cifar10", None, None, ("cifar10", None, "/data")),
        ("cifar10", "cat", "/other", ("cifar10", "cat", "/other")),
    ],
)
def test_override(source, normal, root, expected):
    data = DataSettings("mnist", "5", "/data").override(source, normal, root)
    assert (data.source, data.normal, data.root) == expected


@pytest.mark.parametrize(
    ("data", "source", "root", "expected"),
    [
        (DataSettings("mnist", "5", "/data"), None, None, DataSettings("mnist", "5", "/data")),
        (DataSettings("mnist", "5", "/data"), "npz:/a", "/b", DataSettings("npz:/a", "5", "/b")),
        (DataSettings("mnist", "5"), "folder:/a", None, DataSettings("folder:/a")),
        (DataSettings("folder:/a", "good"), "folder:/b", None, DataSettings("folder:/b")),
        (
            DataSettings("cifar10", protocol="miso-8020", novel="deer", trial=2),
            "npz:/a",
            None,
            DataSettings("npz:/a", protocol="miso-8020", novel="deer", trial=2),
        ),
    ],
)
def test_relocate_keeps_the_classes(data, source, root, expected):
    assert data.relocate(source, root) == expected


FULL = DataSettings("coil100", None, "data", "coil100", None, 6, 0.3, 4)


def test_absolute_keeps_the_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert FULL.absolute() == replace(FULL, root=str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        (FULL, {}, FULL),
        (FULL, {"trial": 0}, replace(FULL, trial=0)),
        (FULL, {"source": "mnist"}, replace(FULL, source="mnist")),
        (
            FULL,
            {"outliers": 0.5, "num_categories": 1},
            replace(FULL, outliers=0.5, num_categories=1),
        ),
        (FULL, {"protocol": "ocgan-p1"}, DataSettings("coil100", None, "data", "ocgan-p1", trial=6)),
        (
            FULL,
            {"source": "mnist", "protocol": "gpnd-5fold", "normal": "5"},
            DataSettings("mnist", "5", "data", "gpnd-5fold", None, 6, 0.3),
        ),
        (DataSettings("mnist", "5"), {"protocol": "ocgan-p1"}, DataSettings("mnist", "5", protocol="ocgan-p1")),
        (
            DataSettings("mnist", "5"),
            {"protocol": "miso-8020", "novel": "6"},
            DataSettings("mnist", protocol="miso-8020", novel="6"),
        ),
        (
            DataSettings("mnist", protocol="miso-8020", novel="6"),
            {"source": "cifar10"},
            DataSettings("cifar10", protocol="miso-8020"),
        ),
        (DataSettings("mnist", protocol="miso-8020", novel="6"), {"protocol": "simo"}, DataSettings("mnist")),
    ],
)
def test_override_keeps_what_the_protocol_has(data, changes, expected):
    assert data.override(**{"source": None, "normal": None, "root": None} | changes) == expected


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (DataSettings("mnist", protocol="miso-8020"), {"normal": "5"}, "--normal does not apply to protocol miso-8020"),
        (FULL, {"normal": "obj3"}, "--normal does not apply to protocol coil100; got obj3"),
        (FULL, {"protocol": "simo"}, "simo needs an official test split; coil100 has none"),
        (FULL, {"protocol": "five-fold"}, "got 'five-fold'. Choose one of simo, miso-8020"),
        (DataSettings("mnist", "5"), {"novel": "5"}, "--novel does not apply to protocol simo"),
        (
            DataSettings("mnist", "5", protocol="ocgan-p1"),
            {"source": "folder:/a"},
            "The protocol of a folder must be simo",
        ),
    ],
)
def test_override_refuses_what_does_not_fit(data, changes, message):
    with pytest.raises(KdganError) as caught:
        data.override(**{"source": None, "normal": None, "root": None} | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "SIMO"}, "The protocol must be a known one; got 'SIMO'"),
        (
            {"protocol": "miso-8020", "normal": "5"},
            "--normal does not apply to protocol miso-8020; got 5. Leave out --normal",
        ),
        ({"protocol": "coil100", "normal": "5"}, "coil100 selects by --trial"),
        ({"protocol": "coil100", "novel": "5"}, "--novel does not apply to protocol coil100; got 5"),
        (
            {"protocol": "gpnd-5fold", "novel": "5"},
            "does not apply to protocol gpnd-5fold; got 5. Leave out --novel, or choose --prot",
        ),
        ({"protocol": "ocgan-p1", "novel": "5"}, "--novel does not apply to protocol ocgan-p1"),
        ({"outliers": 0.5}, "--outliers does not apply to protocol simo; got 0.5"),
        ({"protocol": "miso-8020", "outliers": 0.5}, "--outliers does not apply to protocol miso-8020"),
        ({"protocol": "ocgan-p1", "outliers": 0.5}, "--outliers does not apply to protocol ocgan-p1"),
        (
            {"protocol": "gpnd-5fold", "num_categories": 1},
            "--num-categories does not apply to protocol gpnd-5fold; got 1",
        ),
        ({"protocol": "gpnd-5fold", "outliers": 0.0}, "outliers must be between 0 and 1; got 0"),
        ({"protocol": "coil100", "outliers": 1.0}, "outliers must be between 0 and 1; got 1"),
        ({"protocol": "gpnd-5fold", "outliers": float("nan")}, "outliers must be between 0 and 1; got nan"),
        ({"protocol": "coil100", "num_categories": 0}, "At least one category must be normal; got 0"),
        ({"trial": -1}, "The trial must be 0 or more; got -1"),
        (
            {"source": "coil100"},
            "Choose --protocol miso-8020, miso-leaky, gpnd-5fold, coil100 or ocgan-p1",
        ),
        ({"source": "folder:/a", "protocol": "gpnd-5fold"}, "The protocol of a folder must be simo; got gpnd-5fold"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(KdganError) as caught:
        DataSettings(**changes)
    assert message in str(caught.value)
    with pytest.raises(ValidationError) as wrapped:
        TypeAdapter(DataSettings).validate_python(changes)
    assert message in str(wrapped.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_is_one_of_settings(protocol):
    assert DataSettings("mnist", protocol=protocol, trial=7).protocol == protocol


@pytest.mark.parametrize(
    ("changes", "fraction"),
    [
        ({"protocol": "gpnd-5fold"}, 0.5),
        ({"protocol": "gpnd-5fold", "outliers": 0.1}, 0.1),
        ({"protocol": "coil100"}, 0.5),
        ({"protocol": "coil100", "num_categories": 4}, 0.25),
        ({"protocol": "coil100", "num_categories": 7}, 0.15),
        ({"protocol": "coil100", "num_categories": 5}, 0.5),
        ({"protocol": "coil100", "num_categories": 7, "outliers": 0.4}, 0.4),
    ],
)
def test_the_fraction_of_outliers_defaults_to_the_protocols(changes, fraction):
    assert DataSettings(**changes).outlier_fraction == fraction


@pytest.mark.parametrize(
    "where", [{"source": "folder:a\0b"}, {"source": "npz:/a\0b"}, {"source": "mnist", "root": "\0"}]
)
def test_a_path_with_a_nul_character_is_refused(where):
    with pytest.raises(KdganError, match="must not contain a NUL character"):
        DataSettings(**where)
