"""Every image is scored once per set of weights: by train and distill, and not again by evaluate."""

import numpy as np
import pytest

from kdgan_compress.api import evaluate as evaluate_module
from kdgan_compress.api.distill import distill
from kdgan_compress.api.evaluate import evaluate
from kdgan_compress.api.train import train
from kdgan_compress.data import load_split
from kdgan_compress.evaluation import fitting
from kdgan_compress.experiment import training_run
from kdgan_compress.experiment.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("quick_runs")

NUM_TEST = 45
TRAINING = {"batch_size": 16, "epochs": 1, "threads": 1}


@pytest.fixture
def recipe(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(NUM_TEST) % 2
    arrays = {"x_train": rng.integers(0, 256, (70, 16, 16)), "x_test": rng.integers(0, 256, (NUM_TEST, 16, 16))}
    images = {name: pixels.astype(np.uint8) for name, pixels in arrays.items()}
    np.savez(tmp_path / "set.npz", **images, y_train=np.zeros(70, dtype=int), y_test=labels)
    return parse_recipe(
        {
            "data": {"source": f"npz:{tmp_path / 'set.npz'}", "normal": "0"},
            "model": {"width": 1, "image_size": 16, "latent_size": 4},
            "training": TRAINING,
            "distillation": {"student": {"width": 1}, "schedule": "2", "training": TRAINING},
        },
        "test",
    )


@pytest.fixture
def scored(monkeypatch):
    """The number of images of each call of ``score_images`` by the runner and by evaluate, except the finite check."""
    sizes, original = [], training_run.score_images

    def score_images(generator, images):
        sizes.append(len(images))
        return original(generator, images)

    is_finite = training_run.TrainingRun.is_finite

    def uncounted(run):
        before = len(sizes)
        result = is_finite(run)
        assert all(size <= 2 * training_run.NUM_CHECKED_IMAGES for size in sizes[before:])
        del sizes[before:]
        return result

    monkeypatch.setattr(training_run, "score_images", score_images)
    monkeypatch.setattr(fitting, "score_images", score_images)
    monkeypatch.setattr(evaluate_module, "score_images", score_images)
    monkeypatch.setattr(training_run.TrainingRun, "is_finite", uncounted)
    return sizes


def test_train_and_evaluate_score_each_image_once(recipe, tmp_path, scored):
    num_calibration = len(load_split(recipe.data, 16, 1).calibration)
    result = train(recipe, tmp_path / "teacher")
    assert sorted(scored) == sorted([NUM_TEST, num_calibration])
    scored.clear()
    assert evaluate(tmp_path / "teacher").auc == result.auc
    assert scored == []
    evaluate(tmp_path / "teacher", raw=True)
    assert sorted(scored) == sorted([NUM_TEST, num_calibration])  # other weights


def test_distill_scores_each_image_once_and_its_teacher_never(recipe, tmp_path, scored):
    num_calibration = len(load_split(recipe.data, 16, 1).calibration)
    train(recipe, tmp_path / "teacher")
    scored.clear()
    result = distill(tmp_path / "teacher", recipe, tmp_path / "student")
    assert sorted(scored) == sorted([NUM_TEST, num_calibration])
    scored.clear()
    assert evaluate(tmp_path / "student").auc == result.auc  # compares with the teacher's scores too
    assert scored == []


def test_tracking_the_auc_scores_the_test_split_once_per_epoch(recipe, tmp_path, scored):
    num_calibration = len(load_split(recipe.data, 16, 1).calibration)
    train(recipe.replace({"training": {"epochs": 3}}), tmp_path / "run", track_auc=True, raw=True)
    assert sorted(scored) == sorted([NUM_TEST, num_calibration] * 6)  # each epoch with and without EMA
