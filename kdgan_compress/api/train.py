"""Train a GAN on its own losses: a teacher, or the baseline without a teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, overload

from kdgan_compress.experiment.job import RUNS, training_job
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import FleetResult, RunResult
from kdgan_compress.experiment.runner import RunOptions, run_jobs


@overload
def train(recipe: Recipe | None = ..., out: str | Path | None = ..., **options: Unpack[RunOptions]) -> RunResult: ...
@overload
def train(recipe: Sequence[Recipe], out: str | Path | None = ..., **options: Unpack[RunOptions]) -> FleetResult: ...


def train(
    recipe: Recipe | Sequence[Recipe] | None = None, out: str | Path | None = None, **options: Unpack[RunOptions]
) -> RunResult | FleetResult:
    """Train by a recipe's ``data``, ``model``, ``objective`` and ``training``, or by several recipes together.

    Args:
        recipe: None for the shipped ``default``. Several may differ in data, seed, learning rate and weights, not in
            the model's shape; each model is the one that its recipe alone gives, to float rounding.
        out: The new run folder, by default ``runs/<data>-<family>-<channels>-seed<n>``; for several recipes, the
            parent of such folders.
        **options: See ``RunOptions``.

    Returns:
        The result; for a list of recipes, all results.

    Raises:
        KdganError: Something is wrong with a recipe, its data or its folder, and nothing is written; or the training
            of the single recipe diverged.

    Example:
        >>> quick = load_recipe().replace({"model": {"width": 2}, "training": {"num_images": 300}})
        >>> train(quick, out="runs/quick").num_images  # doctest: +SKIP
        1500
    """
    if recipe is None or isinstance(recipe, Recipe):
        return run_jobs([training_job(recipe or load_recipe(), Path(out) if out else None)], **options).single()
    parent = Path(out) if out else RUNS
    return run_jobs([training_job(one, parent=parent) for one in recipe], **options).all()
