"""The engine: one stage of training under one loss set, for any GAN and any objective (Algorithm 1 of P-KDGAN).

It yields records, keeps all state in the learners it is given, writes nothing, prints nothing and knows no family.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import evaluating, to_unit_range
from kdgan_compress.objectives import Distillation, Objective, Outputs, Update
from kdgan_compress.policies import Stage
from kdgan_compress.taps import Connectors, Taps
from kdgan_compress.training.learner import Learner, frozen

RECORD_EVERY_IMAGES = 512


@dataclass(frozen=True)
class TrainingSettings:
    """How steps are made, whatever the stage.

    Attributes:
        batch_size: Images a step, ≥ 1; an epoch's last batch may be smaller.
        betas: Adam's β1, β2.
        learning_rate_decay: ``"linear"``: falls from the stage's rate at its first step to 0 after its last.
            ``"constant"``: stays.
        average_decay: d of the generator's moving average, in [0, 1); 0: no averaging.
        seed: Of the order of images.
    """

    batch_size: int = 16
    betas: tuple[float, float] = (0.5, 0.99)
    learning_rate_decay: Literal["linear", "constant"] = "linear"
    average_decay: float = 0.99
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
    losses = stage.loss_set
    steps_per_epoch = -(-len(images) // settings.batch_size)
    total_steps = stage.epochs * steps_per_epoch
    step = epochs_done * steps_per_epoch
    with ExitStack() as stack:
        student_taps = stack.enter_context(Taps(student.gan.generator, student.gan.taps))
        if teacher is not None and losses.needs_teacher:
            teacher_taps = stack.enter_context(Taps(teacher.gan.generator, teacher.gan.taps))
            if not losses.trains_teacher:
                stack.enter_context(frozen(teacher.gan))
        for epoch in range(epochs_done + 1, stage.epochs + 1):
            meter = _Meter(stage.name, epoch)
            for chosen in epoch_order(len(images), settings.seed, stage_index, epoch).split(settings.batch_size):
                batch = to_unit_range(images[chosen])
                fall = 1 - step / total_steps if settings.learning_rate_decay == "linear" else 1.0
                terms: dict[str, Tensor] = {}
                distil: _Distil | None = None
                if teacher is not None and losses.trains_teacher:
                    updates = objective.updates(
                        teacher_taps, teacher.gan.discriminator, batch, losses.alpha, losses.beta
                    )
                    own = _learn(teacher, updates, stage.teacher_learning_rate * fall, distil=None)
                    terms |= {f"teacher_{name}": term for name, term in own.items()}
                if losses.lam > 0:
                    with torch.no_grad(), evaluating(teacher_taps.network):
                        targets = teacher_taps(batch)
                    distil = partial(_weighted_distance, student, distillation, losses.lam, targets)
                updates = objective.updates(student_taps, student.gan.discriminator, batch, losses.mu, losses.nu)
                terms |= _learn(student, updates, stage.learning_rate * fall, distil)
                step += 1
                meter.add(terms, len(batch))
                if meter.is_due():
                    yield meter.record(epoch_done=False)
            yield meter.record(epoch_done=True)


_Distil = Callable[[Outputs], tuple[Tensor, dict[str, Tensor]]]


def _learn(
    learner: Learner, updates: Iterator[Update], learning_rate: float, distil: _Distil | None
) -> dict[str, Tensor]:
    """Make a batch's updates one after the other, K_l added to the generator's; returns all unweighted terms."""
    terms: dict[str, Tensor] = {}
    for update in updates:
        loss = update.loss
        terms.update(update.terms)
        if distil is not None and update.outputs is not None:
            distance, distances = distil(update.outputs)
            loss = distance if loss is None else loss + distance
            terms.update(distances)
        if loss is not None:
            learner.step(update.network, loss, learning_rate)
    return terms


def _weighted_distance(
    student: Learner, distillation: Distillation, lam: float, targets: Outputs, outputs: Outputs
) -> tuple[Tensor, dict[str, Tensor]]:
    """λ K_l and its terms."""
    distance, terms = distillation.loss(student.connect(outputs), targets)
    return lam * distance, terms


def _connectors(student: Learner, teacher: Learner, images: Tensor) -> Connectors:
    """What brings the student's taps to the teacher's shapes, found by running both on one image."""
    outputs = []
    for gan in (student.gan, teacher.gan):
        with torch.no_grad(), frozen(gan), Taps(gan.generator, gan.taps) as taps:
            outputs.append(taps(to_unit_range(images[:1])))
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
