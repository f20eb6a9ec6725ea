"""The trainer: runs the stages of one or several schedulers, step by step.

It yields records, keeps all state in the GANs it is given and writes nothing. One model is trained by ``Engine``;
``accel.engine`` has one that is faster and that trains several models together.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from kdgan_compress.distillation.precision import step_in_precision
from kdgan_compress.distillation.scheduler import ProgressiveScheduler
from kdgan_compress.distillation.stage_run import StageRun
from kdgan_compress.distillation.step import StageModels, Targets
from kdgan_compress.distillation.train_log import DivergedError, EpochLog, EpochPosition, LossBuffer, TrainRecord
from kdgan_compress.distillation.train_state import frozen
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import eval_mode, normalize_images
from kdgan_compress.gans.objective import Outputs


class Engine:
    """Holds what the steps of one stage work on, and feeds them.

    Args:
        runs: The models that are trained together; this engine takes one.
        stack: Holds the feature hooks, and the freeze of the teacher, until the stage ends.

    Attributes:
        models: The argument of each step.
        train_step: The step itself (``step.train_step``), in the precision of the settings.
    """

    models: StageModels
    train_step: Callable[[StageModels, Tensor, int], dict[str, Tensor]]

    def __init__(self, runs: Sequence[StageRun], stack: ExitStack) -> None:
        if len(runs) != 1:
            raise KdganError(
                "This engine trains one model",
                f"got {len(runs)}",
                "Pass engine=kdgan_compress.accel.engine.fast_engine",
            )
        (self._run,) = runs
        self.train_step = step_in_precision(self._run)
        losses, student, teacher = self._run.stage.loss_set, self._run.student, self._run.teacher
        stack.enter_context(student.hooked(self._run.k_l.taps(student.gan)))
        if losses.trains_teacher and teacher is not None:
            stack.enter_context(teacher.hooked(self._run.k_l.taps(teacher.gan)))
        self.models = StageModels(
            student=student,
            teacher=teacher if losses.trains_teacher else None,
            loss_set=losses,
            k_l=self._run.k_l,
            load_images=lambda indices: normalize_images(self._run.images[indices]),
            targets=(self._run.targets or live_targets(self._run, stack)) if losses.distils else None,
        )

    def begin_step(self, batches: Sequence[Tensor], lr_factors: Sequence[float]) -> Tensor:
        """Set the learning rates and return the step's image indices.

        Args:
            batches: Indices (B,) of each model's images.
            lr_factors: Each model's learning-rate factor.
        """
        stage = self._run.stage
        self.models.student.set_learning_rate(stage.learning_rate * lr_factors[0])
        if self.models.teacher is not None:
            self.models.teacher.set_learning_rate(stage.teacher_learning_rate * lr_factors[0])
        return batches[0]

    def write_back(self, members: Sequence[bool]) -> None:
        """Bring the marked models' own networks up to date; this engine trains them in place."""


MakeEngine = Callable[[Sequence[StageRun], ExitStack], Engine]


def live_targets(run: StageRun, stack: ExitStack) -> Targets:
    """The teacher's features computed at each step; the pass changes neither its weights nor its buffers."""
    teacher = run.teacher
    assert teacher is not None, "a stage with K_l has a teacher or targets"
    if run.stage.loss_set.trains_teacher:
        forward = teacher.forward
    else:
        stack.enter_context(frozen(teacher.gan))
        forward = stack.enter_context(teacher.hooked(run.k_l.taps(teacher.gan)))

    def targets(images: Tensor, indices: Tensor) -> Outputs:
        with torch.no_grad(), eval_mode(teacher.gan.generator):
            return run.k_l.add_reencoded_z2(forward(images), forward)

    return targets


class Saver:
    """Saves a training between two of its steps; this one never does."""

    def is_due(self, is_epoch_end: bool, is_stage_end: bool) -> bool:
        """Whether to save now; asked after every step, with whether it was the last of a model's epoch or stage."""
        return False

    def after_records(self, can_save: bool) -> None:
        """Called when all records of a step have been yielded.

        Args:
            can_save: Whether all schedulers can be saved now, because it was due.
        """


def train_schedulers(
    schedulers: Sequence[ProgressiveScheduler], engine: MakeEngine = Engine, saver: Saver | None = None
) -> Iterator[tuple[int, TrainRecord | DivergedError]]:
    """Run schedulers from their positions to their ends, stage by stage.

    Schedulers whose running stages train the same networks by the same losses, with whatever coefficients, are trained
    together, each as if it were alone.

    Args:
        schedulers: One, or several of one shape.
        engine: ``Engine``, or ``accel.engine.fast_engine``, which several schedulers need.
        saver: Saves the schedulers that are ``in_stage``, all at one step.

    Yields:
        Index of a scheduler and a record, about every 512 images and at each epoch's end; at one with ``epoch_done``
        or ``within_epoch`` its ``state_dict()`` is valid. A scheduler that diverged yields its error and is left out
        from then on.
    """
    saver = saver or Saver()
    active = set(range(len(schedulers)))
    for stage_index in range(max((len(scheduler.stages) for scheduler in schedulers), default=0)):
        groups: dict[tuple[bool, ...], list[int]] = defaultdict(list)
        for member in sorted(active):
            scheduler = schedulers[member]
            if scheduler.position[0] == stage_index and not scheduler.is_finished:
                groups[losses_used(scheduler.stage_run(stage_index))].append(member)
        for members in groups.values():
            progress = {member: StageProgress(schedulers[member].begin_stage()) for member in members}
            while running := [member for member in members if not progress[member].is_done]:
                for index, record in train_stage([progress[member] for member in running], engine, saver):
                    member = running[index]
                    if isinstance(record, TrainRecord):
                        schedulers[member].advance(record)
                    else:
                        active.discard(member)
                    yield member, record
            for member in active.intersection(members):
                schedulers[member].end_stage()


def train_stage(
    models: Sequence["StageProgress"], make_engine: MakeEngine = Engine, saver: Saver | None = None
) -> Iterator[tuple[int, TrainRecord | DivergedError]]:
    """Train one model, or several together, until the first of them finishes its stage.

    Yields:
        Index of a model and its record or error, as ``train_schedulers`` does.
    """
    saver = saver or Saver()
    with ExitStack() as stack:
        start = time.perf_counter()
        engine, buffer = make_engine([model.run for model in models], stack), LossBuffer()
        while not any(model.is_done for model in models):
            steps, lr_factors = [model.step for model in models], [model.lr_factor for model in models]
            batches = [model.next_batch() for model in models]
            indices = engine.begin_step(batches, lr_factors)
            losses = engine.train_step(engine.models, indices, steps[0])
            buffer.add(steps, [len(batch) for batch in batches], losses)

            is_pause = saver.is_due(any(model.ends_epoch for model in models), any(model.at_end for model in models))
            due = {index for index, model in enumerate(models) if is_pause or model.ends_epoch or model.log.is_due}
            if not due:
                continue
            buffer.flush([model.log for model in models])
            for index, model in enumerate(models):
                model.is_done = model.at_end or model.log.error is not None
                due |= {index} if model.is_done else set()
            one_is_done = any(model.is_done for model in models)
            engine.write_back([one_is_done or is_pause or model.ends_epoch for model in models])
            for model in models:
                model.log.seconds += (time.perf_counter() - start) / len(models)
            yield from [(index, models[index].record(is_pause)) for index in sorted(due)]
            saver.after_records(is_pause)
            start = time.perf_counter()


class StageProgress:
    """Position of one model within its stage: step, learning-rate factor, batches, log.

    Attributes:
        run: The stage.
        step: Index of the next step.
        is_done: Whether the stage is finished, or diverged.
        log: Losses of the running epoch.
    """

    def __init__(self, run: StageRun) -> None:
        self.run = run
        num_images, batch_size = len(run.images), run.settings.batch_size
        self._joins_last = num_images > batch_size > 1 == num_images % batch_size and run.has_batch_norm
        self.steps_per_epoch = -(-num_images // batch_size) - self._joins_last
        within = run.within_epoch
        if within is not None and within.steps >= self.steps_per_epoch:
            problem, found = "The saved state must fit the run", f"an epoch has {self.steps_per_epoch} steps"
            raise KdganError(problem, f"it is at step {within.steps}; {found}", "Start a new run")
        self.step = run.epochs_done * self.steps_per_epoch + (within.steps if within else 0)
        self._total_steps = run.stage.epochs * self.steps_per_epoch
        self._batches: tuple[Tensor, ...] = ()
        self.is_done = self.at_end
        self.log = EpochLog(run.stage.name, 0)
        if within is not None:
            self._begin_epoch(run.epochs_done + 1, within)

    @property
    def at_end(self) -> bool:
        """Whether every batch has been taken."""
        return self.step >= self._total_steps

    @property
    def ends_epoch(self) -> bool:
        """Whether the last batch taken was the last of its epoch."""
        return self.step % self.steps_per_epoch == 0

    @property
    def lr_factor(self) -> float:
        """Factor of the learning rates at the next step."""
        return 1 - self.step / self._total_steps if self.run.settings.learning_rate_decay == "linear" else 1.0

    def next_batch(self) -> Tensor:
        """Indices (B,) of the next step's images."""
        epoch, step_in_epoch = divmod(self.step, self.steps_per_epoch)
        if step_in_epoch == 0:
            self._begin_epoch(epoch + 1)
        self.step += 1
        self.log.num_images += len(self._batches[step_in_epoch])
        return self._batches[step_in_epoch]

    def record(self, is_pause: bool) -> TrainRecord | DivergedError:
        """The epoch so far, or the error; at a pause within the epoch, with where to continue."""
        steps = self.step % self.steps_per_epoch
        return self.log.record(self.ends_epoch, steps if is_pause and steps else None)

    def _begin_epoch(self, epoch: int, within: EpochPosition | None = None) -> None:
        run = self.run
        order = epoch_order(len(run.images), run.settings.seed, run.stage_index, epoch)
        batches = order.to(run.images.device).split(run.settings.batch_size)
        self._batches = (*batches[:-2], torch.cat(batches[-2:])) if self._joins_last else batches
        self.log = EpochLog(run.stage.name, epoch, within)


def epoch_order(num_images: int, seed: int, stage_index: int, epoch: int) -> Tensor:
    """The order of images in an epoch, a function of its position only, so that a resumed run has the same."""
    generator = torch.Generator().manual_seed(((seed * 1009 + stage_index) << 20) + epoch)
    return torch.randperm(num_images, generator=generator)


def losses_used(run: StageRun) -> tuple[bool, ...]:
    """Which losses a stage uses and whether its targets are stored: stages that agree can be trained together.

    K_r is a loss only where it has a weight.
    """
    losses = run.stage.loss_set
    used = (losses.alpha, losses.beta, losses.mu, losses.nu, losses.lam)
    return *(weight > 0 for weight in used), run.k_l.w_r > 0, run.targets is not None
