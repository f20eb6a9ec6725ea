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
from kdgan_compress.objectives import Batch, Distillation, Outputs
from kdgan_compress.policies import Stage
from kdgan_compress.taps import Connectors, Taps
from kdgan_compress.training.learner import Learner, frozen

RECORD_EVERY_IMAGES = 512


class DivergedError(KdganError):
    """A loss became NaN or infinite, so that training can't go on."""


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
        losses: Means of every unweighted term over those images that had it; the teacher's start with ``teacher_``.
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


def begin_stage(
    stage: Stage, student: Learner, teacher: Learner | None, images: Tensor, distillation: Distillation
) -> None:
    """Give both learners the optimisers, averages and connectors that this stage's loss set calls for."""
    losses = stage.loss_set
    if losses.needs_teacher and teacher is None:
        raise KdganError(
            f"Stage {stage.name} must have a teacher", "found none", "Give one, or train alone with mu and nu only"
        )
    if teacher is not None and losses.lam > 0 and student.connectors is None:
        student.connectors = _connectors(student, teacher, images, distillation)
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
        distillation: K_l.
        settings: Batch size and the like.
        epochs_done: Epochs that an earlier process has finished.

    Yields:
        A record about every 512 images, and one at each epoch's end.

    Raises:
        DivergedError: A loss was NaN or infinite; told at the next record.
    """
    steps_per_epoch = -(-len(images) // settings.batch_size)
    total_steps = stage.epochs * steps_per_epoch
    num_steps = epochs_done * steps_per_epoch
    with ExitStack() as stack:
        step = _Step(stage, student, teacher, distillation, stack)
        for epoch in range(epochs_done + 1, stage.epochs + 1):
            meter = _Meter(stage.name, epoch)
            for chosen in epoch_order(len(images), settings.seed, stage_index, epoch).split(settings.batch_size):
                fall = 1 - num_steps / total_steps if settings.learning_rate_decay == "linear" else 1.0
                meter.add(num_steps, step(to_network_range(images[chosen]), num_steps, fall), len(chosen))
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
        distillation: Distillation,
        stack: ExitStack,
    ) -> None:
        self._stage, self._losses = stage, stage.loss_set
        self._distillation = distillation
        self._student = student
        self._teacher = teacher if self._losses.needs_teacher else None
        self._student_taps = stack.enter_context(Taps(student.gan.generator, student.gan.taps))
        if self._teacher is not None:
            self._teacher_taps = stack.enter_context(Taps(self._teacher.gan.generator, self._teacher.gan.taps))
            if not self._losses.trains_teacher:
                stack.enter_context(frozen(self._teacher.gan))

    def __call__(self, images: Tensor, number: int, fall: float) -> dict[str, Tensor]:
        """Make the updates of the stage's batch ``number`` at learning rates times ``fall``; all unweighted terms."""
        losses, stage = self._losses, self._stage
        terms: dict[str, Tensor] = {}
        targets: Outputs | None = None
        if self._teacher is not None:
            if losses.trains_teacher:
                rate = stage.teacher_learning_rate * fall
                taps = self._teacher_taps
                batch = Batch(images, self._teacher.gan, taps, losses.alpha, losses.beta, distils=False, step=number)
                own = self._move(self._teacher, taps, batch, rate)
                terms = {f"teacher_{name}": term for name, term in own.items()}
            if losses.lam > 0:
                targets = self._targets(images)
        rate, taps = stage.learning_rate * fall, self._student_taps
        distils = targets is not None
        batch = Batch(images, self._student.gan, taps, losses.mu, losses.nu, distils, step=number)
        return terms | self._move(self._student, taps, batch, rate, targets)

    def _targets(self, images: Tensor) -> Outputs:
        """The teacher's outputs as they are now; a moving teacher's batch norm is not moved by this pass."""
        with torch.no_grad():
            if not self._losses.trains_teacher:
                return _with_z2(self._teacher_taps(images), self._teacher_taps, self._distillation)
            with evaluating(self._teacher_taps.network):
                return _with_z2(self._teacher_taps(images), self._teacher_taps, self._distillation)

    def _move(
        self,
        learner: Learner,
        taps: Taps,
        batch: Batch,
        learning_rate: float,
        targets: Outputs | None = None,
    ) -> dict[str, Tensor]:
        """One learner's updates one after the other, λ K_l added to the generator's where there are targets."""
        terms: dict[str, Tensor] = {}
        for update in learner.objective.updates(batch):
            loss = update.loss
            for name, term in update.terms.items():
                terms.pop(name, None)  # the order is that of the updates, so that the first bad term is the one blamed
                terms[name] = term
            if targets is not None and update.outputs is not None:
                outputs = _with_z2(update.outputs, taps, self._distillation)
                distance, distances = self._distillation.loss(learner.connect(outputs), targets)
                loss = self._losses.lam * distance if loss is None else loss + self._losses.lam * distance
                terms.update(distances)
            if loss is not None:
                learner.step(update.network, loss, learning_rate)
        return terms


def _with_z2(outputs: Outputs, taps: Taps, distillation: Distillation) -> Outputs:
    """Tapped outputs, with z1 of x̂ for a missing z2 where ``re_encode`` asks for it."""
    if not distillation.re_encode or distillation.w2 == 0 or "z2" in outputs:
        return outputs
    return {**outputs, "z2": taps(outputs["x_hat"])["z1"]}


def _connectors(student: Learner, teacher: Learner, images: Tensor, distillation: Distillation) -> Connectors:
    """What brings the student's taps to the teacher's shapes, found by running both on one image."""
    outputs = []
    for gan in (student.gan, teacher.gan):
        with torch.no_grad(), frozen(gan), Taps(gan.generator, gan.taps) as taps:
            outputs.append(_with_z2(taps(to_network_range(images[:1])), taps, distillation))
    return Connectors(*outputs)


class _Meter:
    """Running means of an epoch's losses, kept as tensors until a record is due."""

    def __init__(self, stage: str, epoch: int) -> None:
        self._stage, self._epoch = stage, epoch
        self._waiting: dict[str, list[tuple[int, int, Tensor]]] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._num_images = self._num_recorded = 0
        self._start = time.perf_counter()

    def add(self, step: int, terms: Outputs, num_images: int) -> None:
        for name, term in terms.items():
            self._waiting.setdefault(name, []).append((step, num_images, term.detach()))
        self._num_images += num_images

    def is_due(self) -> bool:
        return self._num_images - self._num_recorded >= RECORD_EVERY_IMAGES

    def record(self, epoch_done: bool) -> Record:
        self._num_recorded = self._num_images
        values = {name: torch.stack([term for _, _, term in waiting]) for name, waiting in self._waiting.items()}
        self._check_finite(values)
        for name, waiting in self._waiting.items():
            numbers = torch.tensor([number for _, number, _ in waiting])
            total, seen = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + float((values[name] * numbers).sum()), seen + int(numbers.sum())
        self._waiting = {}
        means = {name: total / seen for name, (total, seen) in self._sums.items()}
        seconds = time.perf_counter() - self._start
        return Record(self._stage, self._epoch, epoch_done, self._num_images, means, seconds)

    def _check_finite(self, values: dict[str, Tensor]) -> None:
        bad = [
            (self._waiting[name][place][0], name, float(of_name[place]))
            for name, of_name in values.items()
            for place in (~of_name.isfinite()).nonzero()[:1].flatten().tolist()
        ]
        if bad:
            step, name, value = min(bad, key=lambda entry: entry[0])
            raise DivergedError(
                "Losses must stay finite",
                f"{name} is {value} at step {step + 1} of stage {self._stage} (epoch {self._epoch})",
                "Lower the learning rate, or raise the batch size",
            )
