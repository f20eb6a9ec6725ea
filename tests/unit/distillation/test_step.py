"""The training step: its text, and its updates against GANomaly's published order, which runs D four times per step."""

import copy
import inspect
import re

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.accel.optimizers import FusedAdam
from kdgan_compress.distillation import step
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import Engine, epoch_order, train_schedulers
from kdgan_compress.gans import Architecture, build

BETAS, DECAY, RATE, TEACHER_RATE, SEED = (0.5, 0.99), 0.9, 2e-3, 5e-4, 4

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_module_keeps_its_promise_to_readers():
    text = inspect.getsource(step)
    assert len(text.splitlines()) <= 80
    assert not re.search("fleet|member|cache|file|cuda|gpu|accel", text, re.IGNORECASE)
    assert "graph" not in text.lower().replace("retain_graph", "")
    assert len(text.split("def train_step(")[1].split("def weighted_k_l")) == 2  # the step itself is here, in one piece


def make_gan(seed, channels=(1, 2), norm="instance"):
    return build(Architecture(channels=channels, image_size=16, latent_size=8, norm=norm), seed)


def make_images(number, seed=0):
    return torch.randint(0, 256, (number, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make_scheduler(gans, loss_set, images, batch_size, epochs, **state):
    student, teacher = (gan and TrainState(gan, BETAS, **({"ema_decay": DECAY} | state)) for gan in gans)
    stages = [Stage("x", loss_set, epochs, RATE, TEACHER_RATE)]
    settings = TrainingSettings(batch_size, seed=SEED)
    return ProgressiveScheduler(stages, student, images, teacher, settings=settings)


class Ganomaly:
    """GANomaly's training step as its authors' code has it."""

    def __init__(self, gan):
        self.netg, self.netd = gan.generator, gan.discriminator
        self.optimizer_g = torch.optim.Adam(self.netg.parameters(), betas=BETAS)
        self.optimizer_d = torch.optim.Adam(self.netd.parameters(), betas=BETAS)
        self.average, self.num_steps = [p.detach().clone() for p in self.netg.parameters()], 0

    def optimize(self, x, rate, targets=None, own_losses=True):
        for optimizer in (self.optimizer_g, self.optimizer_d):
            optimizer.param_groups[0]["lr"] = rate
        latent_i, fake, latent_o = self.netg(x)
        loss_g = 0.0
        if own_losses:
            (_, pred_real), (_, pred_fake) = self.netd(x), self.netd(fake.detach())
            loss_adv = (self.netd(x)[0] - self.netd(fake)[0]).square().mean()
            loss_g = 10 * (x - fake).abs().mean() + (latent_i - latent_o).square().mean() + loss_adv
        if targets is not None:
            z1, x_hat, z2 = targets
            distance = 50 * (latent_i - z1).square().mean() + 10 * (fake - x_hat).abs().mean()
            loss_g = loss_g + distance + 50 * (latent_o - z2).square().mean()
        self.optimizer_g.zero_grad()
        loss_g.backward(retain_graph=True)
        self.optimizer_g.step()
        decay = min(DECAY, self.num_steps / (self.num_steps + 10))
        self.average = [
            decay * mean + (1 - decay) * p.detach()
            for mean, p in zip(self.average, self.netg.parameters(), strict=True)
        ]
        self.num_steps += 1
        if own_losses:
            self.optimizer_d.zero_grad()
            real, fake = torch.ones_like(pred_real), torch.zeros_like(pred_fake)
            ((cross_entropy(pred_real, real) + cross_entropy(pred_fake, fake)) / 2).backward()
            self.optimizer_d.step()


def assert_same(state, plain):
    for network, expected in ((state.gan.generator, plain.netg), (state.gan.discriminator, plain.netd)):
        weights = dict(network.named_parameters())
        torch.testing.assert_close(weights, dict(expected.named_parameters()), rtol=1e-6, atol=1e-9)
    average = [p.detach() for p in state.ema_generator.parameters()]
    torch.testing.assert_close(average, plain.average, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("structure", "batch_size", "norm"),
    [
        ("from-scratch", 1, "instance"),
        ("from-scratch", 3, "instance"),
        ("from-scratch", 3, "batch"),
        (2, 1, "instance"),
        (4, 3, "instance"),
        (4, 1, "batch"),
    ],
)
def test_100_steps_are_ganomalys(structure, batch_size, norm):
    num_images, epochs = {1: (10, 10), 3: (11, 25)}[batch_size]
    loss_set = STRUCTURES.get(structure, FROM_SCRATCH)
    gans = make_gan(1, norm=norm), None if structure == "from-scratch" else make_gan(2, (2, 4))
    start = copy.deepcopy(gans)
    images = make_images(num_images)
    scheduler = make_scheduler(gans, loss_set, images, batch_size, epochs)
    records = list(train_schedulers([scheduler]))

    student, teacher = (gan and Ganomaly(gan) for gan in copy.deepcopy(start))
    batches = [
        chosen for epoch in range(1, epochs + 1) for chosen in epoch_order(num_images, SEED, 0, epoch).split(batch_size)
    ]
    assert len(batches) == 100
    for number, chosen in enumerate(batches):
        x, factor = images[chosen].double() / 127.5 - 1, 1 - number / 100
        if loss_set.trains_teacher:
            teacher.optimize(x, TEACHER_RATE * factor)
        targets = None if teacher is None else [output.detach() for output in teacher.netg(x)]
        student.optimize(x, RATE * factor, targets)

    assert len(records) == epochs
    assert_same(scheduler.student, student)
    if loss_set.trains_teacher:
        assert_same(scheduler.teacher, teacher)
    for name, network in gans[0].networks().items():  # a hundred steps of a thousandth go somewhere
        assert (network.encoder.head.weight - start[0].networks()[name].encoder.head.weight).abs().max() > 0.02


@pytest.mark.parametrize(("norm", "per_step"), [("instance", 1), ("batch", 2)])
@pytest.mark.parametrize(
    ("structure", "of_student", "of_teacher"), [("from-scratch", 1, 0), (1, 0, 0), (2, 1, 0), (3, 0, 1), (4, 1, 1)]
)
def test_a_step_runs_each_network_no_more_often_than_it_needs(structure, of_student, of_teacher, norm, per_step):
    gans = make_gan(1, norm=norm), None if structure == "from-scratch" else make_gan(2, (2, 4), norm)
    calls = {}
    for role, gan in zip(("student", "teacher"), gans, strict=True):
        for name, network in ({} if gan is None else gan.networks()).items():
            calls[role, name] = 0

            def count(*_, key=(role, name)):
                calls[key] += 1

            network.register_forward_hook(count)
    scheduler = make_scheduler(gans, STRUCTURES.get(structure, FROM_SCRATCH), make_images(11), 3, 2)
    next(train_schedulers([scheduler]))  # what the beginning of a stage needs is not counted
    before, running = dict(calls), train_schedulers([scheduler])
    next(running)
    steps = {key: (number - before[key]) / 4 for key, number in calls.items()}
    assert steps["student", "generator"] == 1
    assert steps["student", "discriminator"] == of_student * per_step
    if gans[1] is not None:
        assert steps["teacher", "generator"] == 1 + of_teacher  # its own update, and its features after that
        assert steps["teacher", "discriminator"] == of_teacher * per_step


@pytest.mark.parametrize("structure", ["from-scratch", 1, 2, 3, 4])
def test_a_step_asks_for_the_teachers_features_after_its_update_and_names_every_loss(structure):
    loss_set = STRUCTURES.get(structure, FROM_SCRATCH)
    student, teacher = TrainState(make_gan(1)), TrainState(make_gan(2, (2, 4)))
    images, indices, calls = make_images(5), torch.tensor([4, 0, 2]), []
    networks = ("generator", "discriminator")
    for state in (student, teacher):
        state.begin_stage(networks)
        state.set_learning_rate(1e-3)
    start = teacher.gan.generator.encoder.head.weight.detach().clone()

    def targets(batch, chosen):
        calls.append((batch, chosen, torch.equal(teacher.gan.generator.encoder.head.weight, start)))
        with torch.no_grad():
            return dict(zip(("z1", "x_hat", "z2"), teacher.gan.generator(batch), strict=True))

    k_l = DistillationLoss()
    with student.hooked(k_l.taps(student.gan)), teacher.hooked(k_l.taps(teacher.gan)):
        models = step.StageModels(
            student=student,
            teacher=teacher if loss_set.trains_teacher else None,
            loss_set=loss_set,
            k_l=k_l,
            load_images=lambda chosen: images[chosen] / 127.5 - 1,
            targets=targets if loss_set.distils else None,
        )
        losses = step.train_step(models, indices, 0)

    gan_losses = ["s_con", "s_adv", "s_enc", "s_ce"]
    expected = [f"teacher_{name}" for name in gan_losses] * loss_set.trains_teacher
    expected += gan_losses * (loss_set.mu > 0) + ["k1", "kx", "k2"] * loss_set.distils
    assert list(losses) == expected
    assert all(loss.shape == () for loss in losses.values())
    assert len(calls) == loss_set.distils
    for batch, chosen, is_untrained in calls:
        assert torch.equal(batch, images[indices] / 127.5 - 1)
        assert chosen is indices
        assert is_untrained != loss_set.trains_teacher


# What a step asks of the device


class Watch(TorchDispatchMode):
    """Operators in the order in which they run; the tests add their own marks."""

    NUMBERS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "_unique2")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.NUMBERS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watch(monkeypatch):
    """Everything by which a tensor's value can reach Python."""
    watch = Watch()
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        original = getattr(torch.Tensor, name)

        def spied(self, *args, original=original, name=name, **kwargs):
            watch.seen.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, spied)
    return watch


def runs(structure, number):
    loss_set = STRUCTURES.get(structure, FROM_SCRATCH)
    for member in range(number):
        gans = make_gan(member), None if structure == "from-scratch" else make_gan(10 + member, (2, 4))
        # No EMA: on a CPU, and only there, it reads its counts on the host, which waits for nothing.
        images, state = make_images(23 - 5 * member, member), {"ema_decay": 0.0, "make_optimizer": FusedAdam}
        yield make_scheduler(gans, loss_set, images, 2, 2, **state)


@pytest.mark.parametrize(("engine", "number"), [(Engine, 1), (fast_engine, 1), (fast_engine, 3)])
@pytest.mark.parametrize("structure", ["from-scratch", 1, 2, 3, 4])
def test_between_records_no_step_waits_for_the_device(watch, monkeypatch, structure, engine, number):
    schedulers, original = list(runs(structure, number)), TrainState.update

    def marked(*args, **kwargs):
        watch.seen.append("step")
        original(*args, **kwargs)

    monkeypatch.setattr(TrainState, "update", marked)
    between = []
    with watch:
        running = train_schedulers(schedulers, engine)
        while next(running, None) is not None:
            between.append(tuple(watch.seen))
            watch.seen.clear()
    several = [seen for seen in between if seen.count("step") > 2]
    assert len(several) >= 2
    for seen in several:
        steps = [index for index, name in enumerate(seen) if name == "step"]
        assert set(seen[steps[0] : steps[-1] + 1]) == {"step"}
        assert len(seen) > steps[-1] + 1  # the record itself is read from the device


def test_the_watch_sees_what_would_wait(watch):
    value = torch.ones(1)
    with watch:
        for wait in (float, int, bool, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, torch.is_nonzero):
            watch.seen.clear()
            wait(value)
            assert watch.seen, wait
