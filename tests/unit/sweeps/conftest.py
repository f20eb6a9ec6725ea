"""A data set and a recipe of networks that train in well below a second."""

from concurrent.futures import Executor, Future

import numpy as np
import pytest

from kdgan_compress.experiment.recipe import parse_recipe

TRAINING = {"batch_size": 8, "epochs": 1}


class InlineExecutor(Executor):
    """Runs each task in this process, when it is submitted; ``tasks`` are those it was given."""

    def __init__(self):
        self.tasks = []

    def submit(self, function, /, task):
        self.tasks.append(task)
        future = Future()
        try:
            future.set_result(function(task))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def inline():
    return InlineExecutor()


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Three classes of 40 training and 12 test images of 16×16 pixels that differ in brightness."""
    path = tmp_path_factory.mktemp("sweep-data") / "set.npz"
    rng = np.random.default_rng(0)

    def split(number):
        labels = np.repeat(range(3), number)
        return (rng.integers(0, 120, (len(labels), 16, 16)) + 60 * labels[:, None, None]).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = split(40), split(12)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{path}"


@pytest.fixture(scope="session")
def content(source):
    """A recipe file's content."""
    return {
        "data": {"source": source, "normal": "0"},
        "model": {"width": 2, "image_size": 16, "latent_size": 8},
        "training": TRAINING,
        "distillation": {"student": {"width": 1}, "schedule": "1", "training": TRAINING},
        "score": {"type": "norm"},
    }


@pytest.fixture
def recipe(content):
    return parse_recipe(content, "test")
