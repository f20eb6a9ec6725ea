"""What bad input gets: one line, the right exit code, nothing half-written."""

import shutil
from pathlib import Path

import pytest
from conftest import Cli

from kdgan_compress.cli import main


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 1
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "folder:nowhere"], ["train/good", "nowhere"]),
        (["--data", "npz:nowhere.npz"], ["must exist", "nowhere.npz"]),
        (["--data", "imagenet"], ["imagenet", "fashion-mnist"]),
        (["--data", "sample", "--normal", "trouser"], ["training images"]),
        (["--data", "sample", "--normal", "unicorn"], ["unicorn", "sneaker"]),
        (["--width", "0"], ["width"]),
        (["--channels", "4,8"], ["3 channel numbers", "4-8"]),
        (["--image-size", "48"], ["power of two", "48"]),
        (["--family", "edee"], ["edee", "ede"]),
        (["--recipe", "nope"], ["nope", "default"]),
        (["--recipe", "missing.yaml"], ["missing.yaml"]),
        (["--batch-size", "0"], ["batch_size"]),
    ],
)
def test_train_refuses(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("train", *arguments, "--out", "run"), *words)
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_a_recipe_are_told_at_once(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("trainin: {}\nmodel: {widht: 3}\ntraining: {epochs: 0}\n")
    words = ("3 problems", "trainin", "training", "widht", "width", "epochs")
    assert_refused(cli("recipes", "check", recipe), *words)
    assert_refused(cli("train", "--recipe", recipe, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_image_is_named(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (photos / "train/good/9.jpg").write_text("no image")
    assert_refused(cli("train", "--data", f"folder:{photos}", "--out", tmp_path / "run"), "9.jpg")
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written(cli: Cli, npz: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    data = ["--data", f"npz:{npz}", "--normal", "0", "--width", "1"]
    assert_refused(cli("train", *data, "--out", tmp_path / "file" / "run"), "writable")
    assert_refused(cli("export", "--model", runs["student"], "-o", tmp_path / "file" / "d.onnx"), "writable")
    assert_refused(cli("export", "--model", runs["student"], "-o", tmp_path / "d.pb"), ".onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_is_never_overwritten(cli: Cli, npz: Path, runs: dict[str, Path]) -> None:
    before = (runs["teacher"] / "model.safetensors").read_bytes()
    data = ["--data", f"npz:{npz}", "--normal", "0", "--width", "1"]
    assert_refused(cli("train", *data, "--out", runs["teacher"]), "folder of its own", "--resume")
    assert (runs["teacher"] / "model.safetensors").read_bytes() == before


def test_teachers_that_cannot_teach(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    assert_refused(cli("distill", "--teacher", tmp_path / "none", *out), "none")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((runs["teacher"] / "model.safetensors").read_bytes()[:1000])
    assert_refused(cli("distill", "--teacher", cut, *out), "whole", "cut.safetensors")
    assert_refused(cli("distill", "--teacher", runs["detector"], *out), "whole")
    for section, words in (("family: ed", ["family", "ede"]), ("image_channels: 3", ["image channels", "3"])):
        recipe = tmp_path / "other.yaml"
        recipe.write_text(f"model: {{{section}}}\n")
        assert_refused(cli("distill", "--teacher", runs["teacher"], "--recipe", recipe, *out), *words)
    assert_refused(cli("distill", "--teacher", runs["teacher"], "--width", "0", *out), "width")
    assert_refused(cli("distill", "--teacher", runs["teacher"], "--schedule", "2->7", *out), "2->7")
    assert not (tmp_path / "run").exists()


def test_unfinished_runs_are_named_so(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(runs["teacher"] / "recipe.yaml", unfinished)
    for command in (["evaluate"], ["export"], ["profile"]):
        assert_refused(cli(*command, "--model", unfinished), "unfinished")
    assert_refused(cli("train", "--resume", tmp_path / "nothing"), "no run")
    assert_refused(cli("train", "--resume", runs["student"]), "distill --resume")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["distill"],
        ["train", "--width", "2", "--channels", "2,4,8"],
        ["train", "--channels", "a,b"],
        ["train", "--resume", "run", "--epochs", "3"],
        ["profile"],
        ["profile", "--family", "ede"],
        ["score"],
    ],
)
def test_wrong_usage_is_exit_code_2(cli: Cli, arguments: list[str]) -> None:
    code, out, err = cli(*arguments)
    assert code == 2
    assert out == ""
    assert "Error" in err


def test_an_interrupt_is_exit_code_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdgan_compress.recipe.load_recipe", interrupted)
    code, _, err = cli("train")
    assert code == 130
    assert "--resume" in err


def test_a_missing_extra_is_said(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_torch(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("kdgan_compress.recipe.load_recipe", no_torch)
    assert_refused(cli("train"), "torch", "kdgan-compress[train]")


@pytest.mark.parametrize("command", [*main.cli.commands, "recipes list", "recipes show", "recipes check"])
def test_every_command_has_help_with_an_example(cli: Cli, command: str) -> None:
    code, out, _ = cli(*command.split(), "--help")
    assert code == 0
    assert f"kdgan-compress {command}" in out.split("Options:")[0].split("Usage:")[1].split("\n", 1)[1]
