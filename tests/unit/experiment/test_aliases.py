"""Files of version 0.1.0 with old names: a recipe and a checkpoint are read, scored and continued."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdgan_compress.api.evaluate import evaluate
from kdgan_compress.data import load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import score_images
from kdgan_compress.experiment.aliases import update_names
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.recipe import load_recipe, parse_recipe, recipe_names

OLD_RUN = Path(__file__).parent / "old_run"
"""Written by version 0.1.0, whose recipes had norm: per_image, average_decay and reduction."""

FIRST_SCORES = [0.06836305, 0.05987934, 0.07961551, 0.08929331]
"""Of the test split's first images, by version 0.1.0."""


@pytest.mark.parametrize(
    ("content", "known", "expected"),
    [
        ({"average_decay": 0.9}, {"ema_decay"}, {"ema_decay": 0.9}),
        ({"average_decay": 0.9}, {"average_decay", "ema_decay"}, {"average_decay": 0.9}),
        ({"average_decay": 0.9}, set(), {"average_decay": 0.9}),
        ({"average_decay": 0.9, "ema_decay": 0}, {"ema_decay"}, {"average_decay": 0.9, "ema_decay": 0}),
        ({"loss": {"reduction": "norm"}}, {"distance"}, {"loss": {"distance": "norm"}}),
        ({"loss": {"reduction": "norm"}}, {"reduction"}, {"loss": {"reduction": "norm"}}),
        ({"norm": "per_image", "description": "per_image"}, set(), {"norm": "instance", "description": "per_image"}),
        ([{"norm": "batch"}, {"norm": ["per_image"]}], set(), [{"norm": "batch"}, {"norm": ["per_image"]}]),
        ({3: 4, "norm": None}, set(), {3: 4, "norm": None}),
    ],
)
def test_old_names_become_the_current_ones(content, known, expected):
    assert update_names(content, known) == expected


def test_an_old_recipe_is_read():
    recipe = load_recipe(str(OLD_RUN / "recipe.yaml"))
    assert (recipe.model.norm, recipe.distillation.student.norm) == ("instance", "instance")
    assert (recipe.training.ema_decay, recipe.distillation.training.ema_decay) == (0.5, 0.25)
    objective, loss = (dataclasses.asdict(part) for part in (recipe.objective, recipe.distillation.loss))
    assert objective["w_con"] == 3
    assert loss["w1"] == 7
    assert "norm" in objective.values()
    assert "norm" in loss.values()
    assert parse_recipe({}, "x").replace({"training": {"average_decay": 0.5}}).training.ema_decay == 0.5


def test_an_old_checkpoint_is_read_and_scores_as_before():
    checkpoint = load_checkpoint(OLD_RUN / "model.safetensors")
    assert checkpoint.architecture.norm == "instance"
    split = load_split(checkpoint.data, 16, 1)
    assert checkpoint.provenance["split_sha256"] == split.split_sha256
    np.testing.assert_allclose(score_images(checkpoint.build().generator, split.test[:4]), FIRST_SCORES, rtol=1e-4)


def test_an_old_run_folder_is_evaluated(tmp_path):
    shutil.copytree(OLD_RUN, tmp_path / "run")
    evaluation = evaluate(tmp_path / "run", raw=True)
    assert (evaluation.auc, evaluation.auc_raw) == (pytest.approx(0.2808, abs=1e-4), pytest.approx(0.2953, abs=1e-4))


def test_a_shipped_recipe_is_found_by_its_old_name():
    assert load_recipe("alone") == load_recipe("from-scratch")
    assert "alone" not in recipe_names()


def test_an_old_and_the_current_key_together_are_an_error():
    with pytest.raises(KdganError, match=r"training\.average_decay is not a key"):
        parse_recipe({"training": {"average_decay": 0.5, "ema_decay": 0.5}}, "x")
