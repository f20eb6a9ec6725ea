"""A score on the discriminator from training to the exported file; the oracle of the file is the model in torch."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from kdgan_compress.api.distill import distill
from kdgan_compress.api.evaluate import evaluate
from kdgan_compress.api.export import export_detector
from kdgan_compress.api.train import train
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.models import load_model
from kdgan_compress.experiment.recipe import load_recipe
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.gans import normalize_images
from kdgan_compress.runtime import Detector

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    """A teacher and a student whose discriminators are scored."""
    path = tmp_path_factory.mktemp("discriminator")
    score = {"score": {"type": "gaussian", "features": "discriminator"}}
    recipe = load_recipe(str(pair / "teacher" / "recipe.yaml")).replace(score)
    train(recipe, path / "teacher")
    changes = {"distillation": {"schedule": "2", "student": {"width": 2, "norm": "instance"}}}
    student = load_recipe(str(pair / "student" / "recipe.yaml")).replace(score, changes)
    distill(path / "teacher", student, path / "student")
    return path


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_the_file_gives_the_models_scores(folder, pair, tmp_path, name):
    result = evaluate(folder / name)
    report = export_detector(folder / name, tmp_path / "d.onnx")
    with np.load(pair / "set.npz") as arrays:
        images, labels = arrays["x_test"], arrays["y_test"]
    found = Detector(report.path).score(images[..., None])
    with torch.no_grad():
        expected = load_model(folder / name).scorer().anomaly_score(normalize_images(torch.from_numpy(images)[:, None]))
    np.testing.assert_allclose(found.score, expected.numpy(), rtol=1e-4)
    assert result.auc == pytest.approx(roc_auc_score(labels, expected.numpy()), abs=1e-6)
    assert result.auc > 0.9


def test_a_student_whose_discriminator_is_never_trained_is_refused(folder, pair, tmp_path):
    recipe = load_recipe(str(folder / "student" / "recipe.yaml")).replace({"distillation": {"schedule": "1->3"}})
    with pytest.raises(KdganError, match="needs a stage that trains it; got the schedule 1->3"):
        distill(folder / "teacher", recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_needs_the_generator_is_refused(folder, tmp_path):
    with pytest.raises(KdganError, match="Maps need a reconstruction"):
        export_detector(folder / "teacher", tmp_path / "d.onnx", settings=ExportSettings(io=IOSpec(anomaly_map=True)))
    with pytest.raises(KdganError, match="of discriminator"):
        export_detector(folder / "teacher", tmp_path / "d.onnx", settings=ExportSettings(rank=2))
