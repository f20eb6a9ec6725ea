"""Run folders without training: recipe, result and metrics."""

import dataclasses
import json

import numpy as np

from kdgan_compress.experiment.recipe import load_recipe
from kdgan_compress.experiment.results import RunResult


def write_run(path, auc=0.9, teacher=None, best=None, seed=0, **changes):
    """A run of the shipped default recipe, with changes of its sections; a student if a teacher is given."""
    recipe = load_recipe().replace({"data": {"source": "mnist", "normal": "5"}, "training": {"seed": seed}}, changes)
    if teacher is not None:
        recipe = recipe.replace({"distillation": {"teacher": str(teacher), "training": {"seed": seed}}})
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (path / "metrics.jsonl").write_text("")
    result = RunResult(str(path), "", auc, None, 1, 100, 2.0, 50.0, seed, 1, "a machine", best_epoch_auc_oracle=best)
    (path / "result.json").write_text(json.dumps(dataclasses.asdict(result)))
    return path


def random_aucs(count, seed=0):
    return np.random.default_rng(seed).uniform(0.7, 1, count).round(4).tolist()
