"""What a command is to run, how far it is and what it came to: values that train, distill and fleets hand around."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdgan_compress.accel.teacher_cache import TeacherCache
from kdgan_compress.data import Split
from kdgan_compress.distillation.scheduler import Schedule
from kdgan_compress.distillation.train_log import Record
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import Recipe
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.gans import Architecture


@dataclass(frozen=True)
class Progress:
    """How far a run or a fleet of them is.

    Attributes:
        record: The engine's latest.
        images_done: Of all stages and members.
        images_total: The same to the end.
        images_per_s: So far.
        auc: Of the record's model, where it was measured.
        run: Name of the run folder that the record is about; None where the command has only one.
    """

    record: Record
    images_done: int
    images_total: int
    images_per_s: float
    auc: float | None = None
    run: str | None = None


ShowProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class RunResult:
    """What a training came to; the content of ``result.json``.

    Attributes:
        run: The run folder.
        model: Its model file.
        auc: Of the last epoch's averaged weights on the whole test split; None without labels of both kinds.
        auc_raw: The same of the raw weights.
        epochs: Of all stages together.
        num_images: Images trained on, with repetition.
        seconds: Training alone, without evaluation; a fleet's member has an even share of its fleet's.
        images_per_s: ``num_images / seconds``.
        seed: Of weights and order.
        threads: Torch's.
        machine: Where it ran.
        fleet: Models trained as one with it; 1 for a run of its own.
        teacher_cache: How the teacher's outputs were kept, in words; None without a teacher.
        best_epoch_auc_oracle: Highest AUC of any epoch, where AUC was tracked: an oracle, chosen by test labels.
    """

    run: str
    model: str
    auc: float | None
    auc_raw: float | None
    epochs: int
    num_images: int
    seconds: float
    images_per_s: float
    seed: int
    threads: int
    machine: str
    fleet: int = 1
    teacher_cache: str | None = None
    best_epoch_auc_oracle: float | None = None


FindCache = Callable[[], tuple[TeacherCache | None, str]]
"""Reads or computes a teacher's outputs; None with the reason where they can't be cached."""


@dataclass(frozen=True, eq=False)
class Job:
    """A training that is ready to start, or to go on in its folder: everything ``execute`` needs."""

    recipe: Recipe
    folder: RunFolder
    resume: bool
    split: Split
    schedule: Schedule
    architecture: Architecture
    seed: int
    num_threads: int
    provenance: dict[str, Any]
    teacher_architecture: Architecture | None = None
    find_cache: FindCache | None = None
    teacher_cache: str | None = None

    def begin(self) -> None:
        """Make the run folder, unless it is there to be gone on with."""
        if not self.resume:
            self.folder.create(self.recipe.to_yaml())

    @property
    def num_images(self) -> int:
        """How many all stages train on, with repetition."""
        return sum(stage.epochs for stage in self.schedule.stages) * len(self.split.train)


def check_num_clusters(architecture: Architecture, split: Split) -> None:
    """Check, before anything is built, that there are images for every cluster.

    Raises:
        KdganError: More clusters than training images.
    """
    num_clusters, num_train = architecture.num_clusters or 1, len(split.train)
    if num_clusters > num_train:
        raise KdganError(
            "The number of clusters K must be at most that of the training images",
            f"got {num_clusters} for {num_train} images",
            "Choose a smaller num_clusters",
        )


def with_cache(job: Job) -> Job:
    """The job, its schedule taught by a cache where there can be one.

    Raises:
        KdganError: The recipe asks for a cache that can't be, or its folder can't be written.
    """
    if job.find_cache is None:
        return job
    cache, note = job.find_cache()
    if cache is not None:
        job.schedule.use_cache(cache)
        if not job.schedule.trains_teacher:
            job.schedule.teacher = None
    return dataclasses.replace(job, find_cache=None, teacher_cache=note)


def read_result(folder: RunFolder) -> RunResult | None:
    """The result of a run that is finished, else None.

    Raises:
        KdganError: The file is damaged or foreign.
    """
    if not folder.result.exists():
        return None
    try:
        result = RunResult(**json.loads(folder.result.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise KdganError(
            "result.json must be one that train or distill wrote", f"{folder.result} is not", "Remove it, then --resume"
        ) from None
    return dataclasses.replace(result, run=str(folder.path), model=str(folder.model))
