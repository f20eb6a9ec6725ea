"""Finding finished runs in folders."""

import pytest
from fake_runs import write_run

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.finished_runs import find_runs


def names(found):
    return [run.path.name for run in found.runs]


def test_runs_are_found_alone_and_in_folders_of_folders_each_once(tmp_path):
    alone = write_run(tmp_path / "alone")
    for name in ("b", "a", "deep/c"):
        write_run(tmp_path / "many" / name)
    found = find_runs([alone, tmp_path / "many", tmp_path / "many" / "a"])
    assert names(found) == ["alone", "a", "b", "c"]
    assert found.problems == []
    assert found.runs[0].result.auc == 0.9
    assert found.runs[0].recipe.data.source == "mnist"


def test_a_folder_of_trials_has_a_recipe_of_its_own(tmp_path):
    run = write_run(tmp_path / "trials" / "trial-0")
    (tmp_path / "trials" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    assert names(find_runs([tmp_path / "trials"])) == ["trial-0"]


def test_what_cannot_be_read_is_named_and_the_rest_is_kept(tmp_path):
    write_run(tmp_path / "good")
    (write_run(tmp_path / "unfinished") / "result.json").unlink()
    (write_run(tmp_path / "damaged") / "result.json").write_text("{")
    (write_run(tmp_path / "old") / "recipe.yaml").write_text("data: {sauce: mnist}")
    found = find_runs([tmp_path])
    assert names(found) == ["good"]
    assert len(found.problems) == 3
    text = "\n".join(found.problems)
    assert "unfinished has no result yet" in text
    assert "damaged/result.json" in text
    assert "did you mean source" in text


def test_a_folder_without_runs_next_to_runs_is_named(tmp_path):
    (tmp_path / "photos").mkdir()
    found = find_runs([write_run(tmp_path / "good"), tmp_path / "photos"])
    assert names(found) == ["good"]
    assert found.problems == [f"{tmp_path / 'photos'}: no run in it"]


def test_no_run_at_all_and_a_missing_folder_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(KdganError, match=r"at least one finished run; .*empty: no run in it"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(KdganError, match=r"found no folder .*missing"):
        find_runs([tmp_path / "missing"])
    (write_run(tmp_path / "unfinished") / "result.json").unlink()
    with pytest.raises(KdganError, match="has no result yet"):
        find_runs([tmp_path / "unfinished"])


def test_the_teacher_of_a_run_is_its_folder(tmp_path):
    teacher = write_run(tmp_path / "teacher")
    write_run(tmp_path / "s1", teacher=teacher)
    write_run(tmp_path / "s2", teacher=teacher / "model.safetensors")
    found = find_runs([tmp_path])
    assert [run.teacher for run in found.runs] == [teacher.resolve(), teacher.resolve(), None]
