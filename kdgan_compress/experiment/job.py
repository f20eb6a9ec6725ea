"""Jobs: what a command trains, from a validated recipe to a run folder that is ready to start or to resume."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdgan_compress.accel.optimizers import FusedAdam
from kdgan_compress.data import Split, TileGrid, load_split, native_channels, resolve_tiles
from kdgan_compress.distillation.resizing import ResizedObjective, accept_larger_images
from kdgan_compress.distillation.scheduler import ProgressiveScheduler
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model, model_name
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.recipe_sections import TrainingSection
from kdgan_compress.experiment.rehearsal import rehearse
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.student import check_student_score, student_architecture
from kdgan_compress.experiment.teacher_caches import TeacherCaches
from kdgan_compress.files import expand_user
from kdgan_compress.gans import Architecture, build, is_entry_point, to_device
from kdgan_compress.gans.objective import Objective
from kdgan_compress.profiling.machine import check_device, choose_threads, num_threads
from kdgan_compress.scores import ScoreSettings

RUNS = Path("runs")


@dataclass(frozen=True, eq=False)
class Job:
    """A training that is ready to start, or to resume in its folder; the paths in ``recipe`` are relative to it.

    With ``trained_in`` it has been trained there, by a recipe that differs only in how the model is evaluated. With
    ``shares_score`` only the test images differ, and the score has been fitted there too.
    """

    recipe: Recipe
    folder: RunFolder
    resume: bool
    split: Split
    scheduler: ProgressiveScheduler
    architecture: Architecture
    provenance: dict[str, Any]
    teacher_architecture: Architecture | None = None
    attach_cache: Callable[[], str] | None = None
    teacher_cache: str | None = None
    messages: tuple[str, ...] = ()
    teacher_split: Split | None = None
    teacher_sha256: str | None = None
    trained_in: RunFolder | None = None
    shares_score: bool = False

    @property
    def split_of_teacher(self) -> Split:
        """The split at the teacher's image size."""
        return self.teacher_split or self.split

    @property
    def grid(self) -> TileGrid | None:
        """How photos are cut into tiles; None without tiles."""
        return self.recipe.data.grid(self.architecture.image_size)

    @property
    def training(self) -> TrainingSection:
        """The section of the recipe that the job trains by; ``threads`` is set."""
        return self.recipe.training if self.teacher_architecture is None else self.recipe.distillation.training

    @property
    def num_images(self) -> int:
        """Images of all stages, with repetition."""
        return sum(stage.epochs for stage in self.scheduler.stages) * len(self.split.train)

    @property
    def trained(self) -> list[TrainState]:
        """The GANs that any stage trains."""
        teacher = self.scheduler.teacher
        return [self.scheduler.student, *([teacher] if teacher and self.scheduler.trains_teacher else [])]

    @property
    def max_channels(self) -> int:
        """The most channels of a network that any stage trains."""
        channels = max(self.architecture.channels)
        if self.teacher_architecture is None or not self.scheduler.trains_teacher:
            return channels
        return max(channels, *self.teacher_architecture.channels)

    def attach_teacher_cache(self) -> "Job":
        """The job with a teacher cache, if there can be one.

        Raises:
            KdganError: The recipe needs a cache that is impossible, or its folder can't be written.
        """
        if self.attach_cache is None:
            return self
        return dataclasses.replace(self, attach_cache=None, teacher_cache=self.attach_cache())


def training_job(recipe: Recipe, out: Path | None = None, parent: Path = RUNS, resume: bool = False) -> Job:
    """A GAN that trains on its own losses, by the recipe's ``data``, ``model``, ``objective`` and ``training``.

    Args:
        recipe: The experiment.
        out: The run folder; None for one named after the recipe in ``parent``.
        parent: Folder of the run folder.
        resume: Whether ``out`` holds the run already.

    Raises:
        KdganError: The recipe, its device or its data are invalid.
    """
    training = recipe.training
    check_device(training.device)
    data, message = recipe.data.absolute(), None
    if not resume:
        data, message = resolve_tiles(data, recipe.model.image_size)
    recipe = recipe.model_copy(update={"data": data, "sweep": None})
    architecture = recipe.model.architecture(recipe.model.image_channels or native_channels(recipe.data))
    split = _load_split(recipe, architecture)
    threads = training.threads or choose_threads(max(architecture.channels))
    scheduler = ProgressiveScheduler(
        stages=recipe.standalone_stages(len(split.train)),
        student=_new_state(recipe, architecture, recipe.objective),
        images=split.train.to(training.device),
        settings=training.settings(),
    )
    family = architecture.family.replace(":", "-")
    name = f"{recipe.data.name}-{family}-{architecture.channels_str}-seed{training.seed}"
    _rehearse(scheduler, training, threads, architecture)
    folder = RunFolder(out or parent / name)
    resolved = {"model": {"image_channels": architecture.image_channels}, "training": {"threads": threads}}
    return Job(
        recipe=recipe.replace(resolved).relative_to(folder.path),
        folder=folder,
        resume=resume,
        split=split,
        scheduler=scheduler,
        architecture=architecture,
        provenance={"command": "train"},
        messages=(message,) if message else (),
    )


def distillation_job(
    teacher: str | Path,
    recipe: Recipe,
    out: Path | None = None,
    parent: Path = RUNS,
    *,
    data: str | None = None,
    data_root: str | None = None,
    resume: bool = False,
    caches: TeacherCaches | None = None,
) -> Job:
    """A student of a teacher, by the recipe's ``distillation`` and ``objective``.

    Args:
        teacher: A run folder or model file; it provides the data and the preprocessing.
        recipe: The experiment.
        out: The run folder; None for one named after teacher and student in ``parent``.
        parent: Folder of the run folder.
        data: Where the images are now, if not where the teacher was trained.
        data_root: The same for named data sets.
        resume: Whether ``out`` holds the run already.
        caches: Teacher caches shared with other jobs.

    Raises:
        KdganError: The teacher, the recipe, its device or the data are invalid.
    """
    checkpoint = load_model(teacher)
    if not resume:
        settings = checkpoint.data.relocate(data, data_root).absolute()
        recipe = _with_teacher(recipe, checkpoint, teacher).model_copy(update={"data": settings, "sweep": None})
    section = recipe.distillation
    training = section.training
    check_device(training.device)
    architecture = student_architecture(section, checkpoint.architecture, recipe.data.used_tiles is not None)
    split, teacher_split, objective = _load_split(recipe, architecture), None, recipe.student_objective()
    if architecture.image_size != checkpoint.architecture.image_size:
        teacher_split = _load_split(recipe, checkpoint.architecture)
        objective = ResizedObjective(objective, architecture.image_size)
    stages = section.stages(len(split.train))
    trains_teacher = any(stage.loss_set.trains_teacher for stage in stages)
    check_student_score(recipe.score, stages)
    widest = max(architecture.channels + (checkpoint.architecture.channels if trains_teacher else ()))
    threads = training.threads or choose_threads(widest)
    student = _new_state(recipe, architecture, objective)
    if teacher_split is not None:
        accept_larger_images(student.gan, architecture.image_size)
    scheduler = ProgressiveScheduler(
        stages=stages,
        student=student,
        images=(teacher_split or split).train.to(training.device),
        teacher=_new_state(recipe, checkpoint.architecture, recipe.objective, checkpoint),
        k_l=section.loss,
        settings=training.settings(),
    )

    name = f"{model_name(teacher)}-student-{architecture.channels_str}-seed{training.seed}"
    folder = RunFolder(out or parent / name)

    def attach_cache() -> str:
        with num_threads(training.threads or choose_threads(max(checkpoint.architecture.channels))):
            return (caches or TeacherCaches()).attach(section.cache, scheduler, folder.cache)

    _rehearse(scheduler, training, threads, architecture, checkpoint.architecture)
    schedule = "->".join(stage.name for stage in stages)
    cache_folder = str(expand_user(section.cache.folder).resolve()) if section.cache.folder else None
    resolved = {"distillation": {"training": {"threads": threads}, "cache": {"folder": cache_folder}}}
    return Job(
        recipe=recipe.replace(resolved).relative_to(folder.path),
        folder=folder,
        resume=resume,
        split=split,
        scheduler=scheduler,
        architecture=architecture,
        provenance={"command": "distill", "teacher": section.teacher, "schedule": schedule},
        teacher_architecture=checkpoint.architecture,
        attach_cache=attach_cache,
        teacher_split=teacher_split,
        teacher_sha256=checkpoint.sha256,
    )


def resumed_job(folder: RunFolder, caches: TeacherCaches | None = None) -> Job:
    """The job of an interrupted run, from the recipe in its folder.

    Raises:
        KdganError: There is no run, or its teacher or training images are gone.
    """
    folder.check_is_run()
    recipe = load_recipe(str(folder.recipe))
    if "score" not in recipe.model_fields_set:  # of a version before fitted scores
        recipe = recipe.model_copy(update={"score": ScoreSettings("norm")})
    teacher = recipe.distillation.teacher
    if teacher is None:
        return training_job(recipe, folder.path, resume=True)
    return distillation_job(teacher, recipe, folder.path, resume=True, caches=caches)


def _new_state(
    recipe: Recipe, architecture: Architecture, objective: Objective, checkpoint: Checkpoint | None = None
) -> TrainState:
    """A GAN to train: freshly initialised, or a teacher from its checkpoint."""
    is_distillation = recipe.distillation.teacher is not None
    training = recipe.distillation.training if is_distillation else recipe.training
    gan = build(architecture, training.seed) if checkpoint is None else checkpoint.build()
    return TrainState(to_device(gan, training.device), training.betas, training.ema_decay, objective, FusedAdam)


def _rehearse(
    scheduler: ProgressiveScheduler, training: TrainingSection, threads: int, *architectures: Architecture
) -> None:
    """Try the first step of each stage if a family is a user's own code."""
    families = [each.family for each in architectures if is_entry_point(each.family)]
    if families:
        with num_threads(threads):
            rehearse(scheduler, training.settings(), families[0])


def _load_split(recipe: Recipe, architecture: Architecture) -> Split:
    """The images of an experiment.

    Raises:
        KdganError: As ``load_split``, or there are fewer training images than clusters.
    """
    split = load_split(recipe.data, architecture.image_size, architecture.image_channels)
    num_clusters, num_train = architecture.num_clusters or 1, len(split.train)
    if num_clusters > num_train:
        raise KdganError(
            "There are fewer training images than clusters",
            f"got {num_clusters} clusters for {num_train} images",
            "Choose a smaller num_clusters",
        )
    return split


def _with_teacher(recipe: Recipe, teacher: Checkpoint, path: str | Path) -> Recipe:
    """The recipe with the teacher's model.

    Raises:
        KdganError: The recipe names another model.
    """
    architecture = json.loads(json.dumps(dataclasses.asdict(teacher.architecture)))
    for key in sorted(recipe.model.model_fields_set & architecture.keys() - {"channels"}):
        value = getattr(recipe.model, key)
        if value is not None and value != architecture[key]:
            raise KdganError(
                f"Teacher and recipe differ in {key.replace('_', ' ')}",
                f"{path} has {architecture[key]} and the recipe {value}",
                f"Choose another teacher, or remove model.{key} from the recipe",
            )
    return recipe.replace({"model": architecture, "distillation": {"teacher": str(Path(path).resolve())}})
