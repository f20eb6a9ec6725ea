"""The progressive scheduler: stages in sequence, each from the last weights of the stage before (section III-E).

Between two steps the whole training can be saved as one state and loaded in another process, which then ends bit for
bit where this one would have (on the CPU, with the same number of threads).
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.distillation.stage_run import StageRun, TrainingSettings
from kdgan_compress.distillation.step import Targets
from kdgan_compress.distillation.train_log import EpochPosition, TrainRecord
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError

STATE_FORMAT, FORMAT_WITHIN_EPOCH = 3, 4
"""The second is that of a state between two steps of an epoch, which older versions can't continue."""


class ProgressiveScheduler:
    """Chains the stages of one student and, where a loss set needs one, its teacher.

    ``trainer.train_schedulers`` runs it.

    Args:
        stages: In order; at least one.
        student: Trained by every stage, by its own objective and K_l.
        images: All training images, uint8 (N, C, S, S).
        teacher: The GAN it is distilled from; structures ③ and ④ train it in place.
        k_l: The distillation loss.
        settings: Batch size, decay, seed, precision.

    Attributes:
        in_stage: Whether a stage has begun and not ended; only then can ``state_dict()`` be valid.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        student: TrainState,
        images: Tensor,
        teacher: TrainState | None = None,
        k_l: DistillationLoss | None = None,
        settings: TrainingSettings | None = None,
    ) -> None:
        if not stages:
            raise KdganError("A schedule needs at least one stage", "got none", "Name one, such as structure 2")
        if len(images) == 0:
            raise KdganError("Training needs at least one image", "got 0", "Check the data and its normal class")
        self.stages = tuple(stages)
        self.student, self.teacher = student, teacher
        self.images = images
        self.k_l = k_l or DistillationLoss()
        self._settings = settings or TrainingSettings()
        self._targets: Targets | None = None
        self._stage_index = self._epochs_done = 0
        self._within_epoch: EpochPosition | None = None
        self._restored = False
        self.in_stage = False

    @property
    def images_done(self) -> int:
        """Images of all stages that have been trained on, with repetition."""
        finished = sum(stage.epochs for stage in self.stages[: self._stage_index]) + self._epochs_done
        return finished * len(self.images) + self.images_within_epoch

    @property
    def images_within_epoch(self) -> int:
        """Images of an epoch that was left between two of its steps."""
        return 0 if self._within_epoch is None else self._within_epoch.num_images

    @property
    def position(self) -> tuple[int, int]:
        """Index of the running stage, from 0, and how many of its epochs are done."""
        return self._stage_index, self._epochs_done

    @property
    def is_finished(self) -> bool:
        """Whether every epoch of every stage is done."""
        last = len(self.stages) - 1
        return self._stage_index > last or (self._stage_index == last and self._epochs_done >= self.stages[last].epochs)

    @property
    def trains_teacher(self) -> bool:
        """Whether any stage trains the teacher further."""
        return any(stage.loss_set.trains_teacher for stage in self.stages)

    def use_targets(self, targets: Targets) -> None:
        """Read the teacher's features from ``targets``, such as a teacher cache, until a stage trains the teacher.

        If none does, the teacher is not needed any more.

        Raises:
            KdganError: The first stage that needs the teacher trains it.
        """
        num_frozen_stages(self.stages)
        self._targets = targets

    def check(self) -> None:
        """Check that K_l fits student, teacher and batches, and batch norm the batches, before anything is trained.

        Raises:
            KdganError: One does not.
        """
        batch_size = min(self._settings.batch_size, len(self.images))
        if batch_size < 2 and any(self.stage_run(index).has_batch_norm for index in range(len(self.stages))):
            found = f"got a batch size of {self._settings.batch_size} and {len(self.images)} training images"
            hint = "Choose instance norm, a larger batch size or more images"
            raise KdganError("Training with batch norm needs batches of at least 2 images", found, hint)
        distils = [index for index, stage in enumerate(self.stages) if stage.loss_set.distils]
        if distils and self.student.connectors is None and (self.teacher is not None or self._targets is not None):
            with torch.random.fork_rng(devices=[]):  # connectors are drawn again when the stage begins
                self.stage_run(distils[0]).check_distillation()

    def begin_stage(self) -> StageRun:
        """The running stage, begun unless it was restored in its middle."""
        run = self.stage_run(self._stage_index)
        if not self._restored:
            run.begin()
        self._restored = False
        self.in_stage = True
        return run

    def advance(self, record: TrainRecord) -> None:
        """Update the position by a record of the trainer."""
        self._epochs_done += record.epoch_done
        if record.epoch_done or record.within_epoch is not None:
            self._within_epoch = record.within_epoch

    def end_stage(self) -> None:
        """Move to the next stage."""
        self._stage_index += 1
        self._epochs_done = 0
        self.in_stage = False

    def stage_run(self, stage_index: int) -> StageRun:
        """One of the stages, from the current number of finished epochs."""
        is_frozen = not any(stage.loss_set.trains_teacher for stage in self.stages[: stage_index + 1])
        return StageRun(
            stage=self.stages[stage_index],
            stage_index=stage_index,
            student=self.student,
            teacher=self.teacher,
            images=self.images,
            k_l=self.k_l,
            settings=self._settings,
            epochs_done=self._epochs_done,
            targets=self._targets if is_frozen else None,
            within_epoch=self._within_epoch,
        )

    def state_dict(self) -> dict[str, Any]:
        """Position, random state and both GANs; tensors and plain values only.

        It is valid after a record with ``epoch_done`` or ``within_epoch``.
        """
        within = self._within_epoch
        return {
            "format": STATE_FORMAT if within is None else FORMAT_WITHIN_EPOCH,
            "stage_index": self._stage_index,
            "epochs_done": self._epochs_done,
            **({} if within is None else {"within_epoch": within.state_dict()}),
            "random_state": torch.get_rng_state(),
            "images": self._fingerprint(),
            "student": self.student.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the ``state_dict()`` of a scheduler with the same stages and images.

        Raises:
            KdganError: The images are others, or the state is of another version.
        """
        if state.get("format") not in (STATE_FORMAT, FORMAT_WITHIN_EPOCH):
            raise KdganError(
                f"The state to resume from is not of format {STATE_FORMAT}",
                f"found {state.get('format', 'an older one')}",
                "Finish this run with the version that began it, or start a new one",
            )
        if state["images"] != self._fingerprint():
            raise KdganError(
                "A resumed run needs the training images it began with",
                f"found {len(self.images)} images that differ from them",
                "Restore those, or start a new run",
            )
        self._restore_position(state)
        for stage_index in range(self._stage_index + 1):  # earlier stages created the EMA and the connectors
            self.stage_run(stage_index).begin()
        self.student.load_state_dict(state["student"])
        if self.teacher is not None and state["teacher"] is not None:
            self.teacher.load_state_dict(state["teacher"])
        torch.set_rng_state(state["random_state"])
        self._restored = True

    def _restore_position(self, state: Mapping[str, Any]) -> None:
        """Set the position; one past the last stage, which older versions saved, is the last stage's end."""
        stage_index, epochs_done = state["stage_index"], state["epochs_done"]
        if type(stage_index) is not int or type(epochs_done) is not int:
            raise TypeError("its position is not a number")
        if stage_index >= len(self.stages):
            stage_index, epochs_done = len(self.stages) - 1, self.stages[-1].epochs
        if stage_index < 0 or not 0 <= epochs_done <= self.stages[stage_index].epochs:
            raise ValueError(f"it has no epoch {epochs_done} of stage {stage_index + 1}")
        within = state.get("within_epoch")
        self._stage_index, self._epochs_done = stage_index, epochs_done
        self._within_epoch = None if within is None else EpochPosition.from_state(within)

    def _fingerprint(self) -> str:
        """Shape and checksum of the training images."""
        return f"{tuple(self.images.shape)} {zlib.crc32(self.images.cpu().numpy().tobytes()):08x}"


def num_frozen_stages(stages: Sequence[Stage]) -> int:
    """How many stages come before the teacher is first trained: those that a teacher cache can serve.

    Raises:
        KdganError: The teacher is not needed in any of them.
    """
    number = next((index for index, stage in enumerate(stages) if stage.loss_set.trains_teacher), len(stages))
    if not any(stage.loss_set.distils for stage in stages[:number]):
        reason = (
            f"stage {stages[0].name} trains the teacher" if number == 0 else "no stage before that uses the teacher"
        )
        raise KdganError("Only a frozen teacher's outputs can be cached", reason, "Disable the cache (--cache off)")
    return number
