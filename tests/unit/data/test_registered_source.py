"""A new data source is one class in SOURCES: settings, splits and training need nothing else."""

import json
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch

from kdgan_compress.api.evaluate import evaluate
from kdgan_compress.api.train import train
from kdgan_compress.data import SOURCES, DataSettings, Source, load_split, native_channels
from kdgan_compress.data.datasets import ArrayDataset
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import parse_recipe

SIZE = 16


class Stripes(Source):
    """Images with horizontal or vertical stripes; PATH is how many there are of each."""

    takes_path = True
    channels = 3
    default_normal = "horizontal"
    class_names: ClassVar[Sequence[str]] = ("horizontal", "vertical")

    def read(self) -> ArrayDataset:
        """See ``Source.read``."""
        rng = np.random.default_rng(0)
        labels = np.arange(2 * int(self.path.name)) % 2
        images = rng.integers(0, 100, (len(labels), 1, SIZE, 3), dtype=np.uint8).repeat(SIZE, axis=1)
        images[labels == 0] = images[labels == 0].swapaxes(1, 2)
        half = len(labels) // 2
        return ArrayDataset(images[:half], labels[:half], images[half:], labels[half:], self.class_names)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(SOURCES, "stripes", Stripes)


@pytest.mark.parametrize("protocol", ["simo", "ocgan-p1"])
def test_a_split_of_a_registered_source(protocol):
    data = DataSettings("stripes:20", protocol=protocol)
    assert native_channels(data) == 3
    split = load_split(data, SIZE, 3)
    horizontal = split.train == split.train[:, :, :, :1]
    assert horizontal.all()
    assert len(split.train) == (10 if protocol == "simo" else 16)
    assert split.test.dtype == torch.uint8
    assert set(split.test_classes[split.test_is_anomalous].tolist()) == {"vertical"}
    assert split.split_sha256 is not None


def test_training_and_evaluation_with_a_registered_source(tmp_path):
    training = {"batch_size": 4, "epochs": 1}
    recipe = parse_recipe(
        {"data": {"source": "stripes:20"}, "model": {"width": 1, "image_size": 16, "latent_size": 4}}
        | {"training": training},
        "test",
    )
    result = train(recipe, tmp_path / "run")
    assert evaluate(result.run).auc == result.auc
    assert json.loads((tmp_path / "run" / "result.json").read_text())["num_images"] == 10


def test_a_source_with_a_path_is_not_known_without_it():
    with pytest.raises(KdganError, match=r"got 'stripes'\. Choose one of sample, .*stripes:PATH"):
        load_split(DataSettings("stripes"), SIZE, 3)
    with pytest.raises(KdganError, match="got 'mnist:x'"):
        load_split(DataSettings("mnist:x", "1"), SIZE, 1)
