"""Distil a trained teacher into a narrow student by a schedule of loss sets (P-KDGAN)."""

import dataclasses
from pathlib import Path

from kdgan_compress.data import load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build
from kdgan_compress.recipe import Recipe, StudentSection, load_recipe
from kdgan_compress.schedule import Schedule
from kdgan_compress.storage import Checkpoint, RunFolder
from kdgan_compress.training import Learner
from kdgan_compress.workflows.machine import choose_threads
from kdgan_compress.workflows.models import load_model, model_name
from kdgan_compress.workflows.run import Job, RunResult, ShowProgress, check_num_clusters, execute, read_result


def distill(
    teacher: str | Path,
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    *,
    data: str | None = None,
    data_root: str | None = None,
    track_auc: bool = False,
    show_progress: ShowProgress | None = None,
) -> RunResult:
    """Distil by a recipe's ``distillation`` and ``objective``; data and preprocessing are the teacher's.

    Args:
        teacher: A run folder or model file.
        recipe: None for the shipped ``default``. A model that it names must be the teacher's but for the channels.
        out: The run folder, which must not hold a run yet; None for ``runs/<teacher>-student-<channels>-seed<n>``.
        data: Where the images are now, if not where the teacher found them.
        data_root: The same for named sets.
        track_auc: Measure AUC after every epoch.
        show_progress: Called about every 512 images.

    Raises:
        KdganError: Whatever is wrong with teacher, recipe, data or folder; nothing is written then.
    """
    recipe = recipe or load_recipe()
    checkpoint = load_model(teacher)
    settings = checkpoint.data.override(data, checkpoint.data.normal, data_root, novel=checkpoint.data.novel)
    fitted = _fit_recipe(recipe, checkpoint, teacher).model_copy(update={"data": settings.absolute()})
    job = _prepare(fitted, checkpoint)
    name = f"{model_name(teacher)}-student-{job.architecture.plan}-seed{job.seed}"
    folder = RunFolder(Path(out) if out else Path("runs") / name)
    return execute(job, folder, resume=False, track_auc=track_auc, show_progress=show_progress)


def resume_distill(run: str | Path, *, track_auc: bool = False, show_progress: ShowProgress | None = None) -> RunResult:
    """Finish an interrupted ``distill`` by its own recipe; a finished one is left as it is.

    Raises:
        KdganError: No run there, no distillation, or its teacher or training images are gone.
    """
    folder = RunFolder(Path(run))
    folder.require_run()
    recipe = load_recipe(str(folder.recipe))
    if recipe.distillation.teacher is None:
        raise KdganError(
            "distill --resume must be given a distillation", f"{run} is a training", "Use train --resume instead"
        )
    if (result := read_result(folder)) is not None:
        return result
    job = _prepare(recipe, load_model(recipe.distillation.teacher))
    return execute(job, folder, resume=True, track_auc=track_auc, show_progress=show_progress)


def _fit_recipe(recipe: Recipe, teacher: Checkpoint, path: str | Path) -> Recipe:
    """The recipe with the teacher's model; an error where it asks for another."""
    theirs = dataclasses.asdict(teacher.architecture)
    for key in sorted(recipe.model.model_fields_set & theirs.keys() - {"channels"}):
        asked = getattr(recipe.model, key)
        if asked is not None and asked != theirs[key]:
            raise KdganError(
                f"The teacher must have the recipe's {key.replace('_', ' ')}",
                f"{path} has {theirs[key]} and the recipe {asked}",
                f"Choose another teacher, or leave model.{key} out of the recipe",
            )
    return recipe.replace({"model": theirs, "distillation": {"teacher": str(Path(path).resolve())}})


def _student_architecture(student: StudentSection, teacher: Architecture) -> Architecture:
    """The teacher's but for the channel plan and, where the student names one, the family."""
    channels = student.plan(teacher.image_size)
    if student.family in (None, teacher.family):
        return dataclasses.replace(teacher, channels=channels)
    return dataclasses.replace(teacher, channels=channels, family=student.family, num_clusters=None)


def _prepare(recipe: Recipe, teacher: Checkpoint) -> Job:
    section = recipe.distillation
    training = section.training
    architecture = _student_architecture(section.student, teacher.architecture)
    split = load_split(recipe.data, architecture.image_size, architecture.image_channels)
    check_num_clusters(architecture, split)
    schedule = Schedule(
        stages=section.stages(len(split.train)),
        student=Learner(
            build(architecture, training.seed), training.betas, training.average_decay, recipe.student_objective()
        ),
        images=split.train,
        teacher=Learner(teacher.build(), training.betas, training.average_decay, recipe.objective),
        distillation=section.loss,
        settings=training.settings(),
    )
    trained = architecture.channels + (teacher.architecture.channels if schedule.moves_teacher else ())
    num_threads = training.threads or choose_threads(max(trained))
    recipe = recipe.replace({"distillation": {"training": {"threads": num_threads}}})
    provenance = {
        "command": "distill",
        "teacher": section.teacher,
        "schedule": "->".join(stage.name for stage in schedule.stages),
    }
    return Job(recipe, split, schedule, architecture, training.seed, num_threads, provenance, teacher.architecture)
