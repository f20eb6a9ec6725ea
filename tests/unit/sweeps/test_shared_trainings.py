"""Cells that differ only in how they are evaluated are trained once, with the figures of a training of their own."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdgan_compress.api.report_runs import training_seconds
from kdgan_compress.api.sweep import sweep
from kdgan_compress.data.settings import DataSettings
from kdgan_compress.evaluation import fit_scorer
from kdgan_compress.experiment.arrangement import arrange_runs
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.sweeps.axes import parse_axes
from kdgan_compress.sweeps.fleets import cut_into_fleets
from kdgan_compress.sweeps.grid import plan_sweep
from kdgan_compress.sweeps.shared_trainings import share_trainings

pytestmark = pytest.mark.usefixtures("quick_runs")


def trained_in(recipe, axes, **options):
    plan = share_trainings(plan_sweep(recipe, "test", parse_axes(axes), **options))
    return {cell.run: cell.trained_in for cell in (*plan.teachers, *plan.cells)}


def test_the_first_of_equal_trainings_is_shared(recipe):
    axes = {"seed": "0,1", "score": "norm,gaussian"}
    assert trained_in(recipe, axes) == {
        "runs/seed-0_score-norm": None,
        "runs/seed-0_score-gaussian": "runs/seed-0_score-norm",
        "runs/seed-1_score-norm": None,
        "runs/seed-1_score-gaussian": "runs/seed-1_score-norm",
    }


def test_students_share_a_training_if_their_teachers_do(recipe):
    assert trained_in(recipe, {"score": "norm,gaussian", "schedule": "1,2"}, distill=True) == {
        "teachers/score-norm": None,
        "teachers/score-gaussian": "teachers/score-norm",
        "runs/score-norm_schedule-1": None,
        "runs/score-norm_schedule-2": None,
        "runs/score-gaussian_schedule-1": "runs/score-norm_schedule-1",
        "runs/score-gaussian_schedule-2": "runs/score-norm_schedule-2",
    }


def test_the_share_of_outliers_changes_no_training(recipe):
    recipe = recipe.replace({"data": {"protocol": "gpnd-5fold"}})
    found = trained_in(recipe, {"outliers": "0.1,0.5", "trial": "0,1"})
    assert list(found.values()) == [None, None, "runs/outliers-0.1_trial-0", "runs/outliers-0.1_trial-1"]


def test_protocols_that_train_on_the_same_images_share_a_training(recipe):
    data = DataSettings(recipe.data.source, protocol="miso-8020", novel="1")
    recipe = recipe.model_copy(update={"data": data})
    found = trained_in(recipe, {"protocol": "miso-8020,miso-leaky"})
    assert list(found.values()) == [None, "runs/protocol-miso-8020"]


def test_trainings_come_before_the_cells_that_share_them(recipe):
    plan = share_trainings(plan_sweep(recipe, "test", parse_axes({"score": "norm,gaussian", "seed": "0,1"})))
    first, second = cut_into_fleets(plan.cells, 1)
    assert first.needs == set()
    assert second.needs == {cell.run for cell in first.cells}


def test_a_cell_that_is_trained_already_is_shared(recipe, tmp_path, inline):
    options = {"executor": inline, "workers": 1}
    first = sweep(recipe, tmp_path / "s", axes={"score": "gaussian"}, **options)
    grown = sweep(recipe, tmp_path / "s", axes={"score": "norm,gaussian"}, **options)
    assert [cell.trained_in for task in inline.tasks for cell in task.cells] == [None, "runs/score-gaussian"]
    assert grown.cells[0].result.seconds == first.cells[0].result.seconds
    assert grown.training_seconds == 0


@pytest.mark.parametrize("begun", [False, True])
def test_a_fleet_never_needs_itself(recipe, begun):
    recipe = recipe.replace({"data": {"protocol": "gpnd-5fold"}})
    plan = plan_sweep(recipe, "test", parse_axes({"outliers": "0.1,0.3,0.5", "score": "norm,gaussian"}))
    earlier = [[cell.run for cell in plan.cells]] if begun else []  # by a command that shared no trainings
    fleets = cut_into_fleets(share_trainings(plan).cells, 1, earlier)
    names = [{cell.run.removeprefix("runs/outliers-") for cell in fleet.cells} for fleet in fleets]
    by_needs = sorted(zip(names, [fleet.needs for fleet in fleets], strict=True), key=lambda each: len(each[1]))
    trained, fitted = "0.1_score-norm", "0.1_score-gaussian"
    assert by_needs[:2] == [({trained}, set()), ({fitted}, {f"runs/outliers-{trained}"})]
    others = [(names, needs) for names, needs in by_needs[2:]]
    assert set.union(*(names for names, _ in others)) == {
        f"{share}_score-{score}" for share in ("0.3", "0.5") for score in ("norm", "gaussian")
    }
    assert set.union(*(needs for _, needs in others)) == {f"runs/outliers-{trained}", f"runs/outliers-{fitted}"}


def test_a_score_is_fitted_once_for_all_test_images(recipe, tmp_path, inline, monkeypatch):
    fitted = []

    def counted(*arguments):
        fitted.append(arguments)
        return fit_scorer(*arguments)

    monkeypatch.setattr("kdgan_compress.experiment.training_run.fit_scorer", counted)
    settings = {"data.protocol": "gpnd-5fold"}
    axes = {"outliers": "0.1,0.3,0.5", "score": "norm,gaussian"}
    report = sweep(recipe, tmp_path / "s", axes=axes, settings=settings, executor=inline, workers=1)
    assert report.failed == {}
    assert len(fitted) == 2
    assert {cell.result.score for cell in report.cells} == {"the generator's own score", "one Gaussian"}
    (tmp_path / "s" / report.cells[1].run / "scores.npz").unlink()
    shutil.rmtree(tmp_path / "s" / report.cells[3].run)
    again = sweep(recipe, tmp_path / "s", axes=axes, settings=settings, executor=inline, workers=1)
    assert [error.split(";")[0] for error in again.failed.values()] == ["A run whose score is shared must be finished"]


@pytest.mark.parametrize("distill", [False, True])
def test_a_shared_training_gives_what_its_own_training_gives(recipe, tmp_path, inline, distill):
    options = {"executor": inline, "workers": 1, "distill": distill, "settings": {"data.protocol": "gpnd-5fold"}}
    axes = {"outliers": "0.1,0.5", "score": "norm,gaussian"}
    shared = sweep(recipe, tmp_path / "shared", axes=axes, **options)
    alone = sweep(recipe, tmp_path / "alone", axes={"outliers": "0.5", "score": "gaussian"}, **options)
    assert not shared.failed
    assert shared.cells[-1].result.auc == alone.cells[0].result.auc
    folders = [
        RunFolder(tmp_path / "shared" / shared.cells[-1].run),
        RunFolder(tmp_path / "alone" / alone.cells[0].run),
    ]
    weights = [load_file(folder.model) for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics = {RunFolder(tmp_path / "shared" / cell.run).metrics.read_bytes() for cell in shared.cells}
    assert len(metrics) == 1  # with the seconds of the only training
    num_trainings = 2 if distill else 1
    placed = arrange_runs([tmp_path / "shared"]).runs
    assert len(placed) == 4 * num_trainings
    assert training_seconds(placed) == pytest.approx(shared.training_seconds)
    assert shared.training_seconds < 1.5 * num_trainings * shared.cells[0].result.seconds + 1


def test_aucs_of_epochs_are_those_of_the_cells_own_score(recipe, tmp_path, inline):
    """Of an earlier epoch, only its own training can tell; a training that is shared afterwards has none."""
    recipe = recipe.replace({"training": {"epochs": 2}})
    options = {"executor": inline, "workers": 1, "track_auc": True}
    tracked = sweep(recipe, tmp_path / "s", axes={"score": "norm,gaussian"}, **options)
    alone = sweep(recipe, tmp_path / "alone", axes={"score": "gaussian"}, **options)
    aucs = [
        [line["auc"] for line in RunFolder(tmp_path / folder / run.run).read_metrics()]
        for folder, run in (("s", tracked.cells[1]), ("alone", alone.cells[0]))
    ]
    assert aucs[0] == aucs[1] != [None, None]
    assert tracked.cells[1].result.best_epoch_auc_oracle == max(aucs[0])
    grown = sweep(recipe, tmp_path / "s", axes={"score": "norm,mixture"}, executor=inline, workers=1)
    lines = RunFolder(tmp_path / "s" / grown.cells[1].run).read_metrics()
    assert [line["auc"] for line in lines] == [None, None]
    assert grown.cells[1].result.best_epoch_auc_oracle is None


def test_a_failed_training_fails_the_cells_that_share_it(recipe, tmp_path, inline):
    axes = {"normal": "0,7", "score": "norm,gaussian"}
    report = sweep(recipe, tmp_path / "s", axes=axes, executor=inline, workers=1)
    errors = {path.rsplit("/", 1)[-1]: error for path, error in report.failed.items()}
    assert errors.keys() == {"normal-7_score-norm", "normal-7_score-gaussian"}
    assert errors["normal-7_score-gaussian"].endswith("normal-7_score-norm failed")
