"""Bad input: one line, the right exit code, no partial files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli, assert_refused

from kdgan_compress.cli import main
from kdgan_compress.gans import cvgad


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
        (["--protocol", "gpnd"], ["gpnd", "gpnd-5fold"]),
        (["--novel", "1"], ["simo", "--novel", "--protocol miso-8020"]),
        (["--outliers", "0.5"], ["simo", "--outliers"]),
        (["--num-categories", "2"], ["simo", "--num-categories"]),
        (["--protocol", "gpnd-5fold", "--outliers", "1.5"], ["between 0 and 1", "1.5"]),
        (["--protocol", "gpnd-5fold", "--trial", "-1"], ["trial", "-1"]),
        (["--protocol", "miso-8020", "--normal", "1"], ["--normal", "--novel"]),
        (["--protocol", "coil100", "--num-categories", "0"], ["At least one category", "got 0"]),
        (
            ["--data", "coil100", "--normal", "3"],
            ["coil100 has none", "--protocol miso-8020, miso-leaky, gpnd-5fold, coil100"],
        ),
        (["--data", "coil100", "--protocol", "coil100", "--data-root", "."], ["coil100.npz", "--data-root"]),
        (["--data", "folder:x", "--protocol", "ocgan-p1"], ["folder", "simo"]),
        (["--family", "cvgad", "--num-clusters", "0"], ["model.num_clusters", "greater than or equal to 1"]),
        (["--set", "objective.w_conn=1"], ["objective.w_conn", "w_con"]),
        (["--set", "objective.w_ssim=1"], ["objective.w_ssim is not a key"]),
        (["--set", "training.epochs=two"], ["training.epochs", "integer"]),
        (["--set", "data.protocol=simpo"], ["simpo", "simo"]),
        (["--set", "training=3"], ["training"]),
        (["--set", "distillation.student.objective.w_con=1"], ["distillation.student.objective", "family"]),
    ],
)
def test_train_refuses(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("train", *arguments, "--out", "run"), *words)
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_a_recipe_are_reported_at_once(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("trainin: {}\nmodel: {widht: 3}\ntraining: {epochs: 0}\n")
    words = ("3 problems", "trainin", "training", "widht", "width", "epochs")
    assert_refused(cli("recipes", "check", recipe), *words)
    assert_refused(cli("train", "--recipe", recipe, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_an_image_is_named(cli: Cli, photos: Path, tmp_path: Path) -> None:
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
    assert_refused(cli("train", *data, "--out", runs["teacher"]), "needs a new folder", "--resume")
    assert (runs["teacher"] / "model.safetensors").read_bytes() == before


def test_invalid_teachers(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    assert_refused(cli("distill", "--teacher", tmp_path / "none", *out), "none")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((runs["teacher"] / "model.safetensors").read_bytes()[:1000])
    assert_refused(cli("distill", "--teacher", cut, *out), "damaged", "cut.safetensors")
    assert_refused(cli("distill", "--teacher", runs["detector"], *out), "damaged")
    for section, words in (("family: ed", ["family", "ede"]), ("image_channels: 3", ["image channels", "3"])):
        recipe = tmp_path / "other.yaml"
        recipe.write_text(f"model: {{{section}}}\n")
        assert_refused(cli("distill", "--teacher", runs["teacher"], "--recipe", recipe, *out), *words)
    assert_refused(cli("distill", "--teacher", runs["teacher"], "--width", "0", *out), "width")
    assert_refused(cli("distill", "--teacher", runs["teacher"], "--schedule", "2->7", *out), "2->7")
    assert not (tmp_path / "run").exists()


def test_unfinished_runs_are_refused(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(runs["teacher"] / "recipe.yaml", unfinished)
    for command in (["evaluate"], ["export"], ["profile"]):
        assert_refused(cli(*command, "--model", unfinished), "unfinished")
    assert_refused(cli("train", "--resume", tmp_path / "nothing"), "no run")


def test_a_run_is_resumed_by_the_command_that_began_it(cli: Cli, runs: dict[str, Path]) -> None:
    assert_refused(cli("train", "--resume", runs["student"]), "distill --resume")
    assert_refused(cli("distill", "--resume", runs["teacher"]), "train --resume")


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
        ["train", "--set", "objective.w_adv"],
        ["train", "--set", "=1"],
        ["train", "--set", "objective..w_adv=1"],
        ["train", "--set", "model.channels=[1, 2"],
        ["train", "--resume", "run", "--set", "objective.w_adv=0"],
        ["train", "--resume", "run", "--protocol", "ocgan-p1"],
        ["evaluate", "--model", "run", "--mode", "papers"],
        ["trials"],
        ["pictures"],
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

    monkeypatch.setattr("kdgan_compress.experiment.recipe.load_recipe", interrupted)
    code, _, err = cli("train")
    assert code == 130
    assert "--resume" in err


def test_a_missing_extra_is_reported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_torch(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("kdgan_compress.experiment.recipe.load_recipe", no_torch)
    assert_refused(cli("train"), "torch", "kdgan-compress[train]")


@pytest.mark.parametrize("command", [*main.COMMANDS, "recipes list", "recipes show", "recipes check"])
def test_every_command_has_help_with_an_example(cli: Cli, command: str) -> None:
    code, out, _ = cli(*command.split(), "--help")
    assert code == 0
    assert f"kdgan-compress {command}" in out.split("Options:")[0].split("Usage:")[1].split("\n", 1)[1]
    assert "\\b" not in out


@pytest.mark.parametrize("command", ["", *main.COMMANDS, "recipes list", "recipes show", "recipes check"])
def test_every_help_screen_fits_40_lines_of_80_columns(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli(*command.split(), "--help")
    assert code == 0
    assert sum(1 + (len(line) - 1) // 80 for line in out.splitlines() if line) + out.count("\n\n") <= 40


@pytest.mark.parametrize("family", ["ede", "cvgad"])
def test_training_that_diverges_reports_the_step(cli: Cli, npz: Path, tmp_path: Path, family: str) -> None:
    small = ["--family", family, "--width", 1, "--image-size", 16, "--latent", 8, "--batch-size", 4]
    data = ["--data", f"npz:{npz}", "--normal", 0, *small, "--out", tmp_path / "run"]
    term, step = ("latent", 1) if family == "cvgad" else ("s_con", 2)
    words = [
        f"{term} is nan at step {step} of stage from-scratch (epoch 1)",
        "learning rate",
        "nothing had been saved yet",
    ]
    assert_refused(cli("train", *data, "--epochs", 1, "--learning-rate", "1e30"), *words)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["failed.txt", "recipe.yaml"]
    assert_refused(cli("evaluate", "--model", tmp_path / "run"), words[0], "Start a new run")


def test_training_that_diverges_later_keeps_a_model(
    cli: Cli, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def latent_loss(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 8 else 1)  # 4 per epoch, a cycle of 6 steps

    original = cvgad.latent_loss
    small = ["--family", "cvgad", "--width", 1, "--image-size", 16, "--latent", 8, "--batch-size", 4]
    with monkeypatch.context() as patched:
        patched.setattr(cvgad, "latent_loss", latent_loss)
        code, out, err = cli(
            "train", "--data", f"npz:{npz}", "--normal", 0, *small, "--epochs", 3, "--out", tmp_path / "run", "--json"
        )
    assert (code, out) == (1, "")
    progress, error = err.strip().splitlines()
    assert "epoch 1" in progress
    assert "latent is nan at step 10 of stage from-scratch (epoch 2)" in error  # the step's first nonfinite loss
    assert f"{tmp_path / 'run' / 'model.safetensors'} holds the last good model, of epoch 1 of stage 1." in error
    assert cli("evaluate", "--model", tmp_path / "run")[0] == 0
    assert cli("train", "--resume", tmp_path / "run")[0] == 0


def test_more_clusters_than_images(cli: Cli, npz: Path, tmp_path: Path) -> None:
    small = ["--width", 1, "--latent", 8, "--epochs", 1, "--family", "cvgad", "--num-clusters", 25]
    data = ["--data", f"npz:{npz}", "--normal", 0, "--out", tmp_path / "run"]
    assert_refused(cli("train", *data, *small), "got 25 clusters for 24 images", "num_clusters")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["deployed", "paper"])
def test_a_test_split_without_outliers_cannot_be_evaluated(
    cli: Cli, npz: Path, families: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    with np.load(npz) as data:
        arrays = dict(data)
    normal = arrays["y_test"] == 0
    np.savez(
        tmp_path / "normals.npz", **arrays | {"x_test": arrays["x_test"][normal], "y_test": arrays["y_test"][normal]}
    )
    moved = ["--data", f"npz:{tmp_path / 'normals.npz'}", "--normal", 0]
    assert_refused(
        cli("evaluate", "--model", families["cvgad"], *moved, "--mode", mode),
        "both normal and anomalous",
        "10 normal and 0",
    )


def test_the_limits_of_the_papers_mode(
    cli: Cli, runs: dict[str, Path], families: dict[str, Path], tmp_path: Path
) -> None:
    assert_refused(cli("evaluate", "--model", families["ede"], "--mode", "paper"), "cvgad", "Leave out --mode paper")
    assert_refused(cli("evaluate", "--model", runs["detector"], "--mode", "paper"), "a detector has only the score")


def test_a_students_family_has_to_exist(cli: Cli, families: dict[str, Path], tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    other = ["distill", "--teacher", families["cvgad"], "--set"]
    assert_refused(cli(*other, "distillation.student.family=vae", *out), "'vae'", "cvgad, ed, ed_ehat, ede")
    assert_refused(cli("distill", "--teacher", families["ede"], "--recipe", "cvgad", *out), "family", "ede", "cvgad")
    assert not (tmp_path / "run").exists()
