"""The engine: one stage of training under one loss set, for any GAN and any objective (Algorithm 1 of P-KDGAN).

It trains one student, or a fleet of them as one. It yields records, keeps all state in the learners it is given, writes
nothing, prints nothing and knows no family.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdgan_compress.accel.cuda_graph import CapturedStep, Terms
from kdgan_compress.accel.precision import Precision, computing
from kdgan_compress.accel.stacking import stack_gans
from kdgan_compress.accel.teacher_cache import Chosen, TeacherCache, cached_outputs
from kdgan_compress.distillation.hooks import Connectors, FeatureHooks
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.distillation.train_log import DivergedError, Meter, Record, Waiting
from kdgan_compress.distillation.train_state import TrainState, frozen
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, eval_mode, normalize_images
from kdgan_compress.gans.objective import Batch, Outputs, is_used, merge_settings, together

Rates = Sequence[float] | Tensor


@dataclass(frozen=True)
class TrainingSettings:
    """How steps are made, whatever the stage.

    Attributes:
        batch_size: Images a step, ≥ 1; an epoch's last batch may be smaller.
        learning_rate_decay: ``"linear"``: falls from the stage's rate at its first step to 0 after its last.
            ``"constant"``: stays.
        seed: Of the order of images.
        precision: Of matrix products on a GPU: ``"float32"``, ``"tf32"`` or, by autocast, ``"bfloat16"``; the last two
            are faster and give other results. A CPU computes in float32 whatever is asked.
    """

    batch_size: int = 16
    learning_rate_decay: Literal["linear", "constant"] = "linear"
    seed: int = 0
    precision: Precision = "float32"


@dataclass(frozen=True, eq=False)
class StageRun:
    """One stage for one student: what the engine runs, alone or as a member of a fleet.

    Attributes:
        stage: Loss set, epochs and learning rates.
        stage_index: Place in the schedule, from 0; decides the order of images.
        student: Moved by μ L_g, ν L_d and λ K_l.
        teacher: Frozen, or moved by α L_g and β L_d before the student at each step; None where a cache is enough.
        images: All training images, uint8 (N, C, S, S).
        distillation: K_l.
        settings: Batch size and the like.
        epochs_done: Epochs that an earlier process has finished.
        cache: The frozen teacher's outputs for ``images``; None where they are computed at every step.
    """

    stage: Stage
    stage_index: int
    student: TrainState
    teacher: TrainState | None
    images: Tensor
    distillation: Distillation
    settings: TrainingSettings
    epochs_done: int = 0
    cache: TeacherCache | None = None


def epoch_order(num_images: int, seed: int, stage_index: int, epoch: int) -> Tensor:
    """The order of images in an epoch, a function of its place alone, so that a resumed run has the same."""
    generator = torch.Generator().manual_seed(((seed * 1009 + stage_index) << 20) + epoch)
    return torch.randperm(num_images, generator=generator)


def begin_stage(run: StageRun) -> None:
    """Give both learners the optimisers, averages and connectors that this stage's loss set calls for."""
    losses, student, teacher = run.stage.loss_set, run.student, run.teacher
    if teacher is None and (losses.trains_teacher or (losses.lam > 0 and run.cache is None)):
        raise KdganError(
            f"Stage {run.stage.name} must have a teacher",
            "found none",
            "Give one, or train alone with mu and nu only",
        )
    if losses.lam > 0 and student.connectors is None:
        student.connectors = _connectors(run)
    student.begin_stage(("generator", "discriminator") if losses.nu > 0 else ("generator",))
    if teacher is not None and losses.trains_teacher:
        teacher.begin_stage(
            tuple(n for n, weight in (("generator", losses.alpha), ("discriminator", losses.beta)) if weight > 0)
        )


def run_stage(run: StageRun) -> Iterator[Record]:
    """Train one student until the stage's end; ``begin_stage`` comes first.

    Yields:
        A record about every 512 images, and one at each epoch's end.

    Raises:
        DivergedError: A loss was NaN or infinite; told at the next record.
    """
    for _, record in run_fleet([run]):
        if isinstance(record, DivergedError):
            raise record
        yield record


def run_fleet(runs: Sequence[StageRun]) -> Iterator[tuple[int, Record | DivergedError]]:
    """Train several students at once, each as if it were alone; when one is done the others go on without it.

    Args:
        runs: The members, of one shape (``TrainState.stack``) and after ``begin_stage``. They may differ in data, seed,
            length, rates and weights.

    Yields:
        A member's number and its record, as ``run_stage`` does; at one with ``epoch_done`` that member's learners are
        up to date. A member that diverged yields its error in place of a record, and is out.
    """
    precisions = sorted({run.settings.precision for run in runs})
    if len(precisions) > 1:
        raise KdganError("Members of a fleet must agree in precision", f"got {', '.join(precisions)}", "Choose one")
    courses = [_Course(run) for run in runs]
    while left := [member for member, course in enumerate(courses) if not course.is_done]:
        for place, record in _run_together([courses[member] for member in left]):
            yield left[place], record


class _Course:
    """A member's way through its stage."""

    def __init__(self, run: StageRun) -> None:
        self.run = run
        self.steps_per_epoch = -(-len(run.images) // run.settings.batch_size)
        self.num_steps = run.epochs_done * self.steps_per_epoch
        self._total_steps = run.stage.epochs * self.steps_per_epoch
        self._portions: tuple[Tensor, ...] = ()
        self.is_done = self.at_end
        self.meter = Meter(run.stage.name, 0)

    @property
    def at_end(self) -> bool:
        """Whether all portions have been drawn."""
        return self.num_steps >= self._total_steps

    @property
    def ends_epoch(self) -> bool:
        """Whether the last portion drawn was its epoch's last."""
        return self.num_steps % self.steps_per_epoch == 0

    @property
    def fall(self) -> float:
        """What the learning rates are multiplied by at the next step."""
        return 1 - self.num_steps / self._total_steps if self.run.settings.learning_rate_decay == "linear" else 1.0

    def draw(self) -> Tensor:
        """Indices of the next step's images."""
        epoch, place = divmod(self.num_steps, self.steps_per_epoch)
        run = self.run
        if place == 0:
            order = epoch_order(len(run.images), run.settings.seed, run.stage_index, epoch + 1)
            self._portions = order.to(run.images.device).split(run.settings.batch_size)
            self.meter = Meter(run.stage.name, epoch + 1)
        self.num_steps += 1
        return self._portions[place]


def _run_together(courses: Sequence[_Course]) -> Iterator[tuple[int, Record | DivergedError]]:
    """Train these until one of them is done."""
    with ExitStack() as stack:
        start = time.perf_counter()
        step, waiting = _Step([course.run for course in courses], stack), Waiting()
        while not any(course.is_done for course in courses):
            numbers, falls = [course.num_steps for course in courses], [course.fall for course in courses]
            portions = [course.draw() for course in courses]
            sizes = tuple(portion.shape[0] for portion in portions)
            waiting.add(numbers, sizes, step(portions, sizes, numbers[0], falls))
            for course, size in zip(courses, sizes, strict=True):
                course.meter.num_images += size
            due = {place for place, course in enumerate(courses) if course.ends_epoch or course.meter.is_due}
            if not due:
                continue
            waiting.flush([course.meter for course in courses])
            for place, course in enumerate(courses):
                course.is_done = course.at_end or course.meter.error is not None
                due |= {place} if course.is_done else set()
            one_is_done = any(course.is_done for course in courses)
            step.split([one_is_done or course.ends_epoch for course in courses])
            for course in courses:
                course.meter.seconds += (time.perf_counter() - start) / len(courses)
            yield from [(place, courses[place].meter.record(courses[place].ends_epoch)) for place in sorted(due)]
            start = time.perf_counter()


def can_be_captured(device: torch.device, learners: Sequence[TrainState]) -> bool:
    """Whether a whole step of these can be recorded as a CUDA graph."""
    return device.type == "cuda" and all(learner.is_capturable for learner in learners)


class _Step:
    """What happens to one batch: the teacher's own updates where it trains, then the student's.

    FeatureHooks, and the hold on a frozen teacher, last as long as the stack they are entered on.
    """

    def __init__(self, runs: Sequence[StageRun], stack: ExitStack) -> None:
        self._runs, self._stages = runs, [run.stage for run in runs]
        sets = [stage.loss_set for stage in self._stages]
        device = runs[0].images.device
        self._alpha, self._beta, self._mu, self._nu, self._lam = (
            together([getattr(losses, name) for losses in sets], device)
            for name in ("alpha", "beta", "mu", "nu", "lam")
        )
        self._distillation = merge_settings([run.distillation for run in runs], device)
        self._trains_teacher = any(losses.trains_teacher for losses in sets)
        self._shares: dict[tuple[int, ...], Tensor] = {}
        self._student = TrainState.stack([run.student for run in runs])
        self._student_taps = stack.enter_context(FeatureHooks(self._student.gan.generator, self._student.gan.taps))
        self._caches = [run.cache for run in runs if run.cache is not None]
        needs_teacher = any(losses.needs_teacher for losses in sets)
        self._teacher: TrainState | None = None
        self._teacher_taps: FeatureHooks | None = None
        if needs_teacher and (self._trains_teacher or len(self._caches) < len(runs)):
            teachers = [run.teacher for run in runs if run.teacher is not None]
            if self._trains_teacher:
                self._teacher = TrainState.stack(teachers)
            gan = self._teacher.gan if self._teacher else stack_gans([teacher.gan for teacher in teachers])
            if not self._trains_teacher:
                stack.enter_context(frozen(gan))
            self._teacher_taps = stack.enter_context(FeatureHooks(gan.generator, gan.taps))
        learners = [learner for learner in (self._student, self._teacher) if learner is not None]
        self._captured = CapturedStep(self._update) if can_be_captured(device, learners) else None
        self._precision, self._device_type = runs[0].settings.precision, device.type

    def __call__(
        self, portions: Sequence[Tensor], sizes: tuple[int, ...], number: int, falls: Sequence[float]
    ) -> Terms:
        """Make the updates of one step.

        Args:
            portions: The indices of each member's images.
            sizes: How many they are.
            number: Of the step in its stage, from 0.
            falls: What each member's learning rates are multiplied by.

        Returns:
            All unweighted terms; of a fleet (K,).
        """
        rates, teacher_rates = (
            [getattr(stage, name) * fall for stage, fall in zip(self._stages, falls, strict=True)]
            for name in ("learning_rate", "teacher_learning_rate")
        )
        with computing(self._precision, self._device_type):
            if self._captured is None:
                chosen, shares = self._level(portions, sizes, max(sizes))
                return self._update(chosen, shares if len(portions) > 1 else None, rates, teacher_rates, number)
            chosen, shares = self._level(portions, sizes, max(run.settings.batch_size for run in self._runs))
            by_member = (torch.tensor(own, device=shares.device) for own in (rates, teacher_rates))
            return self._captured(torch.stack(list(chosen)), shares, *by_member)

    def _update(
        self,
        chosen: Chosen,
        shares: Tensor | None,
        rates: Rates,
        teacher_rates: Rates,
        number: int = 0,
    ) -> Terms:
        images = normalize_images(
            torch.stack([run.images[own] for run, own in zip(self._runs, chosen, strict=True)], 1).flatten(1, 2)
        )
        terms: dict[str, Tensor] = {}
        if self._teacher is not None and self._teacher_taps is not None:
            taps = self._teacher_taps
            batch = Batch(images, self._teacher.gan, taps, self._alpha, self._beta, False, number, shares)
            own = self._move(self._teacher, taps, batch, teacher_rates)
            terms = {f"teacher_{name}": term for name, term in own.items()}
        targets = self._targets(images, chosen) if is_used(self._lam) else None
        taps = self._student_taps
        batch = Batch(images, self._student.gan, taps, self._mu, self._nu, targets is not None, number, shares)
        return terms | self._move(self._student, taps, batch, rates, targets)

    def split(self, members: Sequence[bool]) -> None:
        """Bring the learners of the members that are marked to where their fleet is."""
        for fleet, name in ((self._student, "student"), (self._teacher, "teacher")):
            if fleet is not None and len(self._runs) > 1:
                fleet.split(
                    [getattr(run, name) if marked else None for run, marked in zip(self._runs, members, strict=True)]
                )

    def _level(self, portions: Sequence[Tensor], sizes: tuple[int, ...], size: int) -> tuple[Sequence[Tensor], Tensor]:
        """All portions of one size, smaller ones filled up with images that count nothing; what each image counts."""
        if sizes not in self._shares:
            counts = torch.tensor(sizes, device=portions[0].device)
            self._shares[sizes] = (torch.arange(size, device=counts.device)[:, None] < counts) / counts
        if set(sizes) == {size}:
            return portions, self._shares[sizes]
        places = torch.arange(size, device=portions[0].device)
        return [portion[places % own] for portion, own in zip(portions, sizes, strict=True)], self._shares[sizes]

    def _targets(self, images: Tensor, chosen: Chosen) -> Outputs:
        """The teacher's outputs as they are now; a moving teacher's batch norm is not moved by this pass."""
        if self._teacher_taps is None:
            return cached_outputs(self._caches, chosen)
        with torch.no_grad(), eval_mode(self._teacher_taps.network):
            return self._distillation.with_z2(self._teacher_taps(images), self._teacher_taps)

    def _move(
        self,
        learner: TrainState,
        taps: FeatureHooks,
        batch: Batch,
        learning_rates: Rates,
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
                outputs = learner.connect(self._distillation.with_z2(update.outputs, taps))
                distance, distances = self._distillation.loss(outputs, targets, batch.shares)
                loss = self._lam * distance if loss is None else loss + self._lam * distance
                terms.update(distances)
            if loss is not None:
                _check_by_member(loss, learner.gan.num_members)
                learner.step(update.network, loss, learning_rates, update.keeps_graph)
        return terms


def _check_by_member(loss: Tensor, num_members: int) -> None:
    if num_members > 1 and loss.shape != (num_members,):
        raise KdganError(
            "In a fleet an objective must give each member its own loss",
            f"got shape {tuple(loss.shape)} for {num_members} members",
            "Let it use the batch's shares, or train these one after the other",
        )


def _connectors(run: StageRun) -> Connectors:
    """What brings the student's taps to the teacher's shapes, found by running both on one image."""
    ours = _outputs(run.student.gan, run)
    if run.cache is not None:
        theirs: Outputs = {name: torch.zeros(1, *shape) for name, shape in run.cache.shapes.items()}
    else:
        assert run.teacher is not None, "a stage with K_l has a teacher or its cache"
        theirs = _outputs(run.teacher.gan, run)
    return Connectors(ours, theirs).to(run.images.device)


def _outputs(gan: Gan, run: StageRun) -> Outputs:
    with torch.no_grad(), frozen(gan), FeatureHooks(gan.generator, gan.taps) as taps:
        return run.distillation.with_z2(taps(normalize_images(run.images[:1])), taps)
