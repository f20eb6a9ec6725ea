"""scores.npz: read back as written, recognised by weights and images, ignored when damaged."""

import json
import os
import pickle

import numpy as np
import pytest
import torch

from kdgan_compress.data import DataSettings, Split
from kdgan_compress.evaluation import load_scores, save_scores

DATA = DataSettings("mnist", "5", "/daten/größe")


def split(num_test=3, level=0):
    images = torch.arange(2 * 16 * 16, dtype=torch.uint8).reshape(2, 1, 16, 16)
    return Split(
        train=images,
        calibration=images,
        test=images[:1].repeat(num_test, 1, 1, 1) + level,
        test_is_anomalous=np.arange(num_test) % 2 == 1,
        test_classes=np.array(["good", "Riß", "dent"][:num_test], dtype=np.str_),
        split_sha256="abc",
    )


def network(value=1.0):
    layer = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(layer.weight, value)
    torch.nn.init.zeros_(layer.bias)
    return layer


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "scores.npz"
    save_scores(path, network(), DATA, split(), np.array([0.1, 0.2]), np.array([1.0, 2.5, 1 / 3]))
    return path


def test_round_trip_is_exact(path):
    scores = load_scores(path)
    assert scores.calibration_scores.tolist() == [0.1, 0.2]
    assert scores.test_scores.tolist() == [1.0, 2.5, 1 / 3]
    assert scores.test_is_anomalous.tolist() == [False, True, False]
    assert scores.test_classes.tolist() == ["good", "Riß", "dent"]
    about = json.loads(scores.data)
    assert about["split_sha256"] == "abc"
    assert DataSettings(**about["settings"]) == DATA
    assert [file.name for file in path.parent.iterdir()] == ["scores.npz"]


def test_scores_match_the_same_weights_and_test_images_alone(path):
    scores = load_scores(path)
    assert scores.matches(network(), split())
    assert not scores.matches(network(1.1), split())
    assert not scores.matches(network(), split(level=1))
    assert not scores.matches(network(), split(num_test=2))


def test_an_empty_test_split(tmp_path):
    empty = split(num_test=0)
    save_scores(tmp_path / "s.npz", network(), DATA, empty, np.array([0.1]), np.empty(0))
    assert load_scores(tmp_path / "s.npz").matches(network(), empty)


def test_a_missing_file(tmp_path):
    assert load_scores(tmp_path / "none.npz") is None
    assert load_scores(tmp_path) is None


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.6, 0.95, 0.999])
def test_a_file_that_was_cut_short_is_ignored(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    assert load_scores(path) is None


@pytest.mark.parametrize("position", range(0, 2000, 97))
def test_a_damaged_file_is_ignored_or_still_whole(path, position):
    content = bytearray(path.read_bytes())
    for offset in range(8):
        content[(position + offset) % len(content)] ^= 0xFF
    path.write_bytes(content)
    scores = load_scores(path)
    assert scores is None or scores.test_scores.tolist() == [1.0, 2.5, 1 / 3]


def saved_arrays(path):
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("data"),
        lambda arrays: arrays.update(test_scores=np.float64(3)),
        lambda arrays: arrays.update(test_is_anomalous=np.zeros((3, 1), bool)),
        lambda arrays: arrays.update(test_scores=np.array(["a", "b", "c"])),
    ],
    ids=["no data", "a scalar", "a matrix", "text"],
)
def test_a_file_with_other_arrays_is_ignored(path, change):
    arrays = saved_arrays(path)
    change(arrays)
    np.savez(path, **arrays)
    assert load_scores(path) is None


def test_scores_and_labels_of_different_lengths_do_not_match(path):
    np.savez(path, **saved_arrays(path) | {"test_is_anomalous": np.zeros(2, bool)})
    assert not load_scores(path).matches(network(), split())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("whole_file", [False, True])
def test_pickles_are_never_executed(path, tmp_path, whole_file):
    trap = Trap(tmp_path / "sprung")
    if whole_file:
        path.write_bytes(pickle.dumps(trap))
    else:
        np.savez(path, **saved_arrays(path) | {"data": np.array(trap, dtype=object)})
    assert load_scores(path) is None
    assert not trap.flag.exists()
