"""The benchmark's report for small cases; speed itself is not tested."""

import dataclasses
import itertools

import pytest
import torch
from click.testing import CliRunner

from kdgan_compress.bench import bench
from kdgan_compress.bench.cases import CASES, Case
from kdgan_compress.cli.main import cli
from kdgan_compress.errors import KdganError

STUDENT = Case("train", "ede", "2", (1, 2, 4), 2, ("plain", "engine", "cache", "fleet 3"))
SCORED = Case("infer", "ede", "score", (1, 2, 4), 2, ("plain", "engine"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    announced = []
    plot = tmp_path_factory.mktemp("bench") / "speed.png"
    result = bench.bench((STUDENT, SCORED), rounds=2, seconds_per_round=0.01, plot=plot, announce=announced.append)
    assert announced == result.rows
    assert plot.read_bytes().startswith(b"\x89PNG")
    return result


def test_every_path_of_every_case_has_a_row(report):
    rows = [(row.work, row.structure, row.path, row.fleet, row.batch, row.channels) for row in report.rows]
    assert rows == [
        ("train", "2", "plain", 1, 2, "1-2-4"),
        ("train", "2", "engine", 1, 2, "1-2-4"),
        ("train", "2", "cache", 1, 2, "1-2-4"),
        ("train", "2", "fleet", 3, 2, "1-2-4"),
        ("infer", "score", "plain", 1, 2, "1-2-4"),
        ("infer", "score", "engine", 1, 2, "1-2-4"),
    ]
    for row in report.rows:
        assert 0 < row.us_per_image.min <= row.us_per_image.median <= row.us_per_image.max
        assert row.peak_rss_mb > 50
        assert (row.speedup == 1) == (row.path == "plain")


def test_arithmetic_is_counted_per_image_and_model(report):
    """By hand: a cached step costs the same for one model and for each of three; a teacher adds its forward pass."""
    macs = {row.path: row.macs_per_image for row in report.rows if row.work == "train"}
    assert macs["plain"] is None
    assert macs["fleet"] == pytest.approx(macs["cache"])
    assert macs["engine"] - macs["cache"] == pytest.approx(54_263_808)  # conv MACs of 64-128-256, grey
    scoring = [row.macs_per_image for row in report.rows if row.work == "infer"]
    assert scoring == [None, pytest.approx(73_728)]  # the same of 1-2-4
    for row in report.rows:
        if row.macs_per_image is not None:
            seconds = row.us_per_image.median / 1e6
            assert row.fraction_of_peak == pytest.approx(row.macs_per_image / (report.matrix_gmacs * 1e9) / seconds)


@pytest.mark.parametrize("per_step", [1e-5, 1e-3, 0.3])
def test_the_length_of_a_round_leaves_out_the_constant_part(per_step, monkeypatch):
    """A CUDA graph's capture takes as long as hundreds of steps, and varies."""
    constants = itertools.cycle([0.3, 0.32, 0.29])
    monkeypatch.setattr(bench, "_time", lambda steps, device: next(constants) + per_step * steps)
    steps = bench._num_steps(lambda steps: steps, 1.0, "cpu")
    assert steps * per_step == pytest.approx(1.0, rel=0.25 if per_step < 0.1 else 1)


def test_cvgads_rows_are_measured_too():
    case = Case("train", "cvgad", "scratch", (1, 2, 4), 2, ("plain", "engine"))
    report = bench.bench((case,), rounds=1, seconds_per_round=0.01)
    assert [row.path for row in report.rows] == ["plain", "engine"]
    assert report.rows[1].macs_per_image > 3 * 73_728  # a forward and a backward pass at least


def test_a_path_that_dies_is_an_error():
    dying = dataclasses.replace(SCORED, paths=("plain",), channels=(1, 2))  # too few blocks for 32 × 32
    with pytest.raises(KdganError, match="A path of the benchmark ended early; one of score 1-2, batch 2, did not"):
        bench.bench((dying,), rounds=1, seconds_per_round=0.01)


def test_the_cases_cover_the_documented_models():
    trained = {(case.structure, case.channels_str, case.batch) for case in CASES if case.work == "train"}
    assert {("scratch", "64-128-256", batch) for batch in (1, 8)} <= trained
    assert {("2", channels, batch) for channels in ("8-16-64", "2-4-8", "1-2-4") for batch in (1, 8)} <= trained
    for case in CASES:
        if case.work == "train" and case.structure == "2":
            assert case.paths == ("plain", "engine", "cache", "fleet 10", "fleet 30")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error():
    with pytest.raises(KdganError, match="torch finds no CUDA GPU"):
        bench.bench((SCORED,), device="cuda")


@pytest.mark.parametrize("arguments", [["--channels", "3-6-12"], ["--batch", "5"], ["--rounds", "0"]])
def test_cases_that_do_not_exist_are_refused(arguments):
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 2
    assert "Error" in result.output
