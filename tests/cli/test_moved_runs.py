"""No file that a command writes names the folder that it lies in, so the whole tree can be moved or sent."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from command_line import Cli, only_json

from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.recipe import load_recipe

NAME = "folder-of-somebody"
TINY = ["--batch-size", "4", "--epochs", "1", "--json"]


@pytest.fixture
def tree(cli: Cli, npz: Path, tmp_path: Path) -> Path:
    """A folder with data, a teacher, its student with a cache, a stopped student and a detector of the student."""
    folder = tmp_path / NAME
    (folder / "data").mkdir(parents=True)
    shutil.copy(npz, folder / "data" / "mnist.npz")
    data = ["--data", "mnist", "--data-root", folder / "data", "--normal", "0", "--width", "1", "--latent", "4"]
    assert cli("train", *data, *TINY, "--out", folder / "runs" / "teacher")[0] == 0
    distil = ["distill", "--teacher", folder / "runs" / "teacher", "--width", "1", "--schedule", "2", *TINY]
    assert cli(*distil, "--cache", folder / "cache", "--out", folder / "runs" / "more" / "student")[0] == 0
    student = folder / "runs" / "more" / "student"
    assert cli("export", "--model", student, "-o", folder / "out" / "student.onnx")[0] == 0
    shutil.copytree(student, folder / "runs" / "more" / "stopped")
    for name in ("result.json", "model.safetensors"):
        (folder / "runs" / "more" / "stopped" / name).unlink()
    return folder


def test_no_file_names_its_folder(tree: Path) -> None:
    files = [path for path in tree.rglob("*") if path.is_file()]
    assert len({path.name for path in files}) > 12
    for path in files:
        assert NAME.encode() not in path.read_bytes(), path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                assert not any(NAME.encode() in archive.read(name) for name in archive.namelist()), path
    stored = json.loads((tree / "runs" / "teacher" / "result.json").read_text())
    assert (stored["run"], stored["model"]) == (".", "model.safetensors")


def test_a_moved_tree_is_evaluated_and_resumed(cli: Cli, tree: Path, tmp_path: Path) -> None:
    student = Path("runs", "more", "student")
    before = only_json(cli("evaluate", "--model", tree / student, "--json")[1])
    moved = tmp_path / "elsewhere" / "deeper"
    moved.parent.mkdir()
    tree.rename(moved)
    code, out, _ = cli("evaluate", "--model", moved / student, "--json")
    assert code == 0
    after = only_json(out)
    assert after["teacher"] == str(moved / "runs" / "teacher")
    assert after["auc_gap"] is not None
    assert {**after, "model": "", "teacher": ""} == {**before, "model": "", "teacher": ""}
    stopped = moved / "runs" / "more" / "stopped"
    assert cli("distill", "--resume", stopped, "--json")[0] == 0
    assert (stopped / "model.safetensors").read_bytes() == (moved / student / "model.safetensors").read_bytes()
    assert cli("report", moved / "runs", "-o", moved / "report.html", "--data-root", moved / "data")[0] == 0


def test_paths_of_old_files_and_options_are_kept(cli: Cli, tree: Path, tmp_path: Path) -> None:
    recipe = tree / "runs" / "teacher" / "recipe.yaml"
    old = recipe.read_text().replace("../../data", str(tree / "data"))
    assert str(tree) in old
    (tmp_path / "old.yaml").write_text(old)
    assert load_recipe(str(tmp_path / "old.yaml")).data.root == str(tree / "data")
    other = shutil.copytree(tree / "data", tmp_path / "other")
    shutil.rmtree(tree / "data")
    assert cli("evaluate", "--model", tree / "runs" / "teacher", "--data-root", other, "--json")[0] == 0


def test_paths_of_a_recipe_begin_in_its_folder(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree / "runs" / "more" / "student" / "recipe.yaml"
    teacher = tree / "runs" / "teacher"
    assert load_recipe(str(path)).distillation.teacher == str(teacher)
    monkeypatch.chdir(tree / "data")
    loaded = load_recipe(os.path.relpath(path))
    assert (loaded.distillation.teacher, loaded.data.root) == (str(Path("..", "runs", "teacher")), ".")
    assert load_recipe("photos").data.source == "folder:photos"  # a shipped recipe: in the working directory
    (tmp_path / "link").symlink_to(path.parent)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(str(tmp_path / "link" / "recipe.yaml")).distillation.teacher == str(teacher)
    assert load_checkpoint(Path("link", "model.safetensors")).provenance["teacher"] == str(teacher)
