"""Sweeps: teachers before students, finished cells kept, failures reported per cell, the folder as documented."""

import pickle
from concurrent.futures.process import BrokenProcessPool

import pytest
import yaml

from kdgan_compress.api.resume import resume
from kdgan_compress.api.sweep import sweep
from kdgan_compress.errors import Interrupted, KdganError
from kdgan_compress.experiment.recipe import load_recipe, parse_recipe
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.sweeps.grid import plan_sweep
from kdgan_compress.sweeps.summary import summarize
from kdgan_compress.sweeps.workers import dask_cluster, local_processes

pytestmark = pytest.mark.usefixtures("quick_runs")

AXES = {"normal": "0..1", "schedule": "none,1"}


def run(recipe, out, executor, axes=None, **options):
    return sweep(recipe, out, axes=axes or AXES, distill=True, executor=executor, workers=1, **options)


def test_the_folder_of_a_sweep_is_as_documented(recipe, tmp_path, inline):
    progress = []
    report = run(recipe, tmp_path / "s", inline, show_progress=progress.append)
    content = yaml.safe_load((tmp_path / "s" / "sweep.yaml").read_text())
    assert content["axes"] == {"normal": [0, 1], "schedule": ["none", 1]}
    assert (content["name"], content["variant"], content["set"]) == ("sweep", "full", {})
    assert content["report"] == {"rows": ["schedule"], "columns": [], "paper": []}
    assert [(cell["run"], cell["teacher"], cell["axes"]) for cell in content["cells"]] == [
        ("runs/normal-0_schedule-none", None, {"normal": 0, "schedule": "none"}),
        ("runs/normal-0_schedule-1", "teachers/normal-0", {"normal": 0, "schedule": 1}),
        ("runs/normal-1_schedule-none", None, {"normal": 1, "schedule": "none"}),
        ("runs/normal-1_schedule-1", "teachers/normal-1", {"normal": 1, "schedule": 1}),
    ]
    for cell in report.cells:
        folder = RunFolder(tmp_path / "s" / cell.run)
        recipe_of_run = load_recipe(str(folder.recipe))
        assert recipe_of_run.data.normal == str(cell.axes["normal"])
        assert recipe_of_run.sweep is None
        teacher = recipe_of_run.distillation.teacher
        assert teacher == (cell.teacher and str(tmp_path / "s" / cell.teacher))
        assert cell.result.auc == resume(folder.path).auc
    assert (report.failed, report.num_teachers, report.num_reused) == ({}, 2, 0)
    assert report.training_seconds < report.seconds
    assert not list((tmp_path / "s" / "progress").glob("*"))
    last = progress[-1]
    assert (last.total, last.done, last.running, last.failed, last.seconds_left) == (6, 6, 0, 0, 0)
    assert sum(len(each.ended) for each in progress) == 6


def test_finished_cells_are_never_run_again_and_a_sweep_can_grow(recipe, tmp_path, inline):
    run(recipe, tmp_path / "s", inline)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/*/result.json")}
    assert len(times) == 6
    inline.tasks.clear()
    again = run(recipe, tmp_path / "s", inline)
    assert (inline.tasks, again.num_reused, again.training_seconds) == ([], 6, 0)
    assert all(cell.result is not None for cell in again.cells)
    grown = run(recipe, tmp_path / "s", inline, {"normal": "1..2", "schedule": "none,1"})
    trained = {cell.run for task in inline.tasks for cell in task.cells}
    assert trained == {"runs/normal-2_schedule-none", "runs/normal-2_schedule-1", "teachers/normal-2"}
    assert grown.num_reused == 3
    assert times == {path: path.stat().st_mtime_ns for path in times}
    content = yaml.safe_load((tmp_path / "s" / "sweep.yaml").read_text())
    assert content["axes"]["normal"] == [0, 1, 2]
    assert len(content["cells"]) == 6


def test_other_settings_in_the_same_folder_are_refused(recipe, tmp_path, inline):
    axes = {"normal": "0"}
    sweep(recipe, tmp_path / "s", axes=axes, executor=inline)
    before = (tmp_path / "s" / "sweep.yaml").read_text()
    wider = recipe.replace({"model": {"width": 3}})
    for other, changes, found in [
        (wider, {}, "normal-0 was planned with others"),
        (recipe, {"settings": {"model.width": 3}, "axes": {"normal": "1"}}, "settings none, .* has model.width=3"),
        (recipe, {"axes": {"normal": "1", "seed": "0"}}, "axes normal, this command has normal, seed"),
    ]:
        with pytest.raises(KdganError, match=f"same axes and settings only; .*{found}"):
            sweep(other, tmp_path / "s", **{"axes": axes} | changes, executor=inline)
    threads = sweep(recipe, tmp_path / "s", axes=axes, settings={"training.threads": 1}, executor=inline)
    assert threads.num_reused == 1
    assert before.replace("set: {}", "set:\n  training.threads: 1") == (tmp_path / "s" / "sweep.yaml").read_text()
    (tmp_path / "s" / "sweep.yaml").write_text("cells: 3")
    with pytest.raises(KdganError, match=r"sweep\.yaml"):
        sweep(recipe, tmp_path / "s", axes=axes, executor=inline)


def test_a_failing_cell_is_reported_with_its_log_while_the_others_continue(recipe, tmp_path, inline):
    report = sweep(recipe, tmp_path / "s", axes={"normal": "0,7,1"}, executor=inline, workers=1)
    path = str(tmp_path / "s" / "runs" / "normal-7")
    assert list(report.failed) == [path]
    assert "7" in report.failed[path]
    log = (tmp_path / "s" / "logs" / "runs-normal-7.txt").read_text()
    assert report.logs[path] == str(tmp_path / "s" / "logs" / "runs-normal-7.txt")
    assert log.startswith(report.failed[path])
    assert "Traceback" in log
    assert [cell.result is not None for cell in report.cells] == [True, False, True]


def test_students_of_a_failed_teacher_fail_and_no_others(recipe, tmp_path, inline):
    report = run(recipe, tmp_path / "s", inline, {"normal": "0,7", "schedule": "1"})
    assert sorted(path.split("/s/")[1] for path in report.failed) == ["runs/normal-7_schedule-1", "teachers/normal-7"]
    assert "its teacher" in report.failed[str(tmp_path / "s" / "runs/normal-7_schedule-1")]
    assert [cell.result is not None for cell in report.cells] == [True, False]


def test_a_diverging_cell_fails_alone_and_may_be_tried_again(recipe, tmp_path, inline):
    axes = {"learning_rate": "0.001,1.0e+30"}
    report = sweep(recipe, tmp_path / "s", axes=axes, executor=inline, workers=1)
    assert [cell.result is not None for cell in report.cells] == [True, False]
    inline.tasks.clear()
    sweep(recipe, tmp_path / "s", axes=axes, executor=inline, workers=1)
    assert [[cell.axes["learning_rate"] for cell in task.cells] for task in inline.tasks] == [[1e30]]


def test_cells_that_cannot_be_trained_together_are_trained_one_by_one(recipe, tmp_path, inline, monkeypatch):
    from kdgan_compress.sweeps import worker

    run_jobs, sizes = worker.run_jobs, []

    def refuse_fleets(jobs, **options):
        sizes.append(len(jobs))
        if len(jobs) > 1:
            raise KdganError("They do not fit", "got 2", "Train them alone")
        return run_jobs(jobs, **options)

    monkeypatch.setattr(worker, "run_jobs", refuse_fleets)
    report = sweep(recipe, tmp_path / "s", axes={"normal": "0,1"}, executor=inline, workers=1)
    assert sizes == [2, 1, 1]
    assert report.failed == {}


def test_a_fleet_that_ends_its_worker_twice_fails_and_the_others_do_not(recipe, tmp_path, inline):
    class Fragile(type(inline)):
        def submit(self, function, /, task):
            if any(cell.axes["width"] == 2 for cell in task.cells):
                self.tasks.append(task)

                def function(task):
                    raise BrokenProcessPool("killed")

                return type(inline).submit(self, function, task)
            return super().submit(function, task)

    fragile = Fragile()
    report = sweep(recipe, tmp_path / "s", axes={"width": "1,2,3"}, executor=fragile, workers=1)
    assert [cell.result is not None for cell in report.cells] == [True, False, True]
    (message,) = report.failed.values()
    assert "the worker process ended" in message


def test_a_fleet_whose_worker_was_stopped_by_a_signal_is_given_out_again(recipe, tmp_path, inline):
    class Stopped(type(inline)):
        def submit(self, function, /, task):
            def stop(task):
                raise KeyboardInterrupt

            return super().submit(function if self.tasks else stop, task)

    stopped = Stopped()
    report = sweep(recipe, tmp_path / "s", axes={"seed": "0"}, executor=stopped, workers=1)
    assert (len(stopped.tasks), report.failed) == (2, {})


@pytest.mark.parametrize("error", [KdganError("A", "b", "C"), Interrupted(15, "stopped")])
def test_errors_pass_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_existing_teachers_are_used(recipe, tmp_path, inline):
    run(recipe, tmp_path / "s", inline, {"normal": "0..1", "schedule": "1"})
    inline.tasks.clear()
    axes = {"normal": "0..2", "schedule": "2"}
    report = run(recipe, tmp_path / "other", inline, axes, teachers=tmp_path / "s")
    trained = [cell.run for task in inline.tasks for cell in task.cells if cell.run.startswith("teachers/")]
    assert trained == ["teachers/normal-2"]
    assert [cell.teacher for cell in report.cells] == [
        "../s/teachers/normal-0",
        "../s/teachers/normal-1",
        "teachers/normal-2",
    ]
    with pytest.raises(KdganError, match="none by their recipes"):
        run(recipe, tmp_path / "third", inline, {"width": "1"}, settings={"model.width": 3}, teachers=tmp_path / "s")


def test_a_teacher_of_other_tiles_is_trained(recipe, tmp_path, inline):
    recipe = recipe.replace({"data": {"tiles": {"photo_size": 32}}})
    name, schedule = "data.tiles.num_crops", {"schedule": "1"}
    run(recipe, tmp_path / "s", inline, {name: "16"} | schedule)
    report = run(recipe, tmp_path / "t", inline, {name: "16,24"} | schedule, teachers=tmp_path / "s")
    assert report.failed == {}
    folder = "teachers/data.tiles.num_crops"
    assert [cell.teacher for cell in report.cells] == [f"../s/{folder}-16", f"{folder}-24"]


def test_auc_is_tracked_where_the_recipe_says_so(content, tmp_path, inline):
    section = {"axes": {"seed": [0]}, "track_auc": True}
    report = sweep(parse_recipe(content | {"sweep": section}, "test"), tmp_path / "s", executor=inline)
    (line,) = RunFolder(tmp_path / "s" / report.cells[0].run).read_metrics()
    assert line["auc"] == report.cells[0].result.best_epoch_auc_oracle


def test_the_summary_is_the_mean_over_the_other_axes_with_the_papers_figure(content):
    section = {
        "axes": {"width": [1, 2], "normal": [0, 1], "seed": [0, 1]},
        "report": {"rows": ["width"], "columns": ["normal"], "paper": [{"width": 1, "normal": 0, "auc": 0.5}]},
    }
    plan = plan_sweep(parse_recipe(content | {"sweep": section}, "test"), "test")
    aucs = {cell.run: index / 10 for index, cell in enumerate(plan.cells)}
    assert summarize(plan, aucs | {"runs/width-2_normal-1_seed-0": None}) == [
        ["width", "0", "1"],
        ["1", "5.00 (paper 50.00)", "25.00"],
        ["2", "45.00", "70.00 (1 of 2)"],
    ]


def test_an_unreachable_scheduler_and_bad_workers_are_refused(monkeypatch):
    from kdgan_compress.sweeps import workers

    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.5)
    pytest.importorskip("distributed")
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(KdganError, match="can't be reached"), dask_cluster(address):
            pass
    with pytest.raises(KdganError, match="at least 1 worker"), local_processes(0):
        pass
