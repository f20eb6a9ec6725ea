"""The progressive scheduler: stages in sequence, each from the last weights of the stage before (section III-E).

Between two epochs the whole training can be saved as one state and loaded in another process, which then ends bit for
bit where this one would have (on the CPU, with the same number of threads).
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kdgan_compress.distillation.hooks import Connectors, FeatureHooks
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.distillation.step import Targets
from kdgan_compress.distillation.train_log import TrainRecord
from kdgan_compress.distillation.train_state import TrainState, frozen
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, normalize_images
from kdgan_compress.gans.objective import Outputs

STATE_FORMAT = 3
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class TrainingSettings:
    """How steps are made, whatever the stage.

    Attributes:
        batch_size: Images per step, ≥ 1; an epoch's last batch may be smaller.
        learning_rate_decay: ``"linear"``: from the stage's learning rate at its first step to 0 after its last.
            ``"constant"``: none.
        seed: Seed of the order of images.
        precision: Of matrix products on a GPU: ``"float32"``, ``"tf32"`` or, by autocast, ``"bfloat16"``; the last two
            are faster and less exact. A CPU always computes in float32.
    """

    batch_size: int = 16
    learning_rate_decay: Literal["linear", "constant"] = "linear"
    seed: int = 0
    precision: Precision = "float32"


@dataclass(frozen=True, eq=False)
class StageRun:
    """One stage of one student.

    Attributes:
        stage: Loss set, epochs and learning rates.
        stage_index: Position in the schedule, from 0; part of the seed of the order of images.
        student: Trained by μ L_g, ν L_d and λ K_l.
        teacher: Frozen, or trained by α L_g and β L_d; None where ``targets`` replaces it or nothing is distilled.
        images: All training images, uint8 (N, C, S, S).
        k_l: The distillation loss.
        settings: Batch size and so on.
        epochs_done: Epochs finished by an earlier process.
        targets: The frozen teacher's features for ``images``, such as a teacher cache; None to compute them.
    """

    stage: Stage
    stage_index: int
    student: TrainState
    teacher: TrainState | None
    images: Tensor
    k_l: DistillationLoss
    settings: TrainingSettings
    epochs_done: int = 0
    targets: Targets | None = None

    def begin(self) -> None:
        """Create the optimisers, EMAs and connectors that the stage's loss set needs."""
        losses, student, teacher = self.stage.loss_set, self.student, self.teacher
        if teacher is None and (losses.trains_teacher or (losses.distils and self.targets is None)):
            raise KdganError(
                f"Stage {self.stage.name} needs a teacher", "found none", "Give one, or train with mu and nu only"
            )
        if losses.distils and student.connectors is None:
            student.connectors = self.check_distillation()
        student.begin_stage(_trained(student.gan, {"generator": 1.0, "discriminator": losses.nu}))
        if teacher is not None and losses.trains_teacher:
            teacher.begin_stage(_trained(teacher.gan, {"generator": losses.alpha, "discriminator": losses.beta}))

    def check_distillation(self) -> Connectors:
        """Check that K_l fits student, teacher and batches.

        Returns:
            Connectors where the student's features need the teacher's shapes, found from one image.

        Raises:
            KdganError: A tap or its feature does not fit a term, or a batch has fewer images than a term compares.
        """
        for term in self.k_l.terms:
            term.check_batch_size(min(self.settings.batch_size, len(self.images)))
        image = normalize_images(self.images[:1])
        if self.targets is not None:
            teacher = self.targets(image, torch.zeros(1, dtype=torch.int64, device=image.device))
        else:
            assert self.teacher is not None
            teacher = self._features(self.teacher.gan, image)
        student = self._features(self.student.gan, image)
        connected = {name: feature for name, feature in student.items() if name in self.k_l.connected_taps}
        connectors = Connectors(connected, teacher).to(image.device, image.dtype)
        with torch.no_grad():
            list(self.k_l(connectors(student), teacher))
        return connectors

    def _features(self, gan: Gan, images: Tensor) -> Outputs:
        with torch.no_grad(), frozen(gan), FeatureHooks(gan.generator, self.k_l.taps(gan)) as hooks:
            return self.k_l.add_reencoded_z2(hooks(images), hooks)


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
        self._restored = False

    @property
    def position(self) -> tuple[int, int]:
        """Index of the running stage, from 0, and how many of its epochs are done."""
        return self._stage_index, self._epochs_done

    @property
    def is_finished(self) -> bool:
        """Whether every epoch of every stage is done."""
        last = len(self.stages) - 1
        return self._stage_index == last and self._epochs_done >= self.stages[last].epochs

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
        """Check that K_l fits student, teacher and batches, before anything is trained or written.

        Raises:
            KdganError: It does not.
        """
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
        return run

    def advance(self, record: TrainRecord) -> None:
        """Update the position by a record of the trainer."""
        self._epochs_done += record.epoch_done

    def end_stage(self) -> None:
        """Move to the next stage, if there is one."""
        if self._stage_index < len(self.stages) - 1:
            self._stage_index += 1
            self._epochs_done = 0

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
        )

    def state_dict(self) -> dict[str, Any]:
        """Position, random state and both GANs; tensors and plain values only, valid between epochs."""
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
        """Continue from the ``state_dict()`` of a scheduler with the same stages and images.

        Raises:
            KdganError: The images are others, or the state is of another version.
        """
        if state.get("format") != STATE_FORMAT:
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
        self._stage_index, self._epochs_done = state["stage_index"], state["epochs_done"]
        for stage_index in range(self._stage_index + 1):  # earlier stages created the EMA and the connectors
            self.stage_run(stage_index).begin()
        self.student.load_state_dict(state["student"])
        if self.teacher is not None and state["teacher"] is not None:
            self.teacher.load_state_dict(state["teacher"])
        torch.set_rng_state(state["random_state"])
        self._restored = True

    def _fingerprint(self) -> str:
        """Shape and checksum of the training images."""
        return f"{tuple(self.images.shape)} {zlib.crc32(self.images.cpu().numpy().tobytes()):08x}"


def _trained(gan: Gan, weights: Mapping[str, float]) -> list[str]:
    """The networks whose losses have a weight; without a discriminator the objective decides what L_d is."""
    return [name for name, weight in weights.items() if weight > 0 and name in gan.networks()]


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
