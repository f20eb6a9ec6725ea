"""Distil a trained teacher into a narrow student by a schedule of loss sets (P-KDGAN)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kdgan_compress.accel.teacher_cache import TeacherCache
from kdgan_compress.data import load_split
from kdgan_compress.distillation.scheduler import Schedule
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.fleets import FleetResult, finish_runs, run_jobs
from kdgan_compress.experiment.job import Job, RunResult, ShowProgress, check_num_clusters, read_result
from kdgan_compress.experiment.models import load_model, model_name
from kdgan_compress.experiment.recipe import Recipe, StudentSection, load_recipe
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.runner import execute
from kdgan_compress.experiment.teacher_cache import CacheSource
from kdgan_compress.gans import Architecture, build, to_device
from kdgan_compress.profiling.machine import check_device, choose_threads, threads


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
    job = _fresh(teacher, recipe or load_recipe(), Path(out) if out else None, data=data, data_root=data_root)
    return execute(job, track_auc=track_auc, show_progress=show_progress)


def distill_fleet(
    teachers: Sequence[str | Path],
    recipes: Sequence[Recipe] | None = None,
    out: str | Path = "runs",
    *,
    data: str | None = None,
    data_root: str | None = None,
    fleet: int | None = None,
    track_auc: bool = False,
    show_progress: ShowProgress | None = None,
) -> FleetResult:
    """Distil each teacher by each recipe, many students at once: each is what ``distill`` makes, to float rounding.

    Args:
        teachers: Run folders or model files of one shape.
        recipes: They may differ in seed, rates and weights, not in the student's shape; None for the shipped one.
        out: A folder, for run folders of the names that ``distill`` gives them.
        data: As in ``distill``.
        data_root: As in ``distill``.
        fleet: Students trained as one; None takes the number that is fastest here.
        track_auc: Measure AUC after every epoch.
        show_progress: Called about every 512 images of a student.

    Raises:
        KdganError: Whatever is wrong with a teacher, recipe, data or folder, or a fleet that is too large; nothing is
            written then.
    """
    caches = CacheSource()
    jobs = [
        _fresh(teacher, recipe, None, Path(out), caches, data=data, data_root=data_root)
        for teacher in teachers
        for recipe in recipes or [load_recipe()]
    ]
    return run_jobs(jobs, width=fleet, track_auc=track_auc, show_progress=show_progress)


def resume_distill(run: str | Path, *, track_auc: bool = False, show_progress: ShowProgress | None = None) -> RunResult:
    """Finish an interrupted ``distill`` by its own recipe; a finished one is left as it is.

    Raises:
        KdganError: No run there, no distillation, or its teacher or training images are gone.
    """
    folder = RunFolder(Path(run))
    recipe = _recipe_of(folder)
    return read_result(folder) or execute(
        _take_up(folder, recipe, CacheSource()), track_auc=track_auc, show_progress=show_progress
    )


def resume_distill_fleet(
    folder: str | Path,
    *,
    fleet: int | None = None,
    track_auc: bool = False,
    show_progress: ShowProgress | None = None,
) -> FleetResult:
    """Finish all interrupted distillations right below a folder; finished ones are left as they are.

    Raises:
        KdganError: No run there, or one that can't be finished.
    """
    caches = CacheSource()
    return finish_runs(
        Path(folder),
        _recipe_of,
        lambda run, recipe: _take_up(run, recipe, caches),
        width=fleet,
        track_auc=track_auc,
        show_progress=show_progress,
    )


def _fresh(
    teacher: str | Path,
    recipe: Recipe,
    out: Path | None,
    parent: Path = Path("runs"),
    caches: CacheSource | None = None,
    *,
    data: str | None,
    data_root: str | None,
) -> Job:
    """A new distillation, in ``out`` or a folder named after it below ``parent``."""
    checkpoint = load_model(teacher)
    settings = checkpoint.data.override(data, checkpoint.data.normal, data_root, novel=checkpoint.data.novel)
    fitted = _fit_recipe(recipe, checkpoint, teacher).model_copy(update={"data": settings.absolute()})
    section = fitted.distillation
    plan = _student_architecture(section.student, checkpoint.architecture).channels_str
    folder = RunFolder(out or parent / f"{model_name(teacher)}-student-{plan}-seed{section.training.seed}")
    return _prepare(fitted, checkpoint, folder, False, caches or CacheSource())


def _recipe_of(folder: RunFolder) -> Recipe:
    """The recipe of a distillation that was begun."""
    folder.check_is_run()
    recipe = load_recipe(str(folder.recipe))
    if recipe.distillation.teacher is None:
        raise KdganError(
            "distill --resume must be given a distillation",
            f"{folder.path} is a training",
            "Use train --resume instead",
        )
    return recipe


def _take_up(folder: RunFolder, recipe: Recipe, caches: CacheSource) -> Job:
    assert recipe.distillation.teacher is not None, "a distillation's recipe names its teacher"
    return _prepare(recipe, load_model(recipe.distillation.teacher), folder, True, caches)


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
    """The teacher's but for the channel plan and norm and, where the student names one, the family."""
    own = dataclasses.replace(teacher, channels=student.channels_for(teacher.image_size), norm=student.norm)
    if student.family in (None, teacher.family):
        return own
    return dataclasses.replace(own, family=student.family, num_clusters=None)


def _prepare(recipe: Recipe, teacher: Checkpoint, folder: RunFolder, resume: bool, caches: CacheSource) -> Job:
    section = recipe.distillation
    training = section.training
    check_device(training.device)
    architecture = _student_architecture(section.student, teacher.architecture)
    if architecture.norm == "batch" and training.batch_size == 1:
        raise KdganError(
            "A student of batch norm must have batches of at least 2 images",
            "got a batch size of 1, at which each image is normalised by itself in training and by others after it",
            "Give --norm instance, or a larger --batch-size",
        )
    split = load_split(recipe.data, architecture.image_size, architecture.image_channels)
    check_num_clusters(architecture, split)
    stages = section.stages(len(split.train))
    trains_teacher = any(stage.loss_set.trains_teacher for stage in stages)
    trained = architecture.channels + (teacher.architecture.channels if trains_teacher else ())
    num_threads = training.threads or choose_threads(max(trained))
    images = split.train.to(training.device)
    master, pupil = (to_device(gan, training.device) for gan in (teacher.build(), build(architecture, training.seed)))
    schedule = Schedule(
        stages=stages,
        student=TrainState(pupil, training.betas, training.ema_decay, recipe.student_objective()),
        images=images,
        teacher=TrainState(master, training.betas, training.ema_decay, recipe.objective),
        distillation=section.loss,
        settings=training.settings(),
    )

    def find_cache() -> tuple[TeacherCache | None, str]:
        with threads(training.threads or choose_threads(max(teacher.architecture.channels))):
            assert schedule.teacher is not None, "a cache is found before the teacher is let go"
            return caches.get(section.cache, stages, schedule.teacher.gan, images, section.loss)

    folder_of_cache = str(Path(section.cache.folder).expanduser().resolve()) if section.cache.folder else None
    recipe = recipe.replace(
        {"distillation": {"training": {"threads": num_threads}, "cache": {"folder": folder_of_cache}}}
    )
    provenance = {
        "command": "distill",
        "teacher": section.teacher,
        "schedule": "->".join(stage.name for stage in schedule.stages),
    }
    return Job(
        recipe,
        folder,
        resume,
        split,
        schedule,
        architecture,
        training.seed,
        num_threads,
        provenance,
        teacher.architecture,
        find_cache,
    )
