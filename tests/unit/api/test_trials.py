"""Trials: each is the run of its seed and split, whether resumed or in another process, and is part of the mean."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from kdgan_compress.api import trials as module
from kdgan_compress.api.evaluate import evaluate
from kdgan_compress.api.train import train
from kdgan_compress.api.trials import trials
from kdgan_compress.data import load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation.baselines import BASELINES
from kdgan_compress.experiment import training_run as run_module
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.recipe import parse_recipe

TRAINING = {"batch_size": 8, "epochs": 1}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    for name in ("plot_curves", "plot_scores"):
        monkeypatch.setattr(run_module, name, lambda *arguments: arguments[-1].touch())


@pytest.fixture
def recipe(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 200, (60, 16, 16)) + 20 * labels[:, None, None]
    arrays = {"x_train": images[:40], "x_test": images[40:]}
    arrays = {name: value.astype(np.uint8) for name, value in arrays.items()}
    np.savez(tmp_path / "set.npz", **arrays, y_train=labels[:40], y_test=labels[40:])
    return parse_recipe(
        {
            "data": {"source": f"npz:{tmp_path / 'set.npz'}", "protocol": "gpnd-5fold", "normal": 0},
            "model": {"width": 1, "image_size": 16, "latent_size": 8},
            "training": TRAINING,
            "distillation": {"student": {"width": 1}, "schedule": "1", "training": TRAINING},
        },
        "test",
    )


def figures_of(report):
    return [(trial.trial, trial.figures) for trial in report.trials]


def test_each_trial_is_the_run_of_its_seed_and_split(recipe, tmp_path):
    announced = []
    report = trials(recipe, tmp_path / "out", num_trials=3, announce=announced.append)
    assert announced == report.trials
    assert [trial.trial for trial in report.trials] == [0, 1, 2]
    for trial in report.trials:
        checkpoint = load_checkpoint(tmp_path / "out" / f"trial-{trial.trial}" / "model.safetensors")
        assert (checkpoint.data.trial, checkpoint.provenance["seed"]) == (trial.trial, trial.trial)
        evaluation = evaluate(trial.run)
        assert (trial.figures["model"].auc, trial.figures["model"].best_f1) == (evaluation.auc, evaluation.best_f1)
        split = load_split(dataclasses.replace(recipe.data, trial=trial.trial), 16, 1)
        for name, baseline in BASELINES.items():
            result = baseline(split.train, split.test)
            assert trial.figures[name].auc == pytest.approx(roc_auc_score(split.test_is_anomalous, result.scores))
            assert trial.baseline_bytes[name] == result.size_bytes
    alone = recipe.replace({"training": {"seed": 2}, "data": {"trial": 2}})
    assert train(alone, tmp_path / "alone").auc == report.trials[2].figures["model"].auc

    for figure in ("auc", "best_f1"):
        for name, summary in getattr(report, figure).items():
            values = [getattr(trial.figures[name], figure) for trial in report.trials]
            low, high = np.mean(values), np.mean(values)
            if np.ptp(values) > 0:
                low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
            assert (summary.mean - summary.ci95, summary.mean + summary.ci95) == pytest.approx((low, high))
    assert report.auc.keys() == {"model", *BASELINES}
    assert json.loads((tmp_path / "out" / "trials.json").read_text()) == dataclasses.asdict(
        dataclasses.replace(report, trials=[dataclasses.replace(t, run=Path(t.run).name) for t in report.trials])
    )


def test_processes_change_nothing(recipe, tmp_path):
    here = trials(recipe, tmp_path / "here", num_trials=2)
    there = trials(recipe, tmp_path / "there", num_trials=2, jobs=2)
    assert figures_of(there) == figures_of(here)
    assert there.auc == here.auc
    assert {json.loads((Path(trial.run) / "result.json").read_text())["threads"] for trial in there.trials} == {1}


def test_finished_trials_are_kept_and_more_are_added(recipe, tmp_path, monkeypatch):
    out, started = tmp_path / "out", []
    monkeypatch.setattr(module, "train", lambda recipe, path: (started.append(path), train(recipe, path))[1])
    first = trials(recipe, out, num_trials=1)
    before = (out / "trial-0" / "model.safetensors").stat().st_mtime_ns
    report = trials(recipe, out, num_trials=2)
    assert started == [str(out / "trial-0"), str(out / "trial-1")]
    assert report.trials[0] == first.trials[0]
    assert (out / "trial-0" / "model.safetensors").stat().st_mtime_ns == before
    assert len(json.loads((out / "trials.json").read_text())["trials"]) == 2


def test_an_interrupted_trial_is_resumed(recipe, tmp_path, monkeypatch):
    out = tmp_path / "out"
    longer = recipe.replace({"training": {"epochs": 3}})
    original, calls = run_module.TrainingRun._metrics_line, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:  # the second epoch of the second trial
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(run_module.TrainingRun, "_metrics_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trials(longer, out, num_trials=2)
    assert not (out / "trials.json").exists()
    resumed = trials(longer, out, num_trials=2)
    assert figures_of(resumed) == figures_of(trials(longer, tmp_path / "whole", num_trials=2))


def test_students_are_distilled_from_their_trials_model(recipe, tmp_path):
    without = trials(recipe, tmp_path / "out", num_trials=2)
    report = trials(recipe, tmp_path / "out", num_trials=2, with_student=True)
    for trial in report.trials:
        student = load_checkpoint(tmp_path / "out" / f"trial-{trial.trial}-student" / "model.safetensors")
        assert student.provenance["teacher"] == str(tmp_path / "out" / f"trial-{trial.trial}")
        assert student.provenance["seed"] == student.data.trial == trial.trial
        evaluation = evaluate(tmp_path / "out" / f"trial-{trial.trial}-student")
        assert trial.figures["student"].auc == evaluation.auc
    assert [trial.figures["model"] for trial in report.trials] == [t.figures["model"] for t in without.trials]
    assert report.auc["student"].num_trials == 2


def test_a_folder_of_another_recipe_is_refused(recipe, tmp_path):
    trials(recipe, tmp_path / "out", num_trials=1)
    with pytest.raises(KdganError, match=r"need one recipe; .*recipe\.yaml is another\. Give another --out"):
        trials(recipe.replace({"training": {"batch_size": 4}}), tmp_path / "out", num_trials=1)
    other = tmp_path / "run"
    train(recipe, other)
    with pytest.raises(KdganError, match="need one recipe"):
        trials(recipe, other, num_trials=1)
    assert not (other / "trial-0").exists()


@pytest.mark.parametrize("numbers", [{"num_trials": 0}, {"jobs": 0}, {"num_trials": -1}], ids=str)
def test_bad_numbers(recipe, tmp_path, numbers):
    with pytest.raises(KdganError, match="must be at least 1"):
        trials(recipe, tmp_path / "out", **numbers)
    assert not (tmp_path / "out").exists()


def test_an_error_in_a_trial_is_reported(recipe, tmp_path):
    with pytest.raises(KdganError, match=r"must exist; found none at .*nowhere"):
        trials(recipe.replace({"data": {"source": "npz:/nowhere.npz"}}), tmp_path / "out", num_trials=2)
