"""Train a GAN on its own losses: a teacher, or the baseline without a teacher."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import overload

from kdgan_compress.experiment.job import RUNS, training_job
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import FleetResult, RunResult, ShowProgress
from kdgan_compress.experiment.runner import run_jobs


@overload
def train(
    recipe: Recipe | None = ...,
    out: str | Path | None = ...,
    *,
    track_auc: bool = ...,
    raw: bool = ...,
    show_progress: ShowProgress | None = ...,
) -> RunResult: ...


@overload
def train(
    recipe: Sequence[Recipe],
    out: str | Path | None = ...,
    *,
    fleet_size: int | None = ...,
    track_auc: bool = ...,
    raw: bool = ...,
    show_progress: ShowProgress | None = ...,
) -> FleetResult: ...


def train(
    recipe: Recipe | Sequence[Recipe] | None = None,
    out: str | Path | None = None,
    *,
    fleet_size: int | None = None,
    track_auc: bool = False,
    raw: bool = False,
    show_progress: ShowProgress | None = None,
) -> RunResult | FleetResult:
    """Train by a recipe's ``data``, ``model``, ``objective`` and ``training``, or by several recipes together.

    Args:
        recipe: None for the shipped ``default``. Several may differ in data, seed, learning rate and weights, not in
            the model's shape; each model is the one that its recipe alone gives, to float rounding.
        out: The new run folder, by default ``runs/<data>-<family>-<channels>-seed<n>``; for several recipes, the
            parent of such folders.
        fleet_size: Number of models trained together; by default the fastest.
        track_auc: Measure AUC after every epoch, for logging only.
        raw: Also measure the AUC of the weights without EMA.
        show_progress: Called about every 512 images of a model.

    Returns:
        The result; for several recipes, all results.

    Raises:
        KdganError: Something is wrong with a recipe, its data or its folder, and nothing is written; or the training
            of the single recipe diverged.

    Example:
        >>> import kdgan_compress as kc
        >>> quick = kc.load_recipe().replace({"model": {"width": 2}, "training": {"num_images": 300}})
        >>> kc.train(quick, out=tmp_path / "teacher").num_images
        300
    """
    run = functools.partial(run_jobs, fleet_size=fleet_size, track_auc=track_auc, raw=raw, show_progress=show_progress)
    if recipe is None or isinstance(recipe, Recipe):
        return run([training_job(recipe or load_recipe(), Path(out) if out else None)]).single()
    parent = Path(out) if out else RUNS
    return run([training_job(one, parent=parent) for one in recipe]).all()
