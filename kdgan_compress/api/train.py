"""Train a GAN on its own losses: how a teacher is made, and the student that distillation has to beat."""

from collections.abc import Sequence
from pathlib import Path

from kdgan_compress.data import load_split, native_channels
from kdgan_compress.distillation.scheduler import Schedule
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.fleets import FleetResult, finish_runs, run_jobs
from kdgan_compress.experiment.job import Job, RunResult, ShowProgress, check_num_clusters, read_result
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.runner import execute
from kdgan_compress.gans import build, to_device
from kdgan_compress.profiling.machine import check_device, choose_threads


def train(
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    *,
    track_auc: bool = False,
    show_progress: ShowProgress | None = None,
) -> RunResult:
    """Train by a recipe's ``data``, ``model``, ``objective`` and ``training``.

    Args:
        recipe: None for the shipped ``default``.
        out: The run folder, which must not hold a run yet; None for ``runs/<data>-<family>-<channels>-seed<n>``.
        track_auc: Measure AUC after every epoch.
        show_progress: Called about every 512 images.

    Raises:
        KdganError: Whatever is wrong with the recipe, the data or the folder; nothing is written then.
    """
    job = _prepare(recipe or load_recipe(), Path(out) if out else None)
    return execute(job, track_auc=track_auc, show_progress=show_progress)


def train_fleet(
    recipes: Sequence[Recipe],
    out: str | Path = "runs",
    *,
    fleet: int | None = None,
    track_auc: bool = False,
    show_progress: ShowProgress | None = None,
) -> FleetResult:
    """Train one model a recipe, many at once: each is what ``train`` makes of its recipe, to float rounding.

    Args:
        recipes: They may differ in data, seed, rates and weights, not in the model's shape.
        out: A folder, for run folders of the names that ``train`` gives them.
        fleet: Models trained as one; None takes the number that is fastest here.
        track_auc: Measure AUC after every epoch.
        show_progress: Called about every 512 images of a model.

    Raises:
        KdganError: Whatever is wrong with a recipe, its data or folder, or a fleet that is too large; nothing is
            written then.
    """
    jobs = [_prepare(recipe, None, Path(out)) for recipe in recipes]
    return run_jobs(jobs, width=fleet, track_auc=track_auc, show_progress=show_progress)


def resume_train(run: str | Path, *, track_auc: bool = False, show_progress: ShowProgress | None = None) -> RunResult:
    """Finish an interrupted ``train`` by its own recipe; a finished one is left as it is.

    Raises:
        KdganError: No run there, a distillation, or its training images are gone.
    """
    folder = RunFolder(Path(run))
    recipe = _recipe_of(folder)
    return read_result(folder) or execute(
        _prepare(recipe, folder.path, resume=True), track_auc=track_auc, show_progress=show_progress
    )


def resume_train_fleet(
    folder: str | Path,
    *,
    fleet: int | None = None,
    track_auc: bool = False,
    show_progress: ShowProgress | None = None,
) -> FleetResult:
    """Finish all interrupted trainings right below a folder; finished ones are left as they are.

    Raises:
        KdganError: No run there, or one that can't be finished.
    """
    return finish_runs(
        Path(folder),
        _recipe_of,
        lambda run, recipe: _prepare(recipe, run.path, resume=True),
        width=fleet,
        track_auc=track_auc,
        show_progress=show_progress,
    )


def _recipe_of(folder: RunFolder) -> Recipe:
    """The recipe of a training that was begun."""
    folder.check_is_run()
    recipe = load_recipe(str(folder.recipe))
    if recipe.distillation.teacher is not None:
        raise KdganError(
            "train --resume must be given a training",
            f"{folder.path} is a distillation",
            "Use distill --resume instead",
        )
    return recipe


def _prepare(recipe: Recipe, out: Path | None, parent: Path = Path("runs"), resume: bool = False) -> Job:
    """What a recipe's training needs, in ``out`` or a folder named after it below ``parent``."""
    recipe = recipe.model_copy(update={"data": recipe.data.absolute()})
    training = recipe.training
    check_device(training.device)
    architecture = recipe.model.architecture(recipe.model.image_channels or native_channels(recipe.data))
    split = load_split(recipe.data, architecture.image_size, architecture.image_channels)
    check_num_clusters(architecture, split)
    num_threads = training.threads or choose_threads(max(architecture.channels))
    recipe = recipe.replace(
        {"model": {"image_channels": architecture.image_channels}, "training": {"threads": num_threads}}
    )
    gan = to_device(build(architecture, training.seed), training.device)
    schedule = Schedule(
        stages=recipe.standalone_stages(len(split.train)),
        student=TrainState(gan, training.betas, training.ema_decay, recipe.objective),
        images=split.train.to(training.device),
        settings=training.settings(),
    )
    name = f"{recipe.data.name}-{architecture.family}-{architecture.channels_str}-seed{training.seed}"
    folder = RunFolder(out or parent / name)
    return Job(recipe, folder, resume, split, schedule, architecture, training.seed, num_threads, {"command": "train"})
