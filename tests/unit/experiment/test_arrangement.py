"""Rows and columns of runs, without and with a sweep's file."""

import shutil

import pytest
import yaml
from fake_runs import write_run

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.arrangement import arrange_runs


def test_seeds_and_classes_are_repeats_of_one_row(tmp_path):
    for digit in ("3", "5"):
        for seed in (0, 1):
            teacher = write_run(tmp_path / f"t{digit}{seed}", seed=seed, data={"normal": digit})
            write_run(tmp_path / f"s{digit}{seed}", teacher=teacher, seed=seed, data={"normal": digit})
    write_run(tmp_path / "alone", model={"width": 2})
    arranged = arrange_runs([tmp_path])
    assert arranged.axes == ["model"]
    assert [run.labels for run in arranged.runs] == [("teacher",)] * 4 + [("without a teacher",)] + [("student",)] * 4
    assert arranged.columns == [""]
    assert {(run.class_name, run.repeat) for run in arranged.runs if run.labels == ("student",)} == {
        (digit, f"seed {seed}") for digit in ("3", "5") for seed in (0, 1)
    }
    assert arranged.title == tmp_path.name


def test_rows_differ_by_the_settings_that_differ(tmp_path):
    for width in (1, 2):
        write_run(tmp_path / f"w{width}", teacher="gone", distillation={"student": {"width": width}})
        write_run(tmp_path / f"k{width}", teacher="gone", distillation={"student": {"width": width}, "loss": {"w1": 9}})
    arranged = arrange_runs([tmp_path])
    assert arranged.axes == ["channels", "loss.w1"]
    assert {run.labels for run in arranged.runs} == {(c, w) for c in ("1-2-4", "2-4-8") for w in ("9.0", "50.0")}


def test_students_of_different_teachers_are_different_rows(tmp_path):
    for name, changes in {"a": {"model": {"width": 16}}, "b": {}, "c": {"training": {"num_images": 6000}}}.items():
        teacher = write_run(tmp_path / "teachers" / name, **changes)
        write_run(tmp_path / "runs" / name, teacher=teacher, model=changes.get("model", {}))
    assert arrange_runs([tmp_path / "runs" / "a", tmp_path / "runs" / "b"]).axes == ["teacher.channels"]
    arranged = arrange_runs([tmp_path / "runs"])
    assert arranged.axes == ["teacher.channels", "teacher.training.num_images"]
    assert len({run.labels for run in arranged.runs}) == 3


def test_a_single_kind_of_run_is_one_row_and_equal_runs_are_numbered(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    arranged = arrange_runs([tmp_path])
    assert [run.labels for run in arranged.runs] == [("trained alone",)] * 2
    assert [run.repeat for run in arranged.runs] == ["seed 0", "seed 0 (2)"]


@pytest.fixture
def sweep(tmp_path):
    """Two structures on two data sets, two classes each; one cell is not finished."""
    cells = []
    for source in ("mnist", "fashion-mnist"):
        for number in (0, 1):
            data = {"source": source, "normal": str(number)}
            teacher = write_run(tmp_path / "teachers" / f"{source}-{number}", data=data)
            for structure in ("2", "2->3"):
                name = f"runs/{source}-{number}-{structure[-1]}"
                changes = {"data": data, "distillation": {"schedule": structure}}
                write_run(tmp_path / name, teacher=teacher, **changes)
                axes = {"data.source": source, "normal": number, "structure": structure, "seed": 0}
                cells.append({"run": name, "teacher": f"teachers/{source}-{number}", "axes": axes})
    (tmp_path / "runs/mnist-1-3" / "result.json").unlink()
    content = {
        "name": "table6",
        "description": "Structures.",
        "variant": "quick",
        "axes": {"structure": ["2", "2->3"], "data.source": ["mnist", "fashion-mnist"], "normal": [0, 1], "seed": [0]},
        "report": {
            "rows": ["structure", "normal"],
            "columns": ["data.source"],
            "paper": [
                {"structure": "2->3", "data.source": "mnist", "auc": 0.97},
                {"structure": "2", "normal": 1, "auc": 0.99},
                {"structure": "4", "auc": 0.5},
            ],
        },
        "cells": cells,
        "later": "a key of a later version",
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def change(sweep, **changes):
    path = sweep / "sweep.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_a_sweep_says_how_it_is_arranged_and_classes_are_always_averaged(sweep):
    arranged = arrange_runs([sweep])
    assert (arranged.title, arranged.variant, arranged.description) == ("table6", "quick", "Structures.")
    assert (arranged.axes, arranged.column_axes) == (["structure"], ["data.source"])
    assert arranged.columns == ["mnist", "fashion-mnist"]
    rows = {(run.labels, run.column): 0 for run in arranged.runs}
    for run in arranged.runs:
        rows[run.labels, run.column] += 1
    teachers = {(("teacher",), "mnist"): 2, (("teacher",), "fashion-mnist"): 2}
    students = {((s,), d): 2 for s in ("②", "②→③") for d in ("mnist", "fashion-mnist")}
    assert rows == teachers | students | {(("②→③",), "mnist"): 1}
    assert arranged.problems == [
        "1 of 8 cells are not finished",
        f"runs/mnist-1-3: {sweep}/runs/mnist-1-3 has no result yet",
    ]


def test_the_papers_figures_are_found_by_their_axes(sweep):
    assert arrange_runs([sweep]).paper == {
        (("②→③",), "mnist", ""): 0.97,
        (("②",), "mnist", "1"): 0.99,
        (("②",), "fashion-mnist", "1"): 0.99,
    }


def test_a_sweep_without_a_finished_cell_or_with_other_folders_is_refused(sweep):
    with pytest.raises(KdganError, match="report of its own"):
        arrange_runs([sweep, sweep / "runs"])
    shutil.rmtree(sweep / "runs")
    with pytest.raises(KdganError, match=r"at least one finished run.*Continue the sweep"):
        arrange_runs([sweep])
    change(sweep, cells=[])
    with pytest.raises(KdganError, match="has no cells"):
        arrange_runs([sweep])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report": {"rows": ["widht"]}}, "widht is not an axis of data.source, normal, seed, structure"),
        ({"report": {"paper": [{"structure": "2"}]}}, "has no auc"),
        ({"cells": [{"teacher": "t"}]}, r"cells\.0\.run"),
        ({"cells": 5}, "cells"),
    ],
)
def test_a_damaged_sweep_file_is_refused(sweep, changes, message):
    change(sweep, **changes)
    with pytest.raises(KdganError, match=message):
        arrange_runs([sweep])


@pytest.mark.parametrize("text", ["[", "", "- 1", "\xff"])
def test_a_sweep_file_that_is_not_a_mapping_is_refused(sweep, text):
    (sweep / "sweep.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(KdganError, match="must be one that sweep wrote"):
        arrange_runs([sweep])


def test_a_cell_without_a_value_on_an_axis_is_named(sweep):
    cells = yaml.safe_load((sweep / "sweep.yaml").read_text())["cells"]
    del cells[0]["axes"]["structure"]
    change(sweep, cells=cells)
    assert any("has none for structure" in line for line in arrange_runs([sweep]).problems)
