"""The command ``report`` on trained runs, and what bad input gets."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import Cli, assert_refused, only_json
from sklearn.metrics import roc_auc_score

from kdgan_compress.data import load_split
from kdgan_compress.evaluation.baselines import BASELINES
from kdgan_compress.experiment.checkpoint import load_checkpoint


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "report-cache"))


def test_a_page_markdown_and_csv_have_models_and_baselines(runs: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    out = [tmp_path / "deep" / f"r.{suffix}" for suffix in ("html", "md", "csv")]
    options = [text for path in out for text in ("-o", path)]
    code, stdout, _ = cli("report", runs["teacher"], runs["student"], *options, "--json")
    assert code == 0
    summary = only_json(stdout)
    assert summary["files"] == [str(path) for path in out]
    assert (summary["num_runs"], summary["problems"]) == (2, [])
    results = summary["results"]["tiny"]
    assert list(results) == ["teacher", "student", *BASELINES]
    for name in ("teacher", "student"):
        assert results[name] == json.loads((runs[name] / "result.json").read_text())["auc"]
    checkpoint = load_checkpoint(runs["teacher"] / "model.safetensors")
    split = load_split(checkpoint.data, 32, 1)
    for name, baseline in BASELINES.items():
        scores = baseline(split.train, split.test).scores
        assert results[name] == pytest.approx(roc_auc_score(split.test_is_anomalous, scores))
    page = out[0].read_text()
    assert page.count("<svg") == 2 + 1 + 2 + 2  # cost, ROC, losses and scores of each row
    assert page.count("data:image/png") == 1  # reconstructions
    assert f"kdgan-compress report {runs['teacher']} {runs['student']} -o {out[0]}" in page
    assert "| student |" in out[1].read_text()
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(out[2].read_text()))}
    detector_bytes = float(rows["student"]["size_bytes"])
    assert detector_bytes == pytest.approx(runs["detector"].stat().st_size, rel=0.01)
    assert float(rows["student"]["latency_us"]) > 0
    assert float(rows["teacher"]["conv_macs"]) > float(rows["student"]["conv_macs"])


def test_baselines_are_kept_and_no_latency_is_measured(
    runs: dict[str, Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ("report", runs["student"], "-o", tmp_path / "r.csv", "--no-latency", "--json")
    first = only_json(cli(*arguments)[1])["results"]
    (kept,) = (tmp_path / "cache" / "kdgan-compress" / "baselines").iterdir()
    monkeypatch.setitem(BASELINES, "KDE", None)  # type: ignore[arg-type]
    assert only_json(cli(*arguments)[1])["results"] == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept.write_text("[1]")
    assert only_json(cli(*arguments)[1])["results"] == first
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert {row["latency_us"] for row in rows} == {""}
    without = only_json(cli(*arguments, "--no-baselines")[1])["results"]
    assert list(without["tiny"]) == ["student"]


def test_data_that_is_gone_leaves_out_images_and_baselines_only(
    runs: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(runs["student"], run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["source"] = f"npz:{tmp_path / 'gone.npz'}"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    from kdgan_compress.experiment.checkpoint import save_checkpoint

    checkpoint = load_checkpoint(run / "model.safetensors")
    object.__setattr__(checkpoint, "data", checkpoint.data.relocate(f"npz:{tmp_path / 'gone.npz'}", None))
    save_checkpoint(run / "model.safetensors", checkpoint)
    code, stdout, stderr = cli("report", run, "-o", tmp_path / "r.html")
    assert code == 0, stderr
    page = (tmp_path / "r.html").read_text()
    assert "baselines of gone-0 are left out" in page
    assert "reconstructions and anomaly maps are left out" in page
    assert "data:image/png" not in page
    assert "mean ROC" in page
    assert "left out" in stderr
    assert "1 runs in" in stdout


def test_a_page_of_photos_has_anomaly_maps(photos: Path, tmp_path: Path, cli: Cli) -> None:
    small = ("--width", 1, "--latent", 4, "--batch-size", 4, "--num-images", 8, "--tile", 32, "--photo-size", 48)
    code, _, err = cli("train", "--data", f"folder:{photos}", *small, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    code, stdout, err = cli("report", tmp_path / "run", "-o", tmp_path / "r.html", "--no-latency", "--json")
    assert code == 0, err
    assert only_json(stdout)["problems"] == []
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png") == 1
    assert "best and worst cases with their anomaly maps" in page


def test_a_sweep_is_one_report_with_its_cells_that_are_missing(runs: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    for name in ("teacher", "student"):
        shutil.copytree(runs[name], tmp_path / name)
    cells = [
        {"run": "student", "teacher": "teacher", "axes": {"width": 1, "seed": 0}},
        {"run": "missing", "teacher": "teacher", "axes": {"width": 2, "seed": 0}},
    ]
    report = {"rows": ["width"], "columns": [], "paper": [{"width": 1, "auc": 0.75}]}
    content = {"name": "widths", "variant": "quick", "axes": {"width": [1, 2], "seed": [0]}, "report": report}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content | {"cells": cells}))
    code, _, err = cli("report", tmp_path, "-o", tmp_path / "r.md", "--no-baselines", "--no-latency")
    assert code == 0, err
    text = (tmp_path / "r.md").read_text()
    assert "# widths" in text
    assert "**quick**" in text
    assert "| teacher |" in text
    assert "| 1 | " in text
    assert "75.00" in text
    assert "- 1 of 2 cells are not finished" in text
    assert "missing is not one" in err


def test_bad_input_is_one_line_and_older_reports_stay(runs: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "r.html"
    out.write_text("older")
    (tmp_path / "photos").mkdir()
    assert_refused(cli("report", tmp_path / "photos", "-o", out), "at least one finished run", "photos: no run in it")
    assert_refused(cli("report", tmp_path / "nowhere", "-o", out), "found no folder", "nowhere")
    assert_refused(cli("report", runs["student"] / "recipe.yaml", "-o", out), "found no folder")
    assert_refused(cli("report", runs["student"], "-o", tmp_path / "r.pdf"), ".html, .md or .csv", "r.pdf")
    assert out.read_text() == "older"
    assert cli("report", "-o", out)[0] == 2
    assert cli("report", runs["student"])[0] == 2


def test_runs_without_labels_have_no_report(runs: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(runs["student"], tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"auc": None}))
    assert_refused(cli("report", tmp_path / "run", "-o", tmp_path / "r.md"), "runs with an AUC", "none of 1")
    code, _, err = cli(
        *("report", tmp_path / "run", runs["teacher"], "-o", tmp_path / "r.md", "--no-baselines", "--no-latency")
    )
    assert code == 0
    assert "1 runs have no AUC" in err


def test_a_run_without_scores_or_with_a_damaged_model_is_reported_without_them(
    runs: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    shutil.copytree(runs["student"], tmp_path / "run")
    (tmp_path / "run" / "scores.npz").unlink()
    (tmp_path / "run" / "model.safetensors").write_bytes(np.arange(50, dtype=np.uint8).tobytes())
    (tmp_path / "run" / "metrics.jsonl").write_text("{\n")
    code, _, err = cli("report", tmp_path / "run", "-o", tmp_path / "r.html", "--no-baselines")
    assert code == 0, err
    for words in ("bytes and latency are left out", "ROC curves and histograms", "reconstructions", "training curves"):
        assert words in err
