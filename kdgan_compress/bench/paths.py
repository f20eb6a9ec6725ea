"""The paths of the benchmark: each gets a number of steps ready and then runs them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.accel.optimizers import FusedAdam
from kdgan_compress.accel.teacher_cache import TeacherCache
from kdgan_compress.bench.cases import TEACHER, Case
from kdgan_compress.bench.reference_loops import reference_loop
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.stage_run import StageRun, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import StageProgress, train_stage
from kdgan_compress.gans import FAMILIES, Architecture, Gan, anomaly_score, build, normalize_images, to_device

Prepare = Callable[[int], Callable[[], object]]
"""Number of steps → a function that runs them."""

FEATURE_SHAPES = {"z1": (256,), "x_hat": (1, 32, 32), "z2": (256,)}
NUM_COLUMNS = sum(map(math.prod, FEATURE_SHAPES.values()))

NUM_PHASES = 6
"""Steps of a cycle of CVGAD's Algorithm 1; every measurement is a multiple of them, whatever the family."""

LEARNING_RATE, TEACHER_LEARNING_RATE = 4e-3, 1e-4


def macs_per_image(case: Case, path: str) -> float:
    """Multiply-accumulates of all convolutions and matrix products for one image and model.

    They are counted on one model, since torch's formulas count the gradient of a grouped convolution as ungrouped, and
    as a difference, which does not include what is done once per stage or per call; and on the CPU, since a CUDA graph
    replays steps without calling their operators.
    """
    prepare = prepare_path(case, "cache" if case.fleet(path) > 1 else path, "cpu")
    flops: list[float] = []
    for steps in (NUM_PHASES, 2 * NUM_PHASES):
        run = prepare(steps)
        with _FlopCounter() as counter:
            run()
        flops.append(counter.flops)
    return (flops[1] - flops[0]) / 2 / (NUM_PHASES * case.batch)


class _FlopCounter(TorchDispatchMode):
    """torch's formulas without its module tracking, which does not allow the critic's gradient penalty."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: float = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=output)
        return output


def prepare_path(case: Case, path: str, device: str) -> Prepare:
    """The path of a case on fresh models and random images."""
    if case.work == "infer":
        return _scoring(case, path, device)
    losses = FROM_SCRATCH if case.structure == "scratch" else STRUCTURES[int(case.structure)]
    stage = Stage(case.structure, losses, 1, LEARNING_RATE, TEACHER_LEARNING_RATE)
    if path != "plain":
        return _engine(case, path, stage, device)
    loop = reference_loop(case.family, stage, _build(case, device), _build(case, device, TEACHER), case.batch)
    return lambda steps: functools.partial(loop, _images(steps * case.batch, device))


def _build(case: Case, device: str, channels: tuple[int, ...] | None = None, seed: int = 0) -> Gan:
    return to_device(build(Architecture(family=case.family, channels=channels or case.channels), seed), device)


def _images(number: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 1, 32, 32), generator=generator).to(torch.uint8).to(device)


def _scoring(case: Case, path: str, device: str) -> Prepare:
    from kdgan_compress.evaluation import score_images

    generator = _build(case, device).generator.eval()

    def batch_by_batch(images: Tensor) -> None:
        with torch.no_grad():
            for batch in images.split(case.batch):
                anomaly_score(generator, normalize_images(batch))

    score = batch_by_batch if path == "plain" else functools.partial(score_images, generator)
    return lambda steps: functools.partial(score, _images(steps * case.batch, device))


def _engine(case: Case, path: str, stage: Stage, device: str) -> Prepare:
    """The fast engine; where a teacher is cached, its features are random numbers."""
    losses, members = stage.loss_set, range(case.fleet(path))
    is_cached = losses.needs_teacher and not losses.trains_teacher and path != "engine"

    def state(gan: Gan) -> TrainState:
        return TrainState(gan, objective=FAMILIES[case.family].objective(), make_optimizer=FusedAdam)

    needs_teacher = losses.needs_teacher and not is_cached
    students = [state(_build(case, device, seed=k)) for k in members]
    teachers = [state(_build(case, device, TEACHER)) if needs_teacher else None for _ in members]

    def prepare(steps: int) -> Callable[[], object]:
        images = _images(steps * case.batch, device)
        cache = TeacherCache(torch.rand(len(images), NUM_COLUMNS, device=device), FEATURE_SHAPES)
        runs = [
            StageRun(
                stage=stage,
                stage_index=0,
                student=students[k],
                teacher=teachers[k],
                images=images,
                k_l=DistillationLoss(),
                settings=TrainingSettings(case.batch, seed=k),
                targets=cache if is_cached else None,
            )
            for k in members
        ]
        for run in runs:
            run.begin()
        return lambda: list(train_stage([StageProgress(run) for run in runs], fast_engine))

    return prepare
