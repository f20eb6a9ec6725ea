"""The progressive scheduler: stages in a row, each from the last weights of the one before (Algorithm 1).

Between two epochs the whole training can be taken out as one state and put into another process, which then ends bit
for bit where this one would have (on the CPU, with the same number of threads).
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdgan_compress.accel.teacher_cache import TeacherCache, cacheable_stages
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.distillation.train_log import DivergedError, Record
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import StageRun, TrainingSettings, begin_stage, run_fleet
from kdgan_compress.errors import KdganError

STATE_FORMAT = 2


class Schedule:
    """Stages of training for one student and, where a loss set wants one, its teacher.

    Args:
        stages: In order; at least one.
        student: The learner that the stages train, by its own objective.
        images: All training images, uint8 (N, C, S, S).
        teacher: The learner it is distilled from; stages that train it move it in place.
        distillation: K_l.
        settings: Batch size, averaging, seed.
        cache: See ``use_cache``.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        student: TrainState,
        images: Tensor,
        teacher: TrainState | None = None,
        distillation: Distillation | None = None,
        settings: TrainingSettings | None = None,
        cache: TeacherCache | None = None,
    ) -> None:
        if not stages:
            raise KdganError("A schedule must have at least one stage", "got none", "Name one, such as structure 2")
        if len(images) == 0:
            raise KdganError("Training must have at least one image", "got 0", "Check the data and its normal class")
        self.stages = tuple(stages)
        self.student, self.teacher = student, teacher
        self._images = images
        self._distillation = distillation or Distillation()
        self._settings = settings or TrainingSettings()
        self._cache: TeacherCache | None = None
        self._num_cached_stages = 0
        if cache is not None:
            self.use_cache(cache)
        self._stage_index = self._epochs_done = 0
        self._restored = False

    @property
    def position(self) -> tuple[int, int]:
        """The running stage's place, from 0, and how many of its epochs are done."""
        return self._stage_index, self._epochs_done

    @property
    def is_finished(self) -> bool:
        """Whether every epoch of every stage is done."""
        last = len(self.stages) - 1
        return self._stage_index > last or (self._stage_index == last and self._epochs_done >= self.stages[last].epochs)

    @property
    def trains_teacher(self) -> bool:
        """Whether any stage trains the teacher on."""
        return any(stage.loss_set.trains_teacher for stage in self.stages)

    def run(self) -> Iterator[Record]:
        """Train from the present position to the end.

        Yields:
            The engine's records; at one with ``epoch_done``, ``state_dict()`` may be taken.
        """
        for _, record in run_together([self]):
            if isinstance(record, DivergedError):
                raise record
            yield record

    def use_cache(self, cache: TeacherCache) -> None:
        """Take the teacher's outputs for the images from a cache until a stage trains the teacher.

        Where none does, the teacher itself is not needed any more.

        Raises:
            KdganError: The first stage that asks the teacher trains it too.
        """
        self._num_cached_stages = cacheable_stages(self.stages)
        self._cache = cache

    def begin_stage(self) -> StageRun:
        """What the engine is to run next; the present stage is begun unless it was taken up in its middle."""
        run = self.stage_run(self._stage_index)
        if not self._restored:
            begin_stage(run)
        self._restored = False
        return run

    def follow(self, record: Record) -> None:
        """Move the position on by an engine's record."""
        self._epochs_done += record.epoch_done

    def end_stage(self) -> None:
        """Move the position on to the next stage."""
        self._stage_index += 1
        self._epochs_done = 0

    def stage_run(self, stage_index: int) -> StageRun:
        """One of the stages as the engine takes it, from the present number of epochs on."""
        return StageRun(
            stage=self.stages[stage_index],
            stage_index=stage_index,
            student=self.student,
            teacher=self.teacher,
            images=self._images,
            distillation=self._distillation,
            settings=self._settings,
            epochs_done=self._epochs_done,
            cache=self._cache if stage_index < self._num_cached_stages else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Position, random state and both learners; tensors and plain values only, valid between epochs."""
        return {
            "format": STATE_FORMAT,
            "stage_index": self._stage_index,
            "epochs_done": self._epochs_done,
            "random_state": torch.get_rng_state(),
            "images": self._fingerprint(),
            "student": self.student.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict()`` of a schedule of the same stages and images left.

        Raises:
            KdganError: The images are others, or the state is of another version.
        """
        if state.get("format") != STATE_FORMAT:
            raise KdganError(
                f"A state to resume from must be of format {STATE_FORMAT}",
                f"found {state.get('format', 'an older one')}",
                "Finish this run with the version that began it, or start a new one",
            )
        if state["images"] != self._fingerprint():
            raise KdganError(
                "A resumed run must find the training images it began with",
                f"found {len(self._images)} images that differ from them",
                "Bring those back, or start a new run",
            )
        self._stage_index, self._epochs_done = state["stage_index"], state["epochs_done"]
        for stage_index in range(self._stage_index + 1):  # earlier ones left averages and connectors behind
            begin_stage(self.stage_run(stage_index))
        self.student.load_state_dict(state["student"])
        if self.teacher is not None and state["teacher"] is not None:
            self.teacher.load_state_dict(state["teacher"])
        torch.set_rng_state(state["random_state"])
        self._restored = True

    def _fingerprint(self) -> str:
        """Shape and checksum of the training images."""
        return f"{tuple(self._images.shape)} {zlib.crc32(self._images.cpu().numpy().tobytes()):08x}"


def run_together(schedules: Sequence[Schedule]) -> Iterator[tuple[int, Record | DivergedError]]:
    """Run several schedules as fleets, stage by stage, each as if it were alone.

    Those whose loss sets train the same networks by the same losses, with whatever coefficients, are one fleet, with a
    teacher cache or without.

    Args:
        schedules: Of one shape where there are several; each goes on from its own position.

    Yields:
        A schedule's number with the engine's record, as ``Schedule.run`` does, or with the error of one that diverged
        and is left behind.
    """
    left = set(range(len(schedules)))
    for stage_index in range(max(len(schedule.stages) for schedule in schedules)):
        fleets: dict[tuple[bool, ...], list[int]] = {}
        for member in sorted(left):
            schedule = schedules[member]
            if schedule.position[0] == stage_index and stage_index < len(schedule.stages):
                run = schedule.stage_run(stage_index)
                used = (weight > 0 for weight in dataclasses.astuple(run.stage.loss_set))
                fleets.setdefault((*used, run.cache is not None), []).append(member)
        for members in fleets.values():
            for place, record in run_fleet([schedules[member].begin_stage() for member in members]):
                if isinstance(record, Record):
                    schedules[members[place]].follow(record)
                else:
                    left.discard(members[place])
                yield members[place], record
            for member in left.intersection(members):
                schedules[member].end_stage()
