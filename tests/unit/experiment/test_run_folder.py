"""A run's folder: what is appended, kept and read back, and what is wrong with it."""

import json
import math
from pathlib import Path

import pytest
import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.files import write_text


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.path.mkdir(parents=True)
    return folder


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_its_files_have_the_fixed_names(folder):
    names = ("recipe", "model", "teacher", "state", "metrics", "result")
    assert [getattr(folder, name).name for name in names] == [
        "recipe.yaml",
        "model.safetensors",
        "teacher.safetensors",
        "state.pt",
        "metrics.jsonl",
        "result.json",
    ]
    assert all(getattr(folder, name).parent == folder.path for name in names)


def test_a_folder_with_other_files_may_become_a_run(folder):
    (folder.path / "notes.txt").write_text("mine")
    folder.create("description: mine\n")
    assert (folder.path / "notes.txt").read_text() == "mine"


def test_a_folder_with_a_run_is_refused(folder):
    write_text(folder.recipe, "description: x\n")
    with pytest.raises(KdganError, match=r"needs a new folder; found a run in .*one"):
        folder.create("description: mine\n")


@pytest.mark.parametrize("place", ["file", "file/run", "file/deeper/run"])
def test_a_folder_that_can_not_be_made(tmp_path, place):
    (tmp_path / "file").write_text("content")
    with pytest.raises(KdganError, match="must be writable"):
        RunFolder(tmp_path / place).create("description: mine\n")
    assert (tmp_path / "file").read_text() == "content"


def test_metrics_are_read_as_they_were_appended(folder):
    assert folder.read_metrics() == []
    lines = [
        {"stage": "2", "epoch": 1, "s_con": 0.1 + 0.2, "auc": None},
        {"stage": "3→4", "epoch": 2, "s_con": 1e-30, "auc": 0.5},
    ]
    for line in lines:
        folder.append_metrics(line)
    assert folder.read_metrics() == lines
    text = folder.metrics.read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == lines
    assert text.endswith("\n")


def test_a_diverged_loss_is_kept(folder):
    folder.append_metrics({"s_ce": math.inf})
    assert folder.read_metrics() == [{"s_ce": math.inf}]


def test_text_is_replaced_whole(folder):
    write_text(folder.result, "a longer first text")
    write_text(folder.result, "Straße\n")
    assert folder.result.read_bytes() == "Straße\n".encode()
    assert [path.name for path in folder.path.iterdir()] == ["result.json"]


def test_state_round_trip(folder):
    state = {
        "stage_index": 1,
        "random_state": torch.get_rng_state(),
        "teacher": None,
        "student": {"weights": {"a": torch.rand(3, 2), "n": torch.tensor(7)}, "betas": (0.5, 0.99), "fused": True},
    }
    folder.save_state(state)
    loaded = folder.load_state()
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)
    assert [path.name for path in folder.path.iterdir()] == ["state.pt"]
    folder.save_state({"stage_index": 2})
    assert folder.load_state() == {"stage_index": 2}


def test_no_state(folder):
    with pytest.raises(KdganError, match=r"needs a finished epoch; found no .*state\.pt"):
        folder.load_state()


@pytest.mark.parametrize("keep", [0, 10, 300, -20])
def test_a_damaged_state(folder, keep):
    folder.save_state({"weights": torch.rand(100)})
    folder.state.write_bytes(folder.state.read_bytes()[:keep])
    with pytest.raises(KdganError, match=r"state\.pt must be whole") as info:
        folder.load_state()
    assert str(folder.state) in str(info.value)
    assert "\n" not in str(info.value)


def test_a_state_of_something_else(folder):
    folder.state.write_text("Not a state.")
    with pytest.raises(KdganError, match=r"state\.pt must be whole"):
        folder.load_state()


def test_no_code_in_a_state_is_run(folder, tmp_path):
    torch.save({"trap": Trap(tmp_path / "sprung")}, folder.state)
    with pytest.raises(KdganError, match=r"state\.pt"):
        folder.load_state()
    assert not (tmp_path / "sprung").exists()


def test_a_state_that_can_not_be_written_leaves_the_older_one(folder, monkeypatch):
    folder.save_state({"epoch": 1})

    def break_off(temporary, content):
        with temporary.open("wb") as file:
            file.write(content[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", break_off)
    with pytest.raises(KeyboardInterrupt):
        folder.save_state({"epoch": 2})
    assert folder.load_state() == {"epoch": 1}
    assert [path.name for path in folder.path.iterdir()] == ["state.pt"]


def test_a_run_that_was_killed_before_it_saved_anything_can_be_created_again(tmp_path):
    folder = RunFolder(tmp_path / "one")
    folder.create("a: 1\n")
    folder.append_metrics({"stage_index": 0})
    folder.create("a: 1\n")
    assert not folder.metrics.exists()
    with pytest.raises(KdganError, match="needs a new folder"):
        folder.create("a: 2\n")
    folder.state.write_bytes(b"")
    with pytest.raises(KdganError, match="needs a new folder"):
        folder.create("a: 1\n")
