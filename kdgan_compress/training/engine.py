"""The engine: one stage of training under one loss set, for any GAN and any objective (Algorithm 1 of P-KDGAN).

It yields records, keeps all state in the learners it is given, writes nothing, prints nothing and knows no family.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import evaluating, to_network_range
from kdgan_compress.objectives import Distillation, Objective, Outputs
from kdgan_compress.policies import Stage
from kdgan_compress.taps import Connectors, Taps
from kdgan_compress.training.learner import Learner, frozen

RECORD_EVERY_IMAGES = 512


@dataclass(frozen=True)
class TrainingSettings:
    """How steps are made, whatever the stage.

    Attributes:
        batch_size: Images a step, ≥ 1; an epoch's last batch may be smaller.
        learning_rate_decay: ``"linear"``: falls from the stage's rate at its first step to 0 after its last.
            ``"constant"``: stays.
        seed: Of the order of images.
    """

    batch_size: int = 16
    learning_rate_decay: Literal["linear", "constant"] = "linear"
    seed: int = 0


@dataclass(frozen=True)
class Record:
    """Where a stage stands.

    Attributes:
        stage: Its name.
        epoch: The running epoch, from 1.
        epoch_done: Whether this record closes the epoch.
        num_images: Images seen in this epoch so far.
        losses: Means over those images of every unweighted term; the teacher's start with ``teacher_``.
        seconds: Time spent on this epoch's steps so far.
    """

    stage: str
    epoch: int
    epoch_done: bool
    num_images: int
    losses: dict[str, float]
    seconds: float


def epoch_order(num_images: int, seed: int, stage_index: int, epoch: int) -> Tensor:
    """The order of images in an epoch, a function of its place alone, so that a resumed run has the same."""
    generator = torch.Generator().manual_seed(((seed * 1009 + stage_index) << 20) + epoch)
    return torch.randperm(num_images, generator=generator)


def begin_stage(stage: Stage, student: Learner, teacher: Learner | None, images: Tensor) -> None:
    """Give both learners the optimisers, averages and connectors that this stage's loss set calls for."""
    losses = stage.loss_set
    if losses.needs_teacher and teacher is None:
        raise KdganError(
            f"Stage {stage.name} must have a teacher", "found none", "Give one, or train alone with mu and nu only"
        )
    if teacher is not None and losses.lam > 0 and student.connectors is None:
        student.connectors = _connectors(student, teacher, images)
    student.begin_stage(("generator", "discriminator") if losses.nu > 0 else ("generator",))
    if teacher is not None and losses.trains_teacher:
        teacher.begin_stage(
            tuple(n for n, weight in (("generator", losses.alpha), ("discriminator", losses.beta)) if weight > 0)
        )


def run_stage(
    stage: Stage,
    stage_index: int,
    student: Learner,
    teacher: Learner | None,
    images: Tensor,
    objective: Objective,
    distillation: Distillation,
    settings: TrainingSettings,
    epochs_done: int = 0,
) -> Iterator[Record]:
    """Train until the stage's end; ``begin_stage`` comes first.

    Args:
        stage: Loss set, epochs and learning rates.
        stage_index: Place in the schedule, from 0; decides the order of images.
        student: Moved by μ L_g, ν L_d and λ K_l.
        teacher: Frozen, or moved by α L_g and β L_d before the student at each step.
        images: All training images, uint8 (N, C, S, S).
        objective: The family's own losses.
        distillation: K_l.
        settings: Batch size and the like.
        epochs_done: Epochs that an earlier process has finished.

    Yields:
        A record about every 512 images, and one at each epoch's end.
    """
    steps_per_epoch = -(-len(images) // settings.batch_size)
    total_steps = stage.epochs * steps_per_epoch
    num_steps = epochs_done * steps_per_epoch
    with ExitStack() as stack:
        step = _Step(stage, student, teacher, objective, distillation, stack)
        for epoch in range(epochs_done + 1, stage.epochs + 1):
            meter = _Meter(stage.name, epoch)
            for chosen in epoch_order(len(images), settings.seed, stage_index, epoch).split(settings.batch_size):
                fall = 1 - num_steps / total_steps if settings.learning_rate_decay == "linear" else 1.0
                meter.add(step(to_network_range(images[chosen]), fall), len(chosen))
                num_steps += 1
                if meter.is_due():
                    yield meter.record(epoch_done=False)
            yield meter.record(epoch_done=True)


class _Step:
    """What happens to one batch: the teacher's own updates where it trains, then the student's.

    Taps, and the hold on a frozen teacher, last as long as the stack they are entered on.
    """

    def __init__(
        self,
        stage: Stage,
        student: Learner,
        teacher: Learner | None,
        objective: Objective,
        distillation: Distillation,
        stack: ExitStack,
    ) -> None:
        self._stage, self._losses = stage, stage.loss_set
        self._objective, self._distillation = objective, distillation
        self._student = student
        self._teacher = teacher if self._losses.needs_teacher else None
        self._student_taps = stack.enter_context(Taps(student.gan.generator, student.gan.taps))
        if self._teacher is not None:
            self._teacher_taps = stack.enter_context(Taps(self._teacher.gan.generator, self._teacher.gan.taps))
            if not self._losses.trains_teacher:
                stack.enter_context(frozen(self._teacher.gan))

    def __call__(self, batch: Tensor, fall: float) -> dict[str, Tensor]:
        """Make the batch's updates at learning rates times ``fall``; all unweighted terms."""
        losses, stage = self._losses, self._stage
        terms: dict[str, Tensor] = {}
        targets: Outputs | None = None
        if self._teacher is not None:
            if losses.trains_teacher:
                rate = stage.teacher_learning_rate * fall
                own = self._move(self._teacher, self._teacher_taps, batch, losses.alpha, losses.beta, rate)
                terms = {f"teacher_{name}": term for name, term in own.items()}
            if losses.lam > 0:
                targets = self._targets(batch)
        rate = stage.learning_rate * fall
        return terms | self._move(self._student, self._student_taps, batch, losses.mu, losses.nu, rate, targets)

    def _targets(self, batch: Tensor) -> Outputs:
        """The teacher's outputs as they are now; a moving teacher's batch norm is not moved by this pass."""
        with torch.no_grad():
            if not self._losses.trains_teacher:
                return self._teacher_taps(batch)
            with evaluating(self._teacher_taps.network):
                return self._teacher_taps(batch)

    def _move(
        self,
        learner: Learner,
        taps: Taps,
        batch: Tensor,
        weight_g: float,
        weight_d: float,
        learning_rate: float,
        targets: Outputs | None = None,
    ) -> dict[str, Tensor]:
        """One learner's updates one after the other, λ K_l added to the generator's where there are targets."""
        terms: dict[str, Tensor] = {}
        for update in self._objective.updates(taps, learner.gan.discriminator, batch, weight_g, weight_d):
            loss = update.loss
            terms.update(update.terms)
            if targets is not None and update.outputs is not None:
                distance, distances = self._distillation.loss(learner.connect(update.outputs), targets)
                loss = self._losses.lam * distance if loss is None else loss + self._losses.lam * distance
                terms.update(distances)
            if loss is not None:
                learner.step(update.network, loss, learning_rate)
        return terms


def _connectors(student: Learner, teacher: Learner, images: Tensor) -> Connectors:
    """What brings the student's taps to the teacher's shapes, found by running both on one image."""
    outputs = []
    for gan in (student.gan, teacher.gan):
        with torch.no_grad(), frozen(gan), Taps(gan.generator, gan.taps) as taps:
            outputs.append(taps(to_network_range(images[:1])))
    return Connectors(*outputs)


class _Meter:
    """Running means of an epoch's losses, kept as tensors until a record is due."""

    def __init__(self, stage: str, epoch: int) -> None:
        self._stage, self._epoch = stage, epoch
        self._sums: dict[str, Tensor] = {}
        self._num_images = self._num_recorded = 0
        self._start = time.perf_counter()

    def add(self, terms: Outputs, num_images: int) -> None:
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + term.detach() * num_images
        self._num_images += num_images

    def is_due(self) -> bool:
        return self._num_images - self._num_recorded >= RECORD_EVERY_IMAGES

    def record(self, epoch_done: bool) -> Record:
        self._num_recorded = self._num_images
        means = {name: float(total) / self._num_images for name, total in self._sums.items()}
        seconds = time.perf_counter() - self._start
        return Record(self._stage, self._epoch, epoch_done, self._num_images, means, seconds)
