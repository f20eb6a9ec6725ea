"""The threshold of an exported detector whose score was fitted to the images that set it."""

import shutil

import numpy as np
import pytest

from kdgan_compress.api.export import export_detector, load_validation_data
from kdgan_compress.api.train import train
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.recipe import parse_recipe
from kdgan_compress.export.validation.gate import ThresholdRule
from kdgan_compress.runtime import Detector

pytestmark = pytest.mark.usefixtures("quick_runs", "traced_once")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, quick_runs):
    """A run with a Gaussian of 40 normal images, too few to hold any out."""
    path = tmp_path_factory.mktemp("fitted")
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    images = np.clip(
        np.linspace(60, 210, 16) + rng.normal(0, 9, (80, 16, 16)) * (1 + 2 * labels)[:, None, None], 0, 255
    )
    arrays = {"x_train": images[:40], "y_train": labels[:40], "x_test": images[20:60], "y_test": labels[20:60]}
    np.savez(path / "set.npz", **{name: array.astype(np.uint8) for name, array in arrays.items()})
    content = {
        "data": {"source": f"npz:{path / 'set.npz'}", "normal": "0"},
        "model": {"width": 2, "image_size": 16, "latent_size": 8},
        "training": {"batch_size": 8, "epochs": 1, "threads": 1},
    }
    train(parse_recipe(content, "test"), path / "run")
    return path


def test_the_rule_of_the_model_gives_the_models_threshold(fitted, tmp_path):
    checkpoint = load_checkpoint(fitted / "run" / "model.safetensors")
    assert load_validation_data(checkpoint).in_fit
    thresholds = {}
    for quantile in (0.5, 0.99):
        export_detector(fitted / "run", tmp_path / "d.onnx", rule=ThresholdRule(quantile))
        thresholds[quantile] = Detector(tmp_path / "d.onnx").threshold
    assert thresholds[0.99] == pytest.approx(checkpoint.threshold, rel=1e-3)
    assert 0 < thresholds[0.5] < thresholds[0.99]


def test_moved_images_are_still_those_of_the_fit(fitted, tmp_path):
    checkpoint = load_checkpoint(fitted / "run" / "model.safetensors")
    moved = shutil.copy(fitted / "set.npz", tmp_path / "moved.npz")
    assert load_validation_data(checkpoint, f"npz:{moved}").in_fit
    export_detector(fitted / "run", tmp_path / "d.onnx", data=f"npz:{moved}")
    assert Detector(tmp_path / "d.onnx").threshold == pytest.approx(checkpoint.threshold, rel=1e-3)
    with np.load(moved) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "x_train": 255 - arrays["x_train"]})
    assert not load_validation_data(checkpoint, f"npz:{tmp_path / 'other.npz'}").in_fit
