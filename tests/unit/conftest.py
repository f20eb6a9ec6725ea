"""Fixtures for tests of whole runs; they import what they need, since ``make gpu`` runs without all packages."""

import numpy as np
import pytest


def quick_plot(*arguments):
    arguments[-1].touch()


@pytest.fixture(scope="module")
def quick_runs():
    """Runs without plots, which take most of a tiny run's time, that save their state after every epoch."""
    from kdgan_compress.experiment import fleet_states, training_run

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training_run, "plot_curves", quick_plot)
        patched.setattr(training_run, "plot_scores", quick_plot)
        patched.setattr(fleet_states, "MAX_SAVE_FRACTION", 1)
        yield


@pytest.fixture(scope="module")
def traced_once():
    """Trace each model once."""
    from traces import trace_once

    from kdgan_compress.export import detector_file

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(detector_file, "trace", trace_once)
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory, quick_runs):
    """Folder of ``set.npz`` (60 normals; 20 + 20 test images, of the network's size), ``teacher`` and ``student``."""
    from kdgan_compress.api.distill import distill
    from kdgan_compress.api.train import train
    from kdgan_compress.experiment.recipe import parse_recipe

    path = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)

    def images(normal, novel):
        ramp = np.linspace(60, 210, 16)[None, None]
        levels = np.concatenate([np.full(normal, 8.0), np.full(novel, 25.0)])[:, None, None]
        pixels = ramp + rng.normal(0, 1, (normal + novel, 16, 16)) * levels
        return np.clip(pixels, 0, 255).astype(np.uint8), np.repeat([0, 1], [normal, novel])

    (x_train, y_train), (x_test, y_test) = images(60, 0), images(20, 20)
    np.savez(path / "set.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    training = {"batch_size": 8, "epochs": 1, "threads": 1}
    recipe = parse_recipe(
        {
            "data": {"source": f"npz:{path / 'set.npz'}", "normal": "0"},
            "model": {"width": 4, "image_size": 16, "latent_size": 32},
            "training": training,
            "distillation": {"student": {"width": 1, "norm": "batch"}, "schedule": "1", "training": training},
            "score": {"type": "norm"},
        },
        "test",
    )
    train(recipe, path / "teacher")
    distill(path / "teacher", recipe, path / "student")
    return path
