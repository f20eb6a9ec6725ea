"""``search``: the smallest student within limits, by a plain loop over what it measured."""

import json
from pathlib import Path

import pytest
from command_line import Cli, only_json

from kdgan_compress.api import search
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import RunResult
from kdgan_compress.export.validation.gate import Agreement

OPTIONS = ("--width", "1,2", "--set", "distillation.training.epochs=1", "--norm", "instance")


def test_the_smallest_student_within_the_limits_is_chosen(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("search", "--teacher", runs["teacher"], *OPTIONS, "--precision", "fp32")
    limits = ("--max-kb", 1000, "--max-auc-drop", 1)
    code, out, err = cli(*arguments, *limits, "--out", tmp_path / "search", "--json")
    report = only_json(out)
    assert code == 0
    assert "short training 1 of 2: 1-2-4-instance" in err
    final = [each for each in report["candidates"] if each["is_final"]]
    assert {each["network"] for each in final} == {"1-2-4-instance", "2-4-8-instance"}
    assert report["winner"] == min(final, key=lambda each: each["size_bytes"])
    beaten = [
        each for each in final
        if any(o["size_bytes"] < each["size_bytes"] and o["auc"] >= each["auc"] for o in final)
    ]  # fmt: skip
    assert all(each in report["front"] or each in beaten for each in final)
    assert json.loads((tmp_path / "search" / "search.json").read_text())["candidates"] == [
        each | {"run": str(Path(each["run"]).relative_to(tmp_path / "search"))} for each in report["candidates"]
    ]
    assert (tmp_path / "search" / "search.png").stat().st_size > 5000
    results = [json.loads(path.read_text()) for path in (tmp_path / "search").rglob("result.json")]
    notes = sorted(result["teacher_cache"] for result in results)
    assert [note.startswith("computed") for note in notes] == [True, False, False, False]  # the teacher runs once

    winner = report["winner"]
    detector = tmp_path / "winner.onnx"
    code, out, _ = cli("export", "--model", winner["run"], "-o", detector, "--precision", winner["precision"])
    assert code == 0
    assert detector.stat().st_size == winner["size_bytes"]

    (tmp_path / "search" / "students" / "1-2-4-instance" / "result.json").unlink()  # as if killed before its end
    code, out, _ = cli(*arguments, *limits, "--out", tmp_path / "search", "--json")
    assert code == 0
    assert [each["auc"] for each in only_json(out)["candidates"]] == [each["auc"] for each in report["candidates"]]
    code, _, err = cli(*arguments, *limits, "--out", tmp_path / "search", "--set", "distillation.training.epochs=2")
    assert (code, "same teacher and recipe" in err) == (1, True)

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "search").rglob("result.json")}
    code, out, _ = cli(*arguments, *limits, "--out", tmp_path / "search")  # finished students are kept
    assert code == 0
    assert "chosen" in out
    assert f"--model {winner['run']}" in out
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_score_of_the_discriminator_has_a_short_training_that_trains_it(
    cli: Cli, runs: dict[str, Path], tmp_path: Path
) -> None:
    options = (*OPTIONS, "--width", 1, "--precision", "fp32", "--set", "score.features=discriminator")
    code, _, _ = cli("search", "--teacher", runs["teacher"], *options, "--max-kb", 1000, "--out", tmp_path / "search")
    assert code == 0
    recipes = {path.parent.parent.name: load_recipe(str(path)) for path in tmp_path.rglob("recipe.yaml")}
    assert {name: recipe.distillation.schedule for name, recipe in recipes.items()} == {
        "screening": "2",
        "students": "2->3",
    }


def test_the_printed_command_exports_the_winner_and_a_student_that_fails_is_left_out(
    cli: Cli, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil = search._Trainer._distil

    def fail_wide(self: search._Trainer, recipe: Recipe, folder: Path) -> RunResult:
        if folder.name == "2-4-8-instance":
            raise KdganError("Weights must stay finite", "they are not", "Lower the learning rate")
        return distil(self, recipe, folder)

    monkeypatch.setattr(search._Trainer, "_distil", fail_wide)
    monkeypatch.setattr(Agreement, "check", lambda *_: None)  # so short a training loses AUC by any rank
    options = (*OPTIONS, "--precision", "fp32", "--rank", 15, "--set", "score.type=norm", "--max-auc-drop", 1)
    code, out, err = cli("search", "--teacher", runs["teacher"], *options, "--out", tmp_path / "search")
    assert code == 0
    assert "2-4-8-instance is left out: Weights must stay finite" in err
    (command,) = (line.split("kdgan-compress ")[1] for line in out.splitlines() if line.startswith("export"))
    assert "--latent-rank 15" in command
    monkeypatch.chdir(tmp_path)
    assert cli(*command.split())[0] == 0
    assert (tmp_path / "student.onnx").exists()


@pytest.mark.parametrize("limit", [("--max-kb", 1), ("--max-latency-us", 0.001)])
def test_limits_that_nothing_meets_show_the_closest(cli: Cli, runs: dict[str, Path], tmp_path: Path, limit) -> None:
    options = ("--width", 1, "--precision", "fp32", "--norm", "instance")
    code, _, err = cli("search", "--teacher", runs["teacher"], *options, *limit, "--out", tmp_path / "search")
    assert code == 1
    assert f"No student meets {limit[0]} {limit[1]}" in err
    assert "the closest is 1-2-4-instance fp32" in err
    assert (tmp_path / "search" / "search.json").exists()
    assert not (tmp_path / "search" / "students").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "at least one of --max-kb"),
        (("--max-kb", -1), 2, "--max-kb"),
        (("--max-kb", 9, "--keep", 0), 1, "fraction to keep"),
        (("--max-kb", 9, "--precision", "fp33"), 1, "precision must be one of"),
        (("--max-kb", 9, "--width", "1,x"), 2, "whole numbers"),
    ],
)
def test_invalid_options(cli: Cli, runs: dict[str, Path], tmp_path: Path, options, code, message) -> None:
    result, _, err = cli("search", "--teacher", runs["teacher"], "--out", tmp_path / "search", *options)
    assert (result, message in err) == (code, True)
    assert not (tmp_path / "search").exists()
