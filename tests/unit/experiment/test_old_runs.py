"""Interrupted runs of version 0.1.0, whose state has format 2, are resumed and end as that version ended them."""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdgan_compress.api.resume import resume
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.run_folder import RunFolder

OLD_RUNS = Path(__file__).parents[2] / "fixtures" / "old_runs"
"""``train`` was stopped after its first epoch, ``distill`` (2->3) after its third; ``expected-*`` are their ends."""

ATOL = 1e-5
"""Both versions end bit for bit alike on one machine, but other machines round differently."""

pytestmark = pytest.mark.usefixtures("one_thread", "quick_runs")


@pytest.fixture
def folder(tmp_path):
    """The old runs, as they were when they were interrupted."""
    shutil.copytree(OLD_RUNS, tmp_path, dirs_exist_ok=True)
    for recipe in tmp_path.glob("*/recipe.yaml"):
        recipe.write_text(recipe.read_text().replace("DATA", str(tmp_path)))
    for state in tmp_path.glob("*/state.pt.xz"):
        state.with_suffix("").write_bytes(lzma.decompress(state.read_bytes()))
        state.unlink()
    return tmp_path


def metrics_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("stage", "seconds", "images_per_s")} for line in lines]


@pytest.mark.parametrize(
    ("command", "files", "epochs"),
    [("train", ["model.safetensors"], 2), ("distill", ["model.safetensors", "teacher.safetensors"], 4)],
)
def test_an_old_run_is_resumed_to_the_same_end(command, files, epochs, folder):
    assert RunFolder(folder / command).load_state()["format"] == 2
    result = resume(folder / command, command=command)
    assert result.epochs == epochs
    for name in files:
        actual, expected = folder / command / name, folder / f"expected-{command}" / name
        torch.testing.assert_close(load_file(actual), load_file(expected), rtol=0, atol=ATOL)
        assert load_checkpoint(actual).threshold == pytest.approx(load_checkpoint(expected).threshold, rel=1e-4)
    for actual, expected in zip(metrics_of(folder / command), metrics_of(folder / f"expected-{command}"), strict=True):
        assert actual == {k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in expected.items()}
    assert RunFolder(folder / command).load_state()["format"] == 3


def test_a_finished_old_run_and_an_interrupted_one_are_resumed_together(folder):
    (folder / "runs").mkdir()
    for name in ("train", "distill"):
        (folder / name).rename(folder / "runs" / name)
        assert resume(folder / "runs" / name).run == str(folder / "runs" / name)
    assert len(resume(folder / "runs").members) == 2
