"""Training speed on the machine at hand: the engine against the same steps written out as a bare loop, in turns.

The bare loop has no hooks, records or objective between it and torch: what the engine takes more is its overhead.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.optim.swa_utils import AveragedModel

from kdgan_compress.gans import Architecture, Gan, build, to_network_range
from kdgan_compress.objectives import Distillation, GanomalyObjective
from kdgan_compress.policies import ALONE, STRUCTURES, LossSet, Stage
from kdgan_compress.training import Learner, TrainingSettings, begin_stage, run_stage
from kdgan_compress.workflows.machine import machine_name, peak_rss_mb, threads

TEACHER = (64, 128, 256)
CASES: tuple[tuple[str, tuple[int, ...], int], ...] = (
    ("alone", TEACHER, 1),
    ("alone", TEACHER, 16),
    ("alone", (2, 4, 8), 1),
    ("alone", (2, 4, 8), 16),
    ("2", (2, 4, 8), 1),
    ("2", (2, 4, 8), 16),
    ("3", (2, 4, 8), 16),
)
"""Structure, channels, batch size."""

ROUNDS = 9
SECONDS_A_ROUND = 1.0
RATE, TEACHER_RATE = 4e-3, 1e-4


@dataclass(frozen=True)
class Times:
    """Microseconds an image over all rounds."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class BenchRow:
    """One way of training one model.

    Attributes:
        work: ``train``.
        path: ``plain`` (the bare loop) or ``engine``.
        structure: ``alone`` or a structure's number.
        channels: The trained model's plan.
        batch: Images a step.
        fleet: Models trained at once.
        us_per_image: Time of a training image and model.
        speedup: Over ``plain`` of the same case: the median of the rounds' ratios.
        peak_rss_mb: The process's peak so far, in MB; None where the system doesn't tell.
    """

    work: str
    path: str
    structure: str
    channels: str
    batch: int
    fleet: int
    us_per_image: Times
    speedup: float
    peak_rss_mb: float | None


@dataclass(frozen=True)
class BenchReport:
    """All rows, and the machine they were measured on with one thread."""

    machine: str
    rows: list[BenchRow]


def bench(announce: Callable[[BenchRow], None] | None = None) -> BenchReport:
    """Measure every case with one thread, bare loop and engine in turns; about three minutes.

    Args:
        announce: Told each row when it is measured.
    """
    rows: list[BenchRow] = []
    with threads(1):
        for structure, channels, batch in CASES:
            for row in _measure(structure, channels, batch):
                rows.append(row)
                if announce:
                    announce(row)
    return BenchReport(machine_name(), rows)


def _measure(structure: str, channels: tuple[int, ...], batch: int) -> list[BenchRow]:
    losses = ALONE if structure == "alone" else STRUCTURES[int(structure)]
    stage = Stage(structure, losses, epochs=1, learning_rate=RATE, teacher_learning_rate=TEACHER_RATE)
    architecture = Architecture(channels=channels)
    paths: dict[str, Callable[[Tensor], None]] = {
        name: run(stage, build(architecture), build(Architecture(channels=TEACHER)), batch)
        for name, run in (("plain", _plain), ("engine", _engine))
    }
    images = torch.randint(0, 256, (batch, 1, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    paths["plain"](images)
    step_seconds = _time(paths["plain"], images.repeat(2, 1, 1, 1)) * batch
    images = images.repeat(max(2, int(SECONDS_A_ROUND / step_seconds)), 1, 1, 1)
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _, (name, run) in itertools.product(range(ROUNDS), paths.items()):
        times[name].append(_time(run, images))
    return [
        BenchRow(
            work="train",
            path=name,
            structure=structure,
            channels=architecture.plan,
            batch=batch,
            fleet=1,
            us_per_image=Times(*(pick(own) * 1e6 for pick in (median, min, max))),
            speedup=median(plain / other for plain, other in zip(times["plain"], own, strict=True)),
            peak_rss_mb=peak_rss_mb(),
        )
        for name, own in times.items()
    ]


def _time(run: Callable[[Tensor], None], images: Tensor) -> float:
    """Seconds an image."""
    start = time.perf_counter()
    run(images)
    return (time.perf_counter() - start) / len(images)


def _engine(stage: Stage, student: Gan, teacher: Gan, batch: int) -> Callable[[Tensor], None]:
    settings = TrainingSettings(batch_size=batch)
    learner, master = (Learner(gan) for gan in (student, teacher))
    begin_stage(stage, learner, master, torch.zeros(1, 1, 32, 32, dtype=torch.uint8))

    def run(images: Tensor) -> None:
        for _ in run_stage(stage, 0, learner, master, images, GanomalyObjective(), Distillation(), settings):
            pass

    return run


class _Bare:
    """A GAN's own step without an engine: forward, D(x), D(x̂), G's update, D(x̂) again, D's update."""

    def __init__(self, gan: Gan, own_losses: bool) -> None:
        assert gan.discriminator is not None
        self.generator, self.discriminator, self.own_losses = gan.generator, gan.discriminator, own_losses
        self.optimizers: list[Any] = [
            torch.optim.Adam(network.parameters(), betas=(0.5, 0.99), fused=True)
            for network in (self.generator, self.discriminator)
        ]
        self.parameters = [list(network.parameters()) for network in (self.generator, self.discriminator)]
        self.average = AveragedModel(self.generator, multi_avg_fn=_lerp)

    def step(self, images: Tensor, rate: float, targets: tuple[Tensor, ...] | None) -> None:
        z1, x_hat, z2 = self.generator(images)
        loss = torch.zeros(())
        if self.own_losses:
            features, logit = self.discriminator(images)
            features_hat, _ = self.discriminator(x_hat)
            loss = 10 * (images - x_hat).abs().mean() + (features.detach() - features_hat).square().mean()
            loss = loss + (z1 - z2).square().mean()
        if targets is not None:
            distance = 50 * (z1 - targets[0]).square().mean() + 10 * (x_hat - targets[1]).abs().mean()
            loss = loss + distance + 50 * (z2 - targets[2]).square().mean()
        self._move(0, loss, rate)
        self.average.update_parameters(self.generator)
        if self.own_losses:
            _, logit_hat = self.discriminator(x_hat.detach())
            real, fake = torch.ones_like(logit), torch.zeros_like(logit_hat)
            self._move(1, (cross_entropy(logit, real) + cross_entropy(logit_hat, fake)) / 2, rate)

    def _move(self, network: int, loss: Tensor, rate: float) -> None:
        self.optimizers[network].param_groups[0]["lr"] = rate
        self.optimizers[network].zero_grad()
        loss.backward(inputs=self.parameters[network])
        self.optimizers[network].step()


def _plain(stage: Stage, student: Gan, teacher: Gan, batch: int) -> Callable[[Tensor], None]:
    losses: LossSet = stage.loss_set
    pupil, master = _Bare(student, losses.mu > 0), _Bare(teacher, own_losses=True)
    if not losses.trains_teacher:
        teacher.generator.requires_grad_(False)

    def run(images: Tensor) -> None:
        order = torch.randperm(len(images)).split(batch)
        for number, chosen in enumerate(order):
            chunk = to_network_range(images[chosen])
            fall = 1 - number / len(order)
            targets = None
            if losses.trains_teacher:
                master.step(chunk, stage.teacher_learning_rate * fall, None)
            if losses.lam > 0:
                with torch.no_grad():
                    targets = master.generator(chunk)
            pupil.step(chunk, stage.learning_rate * fall, targets)

    return run


def _lerp(averaged: Any, current: Any, num_averaged: Any) -> None:
    step = float(num_averaged)
    torch._foreach_lerp_(averaged, current, 1 - min(0.99, step / (step + 10)))
