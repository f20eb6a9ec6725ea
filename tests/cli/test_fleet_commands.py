"""Several models by one command: output, files and refusals."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Cli, assert_refused, only_json
from safetensors.numpy import load_file

from kdgan_compress.cli import output
from kdgan_compress.cli.main import run
from kdgan_compress.experiment.checkpoint import load_checkpoint

RUN_KEYS = {
    "run",
    "model",
    "auc",
    "auc_raw",
    "epochs",
    "num_images",
    "seconds",
    "images_per_s",
    "fleet",
    "teacher_cache",
}
NORM = ("--set", "score.type=norm")
"""A fitted statistic amplifies rounding differences."""

TINY = ("--width", 1, "--image-size", 16, "--latent", 8, "--batch-size", 8, "--epochs", 1, *NORM)
STUDENT = ("--width", 1, "--norm", "instance", "--batch-size", 8, "--epochs", 1, *NORM)
NAMES = [f"set-{normal}-ede-1-2-seed0" for normal in range(3)]


def quick_plot(*arguments: Any) -> None:
    arguments[-1].touch()


@pytest.fixture(scope="module", autouse=True)
def _no_plots() -> Iterator[None]:
    """Plots take most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("plot_curves", "plot_scores"):
            patched.setattr(f"kdgan_compress.experiment.training_run.{name}", quick_plot)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A source of three classes of 20, 9 and 14 training images."""
    path = tmp_path_factory.mktemp("data") / "set.npz"
    rng = np.random.default_rng(0)

    def split(*sizes: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(range(3), sizes)
        return (rng.integers(0, 120, (len(labels), 16, 16)) + 60 * labels[:, None, None]).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = split(20, 9, 14), split(6, 7, 5)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def trained(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each class."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["train", "--data", data, *TINY, "--normal", "0..2", "--fleet", 3, "--out", folder]
    assert run([str(argument) for argument in arguments]) == 0
    return folder


def files_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def assert_close(actual: Path, expected: Path, atol: float) -> None:
    """Compare the weights of two runs."""
    weights, others = (load_file(run / "model.safetensors") for run in (actual, expected))
    for key in others:
        np.testing.assert_allclose(weights[key], others[key], rtol=0, atol=atol)


def test_train_of_several_classes_prints_one_object(cli: Cli, data: str, tmp_path: Path) -> None:
    out_folder = tmp_path / "D"
    code, out, err = cli(
        "train", "--data", data, *TINY, "--normal", "0..2", "--fleet", 3, "--out", out_folder, "--json"
    )
    result = only_json(out)
    assert code == 0
    assert result.keys() == {"members", "failed", "fleet", "num_images", "seconds", "images_per_s", "note"}
    assert [member["run"] for member in result["members"]] == [str(out_folder / name) for name in NAMES]
    for member in result["members"]:
        assert member.keys() >= RUN_KEYS
        saved = json.loads((Path(member["run"]) / "result.json").read_text())
        assert saved == member | {"run": ".", "model": "model.safetensors"}
    assert (result["failed"], result["fleet"], result["num_images"]) == ({}, 3, 43)
    assert sorted(line.partition(",")[0] for line in err.splitlines()) == NAMES
    assert all(line.startswith(f"{line.partition(',')[0]}, stage from-scratch, epoch 1  ") for line in err.splitlines())
    assert sorted(path.name for path in out_folder.iterdir()) == NAMES


def test_train_of_several_classes_and_seeds_prints_a_table(cli: Cli, data: str, tmp_path: Path) -> None:
    options = ("--normal", "2,0", "--seed", "3..4", "--raw", "--out", tmp_path / "D")
    code, out, _ = cli("train", "--data", data, *TINY, *options)
    assert code == 0
    names = [f"set-{normal}-ede-1-2-seed{seed}" for normal in (2, 0) for seed in (3, 4)]
    *rows, summary, machine = out.splitlines()
    assert [Path(row.split()[0]).name for row in rows] == names
    for row, name in zip(rows, names, strict=True):
        result = json.loads((tmp_path / "D" / name / "result.json").read_text())
        assert row.split("  ")[1:] == [
            f"AUC {100 * result['auc']:.2f} %, {100 * result['auc_raw']:.2f} % without EMA",
            f"seed {name[-1]}",
        ]
    assert summary.startswith("4 models, 68 images in ")
    assert summary.endswith(" at once")
    assert machine.startswith("machine ")
    checkpoints = [load_checkpoint(tmp_path / "D" / name / "model.safetensors") for name in names]
    assert [(c.data.normal, c.provenance["seed"]) for c in checkpoints] == [("2", 3), ("2", 4), ("0", 3), ("0", 4)]


def test_one_class_and_seed_of_several_is_one_run(cli: Cli, data: str, tmp_path: Path) -> None:
    code, out, err = cli("train", "--data", data, *TINY, "--normal", "1..1", "--seed", "4", "--out", tmp_path, "--json")
    assert code == 0
    assert only_json(out)["run"] == str(tmp_path)
    assert "members" not in only_json(out)
    assert err.startswith("stage from-scratch, epoch 1")


@pytest.mark.parametrize("form", ["by the shell", "many options", "a pattern"])
def test_distill_of_several_teachers(cli: Cli, trained: Path, tmp_path: Path, form: str) -> None:
    teachers = {
        "by the shell": ["--teacher", *(trained / name for name in NAMES)],
        "many options": [part for name in NAMES for part in ("--teacher", trained / name)],
        "a pattern": ["--teacher", trained / "*"],
    }[form]
    code, out, err = cli("distill", *teachers, *STUDENT, "--schedule", "2->3", "--out", tmp_path / "E", "--json")
    result = only_json(out)
    assert code == 0
    names = [f"{name}-student-1-2-seed0" for name in NAMES]
    assert [Path(member["run"]).name for member in result["members"]] == names
    for teacher, name in zip(NAMES, names, strict=True):
        run = tmp_path / "E" / name
        assert load_checkpoint(run / "model.safetensors").provenance["teacher"] == str(trained / teacher)
        assert (run / "teacher.safetensors").exists()
    assert result["num_images"] == 2 * 43
    assert "stage 3, epoch 1" in err


def test_options_can_follow_several_teachers(cli: Cli, trained: Path, tmp_path: Path) -> None:
    teachers = ["--teacher", trained / NAMES[0], trained / NAMES[2]]
    code, out, _ = cli("distill", *teachers, *STUDENT, "--seed", "1,5", "--schedule", 1, "--out", tmp_path / "E")
    assert code == 0
    runs = sorted(path.name for path in (tmp_path / "E").iterdir())
    assert runs == [f"{NAMES[normal]}-student-1-2-seed{seed}" for normal in (0, 2) for seed in (1, 5)]
    assert out.splitlines()[-2].startswith("4 models, 68 images")


def test_a_pattern_selects_only_runs(cli: Cli, data: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / NAMES[0], tmp_path / "t" / "a[1]")  # which is a pattern itself
    (tmp_path / "t" / "notes").mkdir()
    (tmp_path / "t" / "list.txt").write_text("none")
    for pattern in (tmp_path / "t" / "*", tmp_path / "t" / "a[1]"):
        out = tmp_path / f"E{pattern.name == '*'}"
        moved = ("--teacher", pattern, "--data", data)
        code, printed, _ = cli("distill", *moved, *STUDENT, "--schedule", 1, "--out", out, "--json")
        assert code == 0
        assert only_json(printed)["run"] == str(out)
    assert_refused(cli("distill", "--teacher", tmp_path / "none" / "*", *STUDENT), "must be a file", "none/*")


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when this many lines of progress have been printed."""
    original, printed = output._print_epoch, []

    def print_epoch(progress: Any) -> None:
        original(progress)
        printed.append(progress)
        if len(printed) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(output, "_print_epoch", print_epoch)


def test_an_interrupted_fleet_is_resumed_by_its_folder(
    cli: Cli, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "D"
    with monkeypatch.context() as patched:
        interrupt_at(4, patched)
        code, out, err = cli(
            "train", "--data", data, *TINY, "--epochs", 2, "--normal", "0..2", "--fleet", 3, "--out", folder
        )
    assert (code, out) == (130, "")
    assert "finished work is kept" in err.splitlines()[-1]
    assert not list(folder.glob("*/result.json"))  # members are finished when all are trained
    code, out, _ = cli("train", "--resume", folder, "--fleet", 2, "--json")
    assert code == 0
    assert [(Path(m["run"]).name, m["epochs"]) for m in only_json(out)["members"]] == [(name, 2) for name in NAMES]
    for name in NAMES:
        single = tmp_path / "single" / name
        options = ["--data", data, *TINY, "--epochs", 2, "--normal", name.split("-")[1], "--out", single]
        assert cli("train", *options)[0] == 0
        assert_close(folder / name, single, 2e-5)
    again = files_in(folder)
    assert cli("train", "--resume", folder)[0] == 0
    assert files_in(folder) == again


def test_students_are_resumed_by_their_folder(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "E"
    with monkeypatch.context() as patched:
        interrupt_at(4, patched)
        students = ["--teacher", trained / "*", *STUDENT, "--schedule", "2->3", "--fleet", 3, "--out", folder]
        assert cli("distill", *students)[0] == 130
    code, out, _ = cli("distill", "--resume", folder, "--json")
    assert code == 0
    assert [member["epochs"] for member in only_json(out)["members"]] == [2, 2, 2]
    assert_refused(cli("train", "--resume", folder), "a run of distill", "Use distill --resume")
    assert_refused(cli("distill", "--resume", trained), "a run of train", "Use train --resume")


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Like ``cli``, for commands that end with ``SystemExit``."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = run([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def spoil_the_second_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the model of the class with 9 images with NaN weights."""
    import torch

    from kdgan_compress.distillation.scheduler import ProgressiveScheduler

    original = ProgressiveScheduler.begin_stage

    def begin_stage(scheduler: ProgressiveScheduler) -> Any:
        stage_run = original(scheduler)
        if len(stage_run.images) == 9:
            with torch.no_grad():
                next(scheduler.student.gan.generator.parameters()).fill_(torch.nan)
        return stage_run

    monkeypatch.setattr(ProgressiveScheduler, "begin_stage", begin_stage)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_member_that_diverges_is_exit_code_1_and_the_others_are_reported(
    ended: Cli, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    options = ["--normal", "0..2", "--fleet", 3, "--out", tmp_path / "D", *(["--json"] if as_json else [])]
    with monkeypatch.context() as patched:
        spoil_the_second_class(patched)
        code, out, err = ended("train", "--data", data, *TINY, *options)
    assert code == 1
    wild, others = str(tmp_path / "D" / NAMES[1]), [str(tmp_path / "D" / name) for name in (NAMES[0], NAMES[2])]
    error = err.splitlines()[-1]
    assert error.startswith(f"{wild}: Losses must stay finite; ")
    assert "is nan at step 1 of stage from-scratch (epoch 1)" in error
    if as_json:
        result = only_json(out)
        assert [member["run"] for member in result["members"]] == others
        assert result["failed"].keys() == {wild}
        assert error == f"{wild}: {result['failed'][wild]}"
    else:
        *rows, summary, _ = out.splitlines()
        assert [row.split()[0] for row in rows] == others
        assert summary.startswith("2 models, 34 images in ")
    assert ended("train", "--resume", tmp_path / "D")[0] == 0  # without the spoiled weights


def test_a_failed_member_is_an_exit_code_that_is_returned(
    cli: Cli, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_the_second_class(monkeypatch)
    assert cli("train", "--data", data, *TINY, "--normal", "0,1", "--fleet", 2, "--out", tmp_path / "D")[0] == 1


def test_all_members_can_diverge(ended: Cli, data: str, tmp_path: Path) -> None:
    options = ["--normal", "0..1", "--fleet", 2, "--epochs", 2, "--learning-rate", "1e30", "--out", tmp_path / "D"]
    code, out, err = ended("train", "--data", data, *TINY, *options, "--json")
    result = only_json(out)
    assert code == 1
    assert (result["members"], result["num_images"], result["images_per_s"]) == ([], 0, 0)
    assert list(result["failed"]) == [str(tmp_path / "D" / name) for name in NAMES[:2]]
    assert err.splitlines()[-2:] == [f"{run}: {message}" for run, message in result["failed"].items()]
    _, out, _ = ended("train", "--data", data, *TINY, *options[:-1], tmp_path / "D2")
    assert out.startswith("0 models, 0 images in 0.0 s")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--normal", "0..2", "--fleet", 0], ["at least 1 model", "got 0"]),
        (["--normal", "0..2", "--fleet", -2], ["at least 1 model", "got -2"]),
        (["--normal", "0,1,7"], ["found none of class 7", "0, 1, 2"]),
        (["--normal", "0..3"], ["found none of class 3"]),
        (["--normal", "0,unicorn"], ["'unicorn'"]),
        (["--normal", "0-2"], ["'0-2'"]),
        (["--normal", "0..2", "--device", "cuda"], ["no CUDA GPU", "--device"]),
        (["--normal", "0", "--device", "cuda"], ["no CUDA GPU", "--device"]),
        (["--normal", "0", "--seed", "0,4294967296"], ["training.seed", "4294967296"]),
        (["--normal", "0..2", "--epochs", 0], ["training.epochs"]),
        (["--normal", "0..2", "--novel", "1"], ["simo", "--novel"]),
    ],
    ids=str,
)  # fmt: skip
def test_train_refuses(
    cli: Cli,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    words: list[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert_refused(cli("train", "--data", data, *TINY, *arguments, "--out", tmp_path / "run"), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "--normal", "9..0"], "'9..0' is not a range"),
        (["train", "--normal", "0.."], "'0..' is not a range"),
        (["train", "--normal", "..2"], "'..2' is not a range"),
        (["train", "--normal", "a..c"], "'a..c' is not a range"),
        (["train", "--normal", "1,1"], "'1,1' must name each value once"),
        (["train", "--normal", "1,"], "must name each value once"),
        (["train", "--normal", ""], "must name each value once"),
        (["train", "--seed", "a..b"], "'a..b' is not a range"),
        (["train", "--seed", "2..1"], "'2..1' is not a range"),
        (["train", "--seed", "x"], "--seed must be whole numbers"),
        (["train", "--seed", "0,x"], "--seed must be whole numbers"),
        (["train", "--seed", "-1"], "--seed must be whole numbers"),
        (["train", "--seed", "0,0"], "'0,0' must name each value once"),
        (["train", "--fleet", "many"], "'many' is not a valid integer"),
        (["train", "--device", "tpu"], "'tpu' is not one of"),
        (["train", "--precision", "float16"], "'float16' is not one of"),
        (["train", "--resume", "run", "--device", "cpu"], "leave out --device"),
        (["distill", "--teacher", "t", "--seed", "a..b"], "'a..b' is not a range"),
        (["distill", "--teacher", "t", "--cache-dtype", "int8"], "'int8' is not one of"),
        (["distill", "--teacher", "t", "--cache-memory-mb", "lots"], "'lots' is not a valid integer"),
        (["distill", "stray"], "Give --teacher"),
        (["distill", "--resume", "run", "--cache", "off"], "leave out --cache"),
        (["distill", "--resume", "run", "--cache-dtype", "float16"], "leave out --cache-dtype"),
        (["distill", "--resume", "run", "--schedule", "2"], "leave out --schedule"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_usage(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert word in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [["--teacher", "t"], ["t"]])
def test_resume_with_a_teacher_names_the_option(cli: Cli, more: list[str]) -> None:
    code, _, err = cli("distill", "--resume", "run", *more)
    assert code == 2
    assert err.splitlines()[-1].endswith("leave out --teacher.")


@pytest.mark.parametrize("resume", [False, True])
def test_a_fleet_of_0_is_refused_for_one_model_too(cli: Cli, data: str, tmp_path: Path, resume: bool) -> None:
    options = ["train", "--data", data, *TINY, "--normal", 0, "--out", tmp_path / "run"]
    if resume:
        assert cli(*options)[0] == 0
        options = ["train", "--resume", tmp_path / "run"]
    code, _, err = cli(*options, "--fleet", 0)
    assert code in (1, 2)
    assert "at least 1" in err


def test_the_same_seed_twice_is_refused(cli: Cli, data: str, tmp_path: Path) -> None:
    code, _, _ = cli("train", "--data", data, *TINY, "--normal", 0, "--seed", "0,00", "--out", tmp_path / "D")
    assert code in (1, 2)
    assert not (tmp_path / "D").exists()


def test_a_fleet_larger_than_memory(
    cli: Cli, data: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdgan_compress.experiment.fleet_size._free_bytes", lambda device: 1000)
    options = ["train", "--data", data, *TINY, "--normal", "0..2", "--out", tmp_path / "D"]
    assert_refused(cli(*options, "--fleet", 3), "half of the free memory", "got 3, 1 fit", "--fleet 1 or less")
    students = ["distill", "--teacher", trained / "*", *STUDENT, "--out", tmp_path / "E"]
    assert_refused(cli(*students, "--fleet", 2), "half of the free memory", "got 2, 1 fit")
    assert list(tmp_path.iterdir()) == []
    code, out, _ = cli(*options)
    assert code == 0
    assert out.splitlines()[-2].endswith(", 1 at once")


def test_students_with_batch_norm_are_the_default_and_train_as_a_fleet(cli: Cli, trained: Path, tmp_path: Path) -> None:
    tiny = ("--width", 1, "--batch-size", 8, "--epochs", 1, "--schedule", 1, "--out", tmp_path / "E")
    code, out, _ = cli("distill", "--teacher", trained / "*", *tiny, "--fleet", 3, "--json")
    assert code == 0
    assert [member["fleet"] for member in only_json(out)["members"]] == [3, 3, 3]
    student = load_checkpoint(tmp_path / "E" / f"{NAMES[0]}-student-1-2-seed0" / "model.safetensors")
    assert student.architecture.norm == "batch"


def test_models_that_cannot_train_together_train_one_by_one(cli: Cli, data: str, tmp_path: Path) -> None:
    cvgad = ["train", "--data", data, *TINY, "--family", "cvgad", "--normal", "0,1", "--out", tmp_path / "D"]
    code, out, err = cli(*cvgad, "--fleet", 2)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []
    code, out, _ = cli(*cvgad, "--json")
    result = only_json(out)
    assert code == 0
    assert [member["fleet"] for member in result["members"]] == [1, 1]
    code, out, _ = cli(*cvgad[:-1], tmp_path / "text")
    assert f"one by one   {result['note']}" in out.splitlines()


def test_an_existing_run_keeps_the_others_from_starting(cli: Cli, data: str, tmp_path: Path) -> None:
    options = ["train", "--data", data, *TINY, "--normal"]
    assert cli(*options, 1, "--out", tmp_path / NAMES[1])[0] == 0
    before = files_in(tmp_path)
    assert_refused(cli(*options, "0..2", "--out", tmp_path), f"found a run in {tmp_path / NAMES[1]}", "--resume")
    assert files_in(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[1]]


def test_teachers_of_different_shapes(cli: Cli, data: str, trained: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    assert cli("train", "--data", data, *TINY, "--width", 2, "--normal", 0, "--out", wide)[0] == 0
    teachers = ["--teacher", trained / NAMES[0], wide]
    assert_refused(
        cli("distill", *teachers, *STUDENT, "--out", tmp_path / "E"), "one shape", "differ in channels", "teacher"
    )
    assert not (tmp_path / "E").exists()


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_folders_without_runs_cannot_be_resumed(cli: Cli, tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        assert_refused(cli(kind, "--resume", folder), "needs a run folder", f"found no run in {folder}")


def test_the_cache_is_written_read_and_repaired(cli: Cli, trained: Path, tmp_path: Path) -> None:
    def distil(name: str, *options: object) -> str:
        arguments = ["--teacher", trained / NAMES[0], *STUDENT, "--schedule", 2, "--out", tmp_path / name, "--json"]
        code, out, _ = cli("distill", *arguments, *options)
        assert code == 0
        note: str = only_json(out)["teacher_cache"]
        return note

    cache = tmp_path / "cache"
    assert distil("a", "--cache", cache) == "computed, 0.0 MB in the cache folder (none yet)"
    (rows,) = cache.glob("*.npy")
    assert sorted(path.name for path in cache.iterdir()) == [f"{rows.stem}.json", rows.name]
    before = files_in(cache)
    assert distil("b", "--cache", cache) == f"read from {rows.name}"
    assert distil("c", "--cache", cache, "--cache-memory-mb", 0) == f"read from {rows.name}"
    rows.write_bytes(rows.read_bytes()[:-1] + b"?")
    assert distil("d", "--cache", cache) == f"computed, 0.0 MB in the cache folder ({rows.name} was damaged)"
    assert {name: content for name, (content, _) in files_in(cache).items()} == {
        name: content for name, (content, _) in before.items()
    }
    assert (
        distil("e", "--cache", cache, "--cache-dtype", "float16") == "computed, 0.0 MB in the cache folder (none yet)"
    )
    assert len(files_in(cache)) == 4
    assert distil("f", "--cache", "off") == "none: disabled"
    assert distil("g").startswith("computed, 0.0 MB in memory")
    for name in ("b", "c", "d", "f", "g"):
        assert_close(tmp_path / name, tmp_path / "a", 1e-5)
    _, out, _ = cli(
        "distill", "--teacher", trained / NAMES[0], *STUDENT, "--schedule", 2, "--cache", cache, "--out", tmp_path / "i"
    )
    assert f"cache        read from {rows.name}" in out.splitlines()


def test_a_cache_without_memory_and_folder_is_reported_with_its_size(cli: Cli, trained: Path, tmp_path: Path) -> None:
    options = ["--teacher", trained / NAMES[0], *STUDENT, "--schedule", 2, "--cache-memory-mb", 0, "--json"]
    _, out, _ = cli("distill", *options, "--out", tmp_path / "E")
    note = only_json(out)["teacher_cache"]
    assert note.startswith("none: ")
    assert note.endswith("exceed the 0 MB allowed in memory, and no folder is given")
    assert float(note.split()[1]) > 0


def test_impossible_caches(cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    distil = ["distill", "--teacher", trained / NAMES[0], *STUDENT, "--out", tmp_path / "E"]
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_refused(cli(*distil, "--schedule", 2, "--cache", path), "writable", str(path))
    words = ["Only a frozen teacher", "stage 3 trains the teacher", "--cache off"]
    assert_refused(cli(*distil, "--schedule", 3, "--cache", tmp_path / "cache"), *words)
    assert_refused(cli(*distil, "--schedule", "4->2", "--cache", tmp_path / "cache"), "stage 4 trains the teacher")
    assert_refused(cli(*distil, "--schedule", 2, "--cache-memory-mb", -1), "cache.memory_mb", "greater than or equal")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "file").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert_refused(cli(*distil, "--schedule", 2, "--cache", tmp_path / "cache"), "No space left", "cache", "free")
    assert not (tmp_path / "E").exists()
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("command", ["train", "distill"])
def test_help_explains_several_models(cli: Cli, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0
    text = " ".join(out.split())
    assert "--fleet K Models trained together; auto-tuned by default." in text
    assert "for several models, its parent" in text
    assert "Finish an interrupted run, or all in a folder" in text
    assert {"train": "--normal 0..9 --out", "distill": "--teacher runs/teachers/* --width 2"}[command] in text
    if command == "train":
        assert "0..9 or a,b: one model per class" in text
    else:
        assert "several (runs/*): one student per teacher" in text
        assert "--cache DIR|off" in text
    assert "MORE_TEACHERS" not in out


def test_a_cpu_computes_in_float32_at_every_precision(cli: Cli, data: str, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        options = ["--normal", 1, "--device", "cpu", "--precision", precision, "--out", tmp_path / precision]
        assert cli("train", "--data", data, *TINY, *options)[0] == 0
        assert f"precision: {precision}" in (tmp_path / precision / "recipe.yaml").read_text()
    assert_close(tmp_path / "bfloat16", tmp_path / "float32", 0)
