"""Train a GAN on its own losses: how a teacher is made, and the student that distillation has to beat."""

from pathlib import Path

from kdgan_compress.data import load_split, native_channels
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import build
from kdgan_compress.recipe import Recipe, load_recipe
from kdgan_compress.schedule import Schedule
from kdgan_compress.storage import RunFolder
from kdgan_compress.training import Learner
from kdgan_compress.workflows.machine import choose_threads
from kdgan_compress.workflows.run import Job, RunResult, ShowProgress, check_num_clusters, execute, read_result


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
    job = _prepare(recipe or load_recipe())
    architecture, data = job.architecture, job.recipe.data
    name = f"{data.name}-{architecture.family}-{architecture.plan}-seed{job.seed}"
    folder = RunFolder(Path(out) if out else Path("runs") / name)
    return execute(job, folder, resume=False, track_auc=track_auc, show_progress=show_progress)


def resume_train(run: str | Path, *, track_auc: bool = False, show_progress: ShowProgress | None = None) -> RunResult:
    """Finish an interrupted ``train`` by its own recipe; a finished one is left as it is.

    Raises:
        KdganError: No run there, a distillation, or its training images are gone.
    """
    folder = RunFolder(Path(run))
    folder.require_run()
    recipe = load_recipe(str(folder.recipe))
    if recipe.distillation.teacher is not None:
        raise KdganError(
            "train --resume must be given a training", f"{run} is a distillation", "Use distill --resume instead"
        )
    return read_result(folder) or execute(
        _prepare(recipe), folder, resume=True, track_auc=track_auc, show_progress=show_progress
    )


def _prepare(recipe: Recipe) -> Job:
    recipe = recipe.model_copy(update={"data": recipe.data.absolute()})
    architecture = recipe.model.architecture(recipe.model.image_channels or native_channels(recipe.data))
    split = load_split(recipe.data, architecture.image_size, architecture.image_channels)
    check_num_clusters(architecture, split)
    training = recipe.training
    num_threads = training.threads or choose_threads(max(architecture.channels))
    recipe = recipe.replace(
        {"model": {"image_channels": architecture.image_channels}, "training": {"threads": num_threads}}
    )
    schedule = Schedule(
        stages=recipe.alone(len(split.train)),
        student=Learner(build(architecture, training.seed), training.betas, training.average_decay, recipe.objective),
        images=split.train,
        settings=training.settings(),
    )
    return Job(recipe, split, schedule, architecture, training.seed, num_threads, {"command": "train"})
