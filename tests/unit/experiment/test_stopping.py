"""Signals save between two steps of an epoch; a resumed run ends as an uninterrupted one, or is refused."""

import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from kdgan_compress.api.distill import distill
from kdgan_compress.api.resume import resume
from kdgan_compress.api.train import train
from kdgan_compress.distillation import train_log
from kdgan_compress.errors import Interrupted, KdganError
from kdgan_compress.experiment import fingerprint, fleet_states
from kdgan_compress.experiment.recipe import parse_recipe
from kdgan_compress.experiment.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_runs")

TRAINING = {"batch_size": 4, "epochs": 2, "threads": 1}
SAME = ("model.safetensors", "state.pt", "scores.npz", "recipe.yaml")


@pytest.fixture(scope="module", autouse=True)
def frequent_records():
    """A record every 8 images."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_log, "RECORD_EVERY_IMAGES", 8)
        yield


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """A data set of 25 normal images, and one uninterrupted run of each kind, of two epochs per stage."""
    path = tmp_path_factory.mktemp("base")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (25, 16, 16), dtype=np.uint8), np.zeros(25, int)
    np.savez(path / "set.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=np.arange(20) % 2)
    train(recipe(path), path / "train")
    distill(path / "train", recipe(path), path / "distill")
    return path


@pytest.fixture
def base(whole_runs, tmp_path):
    """A copy of them, so that runs beside them name the same relative paths."""
    shutil.copytree(whole_runs, tmp_path, dirs_exist_ok=True)
    return tmp_path


def recipe(base, **training):
    small = {"channels": [1, 1], "norm": "instance"}
    return parse_recipe(
        {
            "data": {"source": f"npz:{base / 'set.npz'}", "normal": "0"},
            "model": small | {"image_size": 16, "latent_size": 4},
            "training": TRAINING | training,
            "distillation": {"student": small, "schedule": "2->3", "training": TRAINING},
        },
        "test",
    )


def start(kind, base, out, **options):
    if kind == "train":
        return train(recipe(base), out, **options)
    return distill(base / "train", recipe(base), out, **options)


def signal_after(number, what):
    """A ``show_progress`` that sends this process a signal at this many records."""
    seen = []

    def show_progress(_):
        seen.append(1)
        if len(seen) == number:
            os.kill(os.getpid(), what)

    return show_progress


@pytest.mark.parametrize(
    ("kind", "number", "what"),
    [
        ("train", 1, signal.SIGTERM),
        ("train", 3, signal.SIGINT),
        ("distill", 1, signal.SIGINT),
        ("distill", 10, signal.SIGTERM),
    ],
)
def test_a_signal_saves_within_an_epoch(base, tmp_path, kind, number, what):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as info:
        start(kind, base, tmp_path / "a run", show_progress=signal_after(number, what))
    assert info.value.signal == what
    command = f"kdgan-compress {kind} --resume '{tmp_path / 'a run'}'"
    assert info.value.message.endswith(f"Continue with: {command}")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    state = torch.load(tmp_path / "a run" / "state.pt", weights_only=True)
    assert (state["format"] == 4) == ("within_epoch" in state)
    resume(tmp_path / "a run")
    for name in SAME:
        assert (tmp_path / "a run" / name).read_bytes() == (base / kind / name).read_bytes(), name
    assert not list((tmp_path / "a run").glob(".*"))


def test_long_epochs_are_saved_in_between(base, tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_states, "SAVE_SECONDS", 0.0)
    saved = []

    def save_state(self, state, is_next):
        saved.append(state.get("within_epoch"))
        return original(self, state, is_next)

    original = RunFolder.save_state
    monkeypatch.setattr(RunFolder, "save_state", save_state)
    start("train", base, tmp_path / "run")
    assert any(within is not None for within in saved)
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (base / "train" / name).read_bytes(), name


def copy(base, kind, tmp_path):
    run = tmp_path / f"{kind} again"
    shutil.copytree(base / kind, run)
    (run / "result.json").unlink()
    return run


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_run_without_epochs_left_can_be_finished_again_and_again(base, tmp_path, kind):
    run = copy(base, kind, tmp_path)
    for _ in range(3):
        resume(run)
        (run / "result.json").unlink()
    assert (run / "state.pt").read_bytes() == (base / kind / "state.pt").read_bytes()


def test_a_position_past_the_end_as_older_versions_saved_it(base, tmp_path):
    run = copy(base, "distill", tmp_path)
    state = torch.load(run / "state.pt", weights_only=True) | {"stage_index": 2, "epochs_done": 0}
    torch.save(state, run / "state.pt")
    resume(run)
    assert (run / "model.safetensors").read_bytes() == (base / "distill" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[1]\n", b'{"stage_index": 0}\n', b"NaN\n" * 9, b"[" * 5000])
def test_metrics_do_not_keep_a_run_from_being_finished(base, tmp_path, content):
    run = copy(base, "train", tmp_path)
    (run / "metrics.jsonl").write_bytes(content)
    resume(run)
    assert (run / "model.safetensors").read_bytes() == (base / "train" / "model.safetensors").read_bytes()


def refused(run, *texts):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(KdganError, match="must continue the same experiment") as info:
        resume(run)
    assert all(text in str(info.value) for text in texts), str(info.value)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_another_teacher_at_the_same_path(base, tmp_path):
    run = copy(base, "distill", tmp_path)
    train(recipe(base, seed=1), tmp_path / "other")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(re.sub(r"teacher: .*train", f"teacher: {tmp_path / 'other'}", text))
    refused(run, "the teacher's weights")


def test_another_recipe(base, tmp_path):
    run = copy(base, "train", tmp_path)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("w_adv: 1.0", "w_adv: 0.5"))
    refused(run, "objective.w_adv was 1.0 and is 0.5")


def test_other_held_out_images(base, tmp_path):
    run = copy(base, "train", tmp_path)
    with np.load(base / "set.npz") as arrays:
        changed = {name: arrays[name].copy() for name in arrays.files}
    changed["x_test"][3] ^= 1
    np.savez(tmp_path / "set.npz", **changed)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace(str(base / "set.npz"), str(tmp_path / "set.npz")))
    refused(run, "the test images")


def test_another_version(base, tmp_path, monkeypatch):
    run = copy(base, "train", tmp_path)
    monkeypatch.setattr(fingerprint, "versions", lambda: {"kdgan-compress": "9", "torch": str(torch.__version__)})
    refused(run, "kdgan-compress was", "is 9")


def test_a_run_that_may_have_moved_with_its_data(base, tmp_path):
    run = copy(base, "train", tmp_path)
    (base / "set.npz").rename(tmp_path / "moved.npz")
    text = (run / "recipe.yaml").read_text()
    assert "npz:../set.npz" in text
    (run / "recipe.yaml").write_text(text.replace("../set.npz", str(tmp_path / "moved.npz")))
    resume(run)


def test_a_folder_in_which_one_run_is_damaged(base, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(base / "train", tmp_path / "more" / name)
        (tmp_path / "more" / name / "result.json").unlink()
    shutil.copy(base / "set.npz", tmp_path / "more")
    (tmp_path / "more" / "a" / "state.pt").write_bytes(b"damaged")
    result = resume(tmp_path / "more")
    assert [member.run for member in result.members] == [str(tmp_path / "more" / "b")]
    assert "state.pt must be whole" in result.failed[str(tmp_path / "more" / "a")]
