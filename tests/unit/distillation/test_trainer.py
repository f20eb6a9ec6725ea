"""One stage of training against a loop written by hand: losses, order of updates, EMA and torch's Adam."""

import copy
import re
from collections import defaultdict
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from kdgan_compress.distillation import train_log
from kdgan_compress.distillation.hooks import Connectors
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import StageRun, TrainingSettings
from kdgan_compress.distillation.train_log import DivergedError
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import Engine, StageProgress, epoch_order, train_stage
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build
from kdgan_compress.gans.ede import GanomalyObjective

BETAS = (0.5, 0.99)
DECAY = 0.3
RATE, TEACHER_RATE = 2e-3, 5e-4
MOMENTS = "exp_avg", "exp_avg_sq", "step"
OBJECTIVE = GanomalyObjective(w_con=7, w_enc=3, w_adv=2)
K_L = DistillationLoss(w1=4, wx=5, w2=6)
FIFTH = LossSet(alpha=0.7, mu=0.3, nu=2, lam=0.5)


pytestmark = pytest.mark.usefixtures("one_thread")


def make_images(number):
    return torch.randint(
        0, 256, (number, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
    )


def make_gan(channels, seed, latent=16, norm="instance", family="ede"):
    return build(Architecture(family=family, channels=channels, latent_size=latent, norm=norm), seed)


def make_pair(**student):
    return make_gan((1, 2, 4), 1, **student), make_gan((2, 4, 8), 2)


class Spy:
    """GANomaly's objective, and a list of the batches that it was asked to train on."""

    def __init__(self):
        self.batches, self.steps = [], []

    def train_step(self, state, images, weight_g, weight_d, step=0, k_l=None):
        self.batches.append(images)
        self.steps.append(step)
        return OBJECTIVE.train_step(state, images, weight_g, weight_d, step, k_l)


def records_of(run):
    """The records of one stage, which begins at once."""
    run.begin()
    return (record for _, record in train_stage([StageProgress(run)]))


def train(loss_set, student, teacher, images, batch_size=4, epochs=2, stage_index=0, **settings):
    """The trainer's way: states, records and the batches that the student saw."""
    betas, decay = settings.pop("betas", BETAS), settings.pop("ema_decay", DECAY)
    spies = Spy(), Spy()
    states = [gan and TrainState(gan, betas, decay, spy) for gan, spy in zip((student, teacher), spies, strict=True)]
    stage = Stage("x", loss_set, epochs, RATE, TEACHER_RATE)
    records = list(
        records_of(StageRun(stage, stage_index, *states, images, K_L, TrainingSettings(batch_size, **settings)))
    )
    of_student, of_teacher = spies
    assert of_teacher.steps == (of_student.steps if loss_set.trains_teacher else [])
    assert all(map(torch.equal, of_student.batches, of_teacher.batches))
    return *states, records, of_student.batches


class Plain:
    """A GAN trained by hand."""

    def __init__(self, gan, decay=DECAY, connectors=None):
        self.gan, self.decay, self.connectors = gan, decay, connectors
        connecting = [] if connectors is None else list(connectors.parameters())
        self.adam = {
            "generator": torch.optim.Adam([*gan.generator.parameters(), *connecting], betas=BETAS),
            "discriminator": torch.optim.Adam(gan.discriminator.parameters(), betas=BETAS),
        }
        self.steps = 0
        self.average = [parameter.detach().clone() for parameter in gan.generator.parameters()]

    def descend(self, network, loss, rate):
        optimizer = self.adam[network]
        group = optimizer.param_groups[0]
        group["lr"] = rate
        for parameter, gradient in zip(group["params"], torch.autograd.grad(loss, group["params"]), strict=True):
            parameter.grad = gradient
        optimizer.step()

    def step(self, x, weight_g, weight_d, rate, targets=None, lam=0.0):
        generator, discriminator = self.gan.generator, self.gan.discriminator
        z1, x_hat, z2 = generator(x)
        terms, loss = {}, 0.0
        if weight_g > 0:
            features, features_hat = discriminator(x)[0].detach(), discriminator(x_hat)[0]
            terms["s_con"] = (x - x_hat).abs().mean()
            terms["s_enc"] = (z1 - z2).square().mean()
            terms["s_adv"] = (features - features_hat).square().mean()
            loss = loss + weight_g * (7 * terms["s_con"] + 3 * terms["s_enc"] + 2 * terms["s_adv"])
        if targets is not None:
            z1_t, x_hat_t, z2_t = targets
            if self.connectors is not None:
                z1, z2 = self.connectors.maps["z1"](z1), self.connectors.maps["z2"](z2)
            terms["k1"] = (z1 - z1_t).square().mean()
            terms["kx"] = (x_hat - x_hat_t).abs().mean()
            terms["k2"] = (z2 - z2_t).square().mean()
            loss = loss + lam * (4 * terms["k1"] + 5 * terms["kx"] + 6 * terms["k2"])
        if terms:
            self.descend("generator", loss, rate)
            decay = min(self.decay, self.steps / (self.steps + 10))
            for mean, parameter in zip(self.average, generator.parameters(), strict=True):
                mean.mul_(decay).add_(parameter.detach(), alpha=1 - decay)
            self.steps += 1
        if weight_d > 0:
            real, fake = discriminator(x)[1], discriminator(x_hat.detach())[1]
            terms["s_ce"] = (softplus(-real).mean() + softplus(fake).mean()) / 2
            self.descend("discriminator", weight_d * terms["s_ce"], rate)
        return {name: term.item() for name, term in terms.items()}


def train_plainly(loss_set, student, teacher, batches, decays=True):
    """The same stage by hand; each epoch's mean losses."""
    epochs, sums, seen = [], defaultdict(float), 0
    for step, x in enumerate(batches):
        factor = 1 - step / len(batches) if decays else 1
        terms, targets = {}, None
        if loss_set.alpha > 0 or loss_set.beta > 0:
            of_teacher = teacher.step(x, loss_set.alpha, loss_set.beta, TEACHER_RATE * factor)
            terms |= {f"teacher_{name}": value for name, value in of_teacher.items()}
        if loss_set.lam > 0:
            targets = [output.detach() for output in teacher.gan.generator(x)]
        terms |= student.step(x, loss_set.mu, loss_set.nu, RATE * factor, targets, loss_set.lam)
        for name, value in terms.items():
            sums[name] += value * len(x)
        seen += len(x)
        if 2 * (step + 1) % len(batches) == 0:  # two epochs
            epochs.append({name: total / seen for name, total in sums.items()})
            sums, seen = defaultdict(float), 0
    return epochs


def assert_near(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-10)


def assert_same_training(state, plain, gan):
    """Weights, the optimisers' moments and step counts, and the EMA, to a rounding error."""
    for name, network in gan.networks().items():
        assert_near(network.state_dict(), plain.gan.networks()[name].state_dict())
    for name, saved in state.state_dict()["optimizers"].items():
        expected = plain.adam[name].state_dict()["state"]
        assert saved["state"].keys() == expected.keys()
        for index, parameter in expected.items():
            for moment in MOMENTS:
                assert_near(saved["state"][index][moment], parameter[moment])
    if plain.steps:
        assert_near([parameter.detach() for parameter in state.ema_generator.parameters()], plain.average)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("batch_size", "num_images"), [(1, 3), (4, 10)], ids=["batch1", "batch4-4-2"])
@pytest.mark.parametrize(
    "loss_set", [*STRUCTURES.values(), FROM_SCRATCH, FIFTH], ids=["1", "2", "3", "4", "from-scratch", "fractions"]
)
def test_a_stage_is_the_loop_written_by_hand(loss_set, batch_size, num_images):
    student, teacher = make_pair()
    by_hand = copy.deepcopy((student, teacher))
    images = make_images(num_images)
    state, teacher_state, records, batches = train(loss_set, student, teacher, images, batch_size)
    plain, plain_teacher = Plain(by_hand[0]), Plain(by_hand[1])
    epochs = train_plainly(loss_set, plain, plain_teacher, batches)

    assert len(batches) == 6
    assert_same_training(state, plain, student)
    assert_same_training(teacher_state, plain_teacher, teacher)
    assert [(r.stage, r.epoch, r.epoch_done, r.num_images) for r in records] == [
        ("x", 1, True, num_images),
        ("x", 2, True, num_images),
    ]
    for record, expected in zip(records, epochs, strict=True):
        assert record.losses == pytest.approx(expected, rel=1e-7)


@pytest.mark.usefixtures("double")
def test_constant_learning_rate_and_no_ema():
    student, _ = make_pair()
    plain = Plain(copy.deepcopy(student))
    settings = {"learning_rate_decay": "constant", "ema_decay": 0.0}
    state, _, _, batches = train(FROM_SCRATCH, student, None, make_images(10), **settings)
    train_plainly(FROM_SCRATCH, plain, None, batches, decays=False)
    assert_near(student.generator.state_dict(), plain.gan.generator.state_dict())
    assert state.ema_generator is student.generator


@pytest.mark.usefixtures("double")
def test_connectors_are_trained_where_latent_sizes_differ():
    student, teacher = make_pair(latent=8)
    images = make_images(10)
    torch.manual_seed(5)
    state, _, _, batches = train(STRUCTURES[2], copy.deepcopy(student), teacher, images)
    trained = state.connectors

    torch.manual_seed(5)
    fresh = TrainState(student, BETAS, DECAY)
    stage = Stage("x", STRUCTURES[2], 2, RATE, TEACHER_RATE)
    StageRun(stage, 0, fresh, TrainState(teacher, BETAS, DECAY), images, K_L, TrainingSettings()).begin()
    start = copy.deepcopy(fresh.connectors.state_dict())
    plain = Plain(student, connectors=fresh.connectors)
    train_plainly(STRUCTURES[2], plain, Plain(teacher), batches)

    assert {name: tuple(weight.shape) for name, weight in start.items()} == {
        "maps.z1.weight": (16, 8),
        "maps.z2.weight": (16, 8),
    }
    assert not any(torch.equal(start[name], weight) for name, weight in trained.state_dict().items())
    assert_near(trained.state_dict(), fresh.connectors.state_dict())
    assert_near(state.gan.generator.state_dict(), student.generator.state_dict())


def test_connectors_have_the_order_of_the_taps():
    # A process with another hash seed draws the same weights and has the same order of parameters in its optimiser.
    names = [f"tap{i}" for i in range(12)]
    connectors = Connectors({n: torch.zeros(1, 2) for n in names}, {n: torch.zeros(1, 3) for n in reversed(names)})
    assert list(connectors.maps) == names


@pytest.mark.parametrize("structure", [1, 2])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_frozen_teacher_stays_as_it_was(structure, norm):
    student, teacher = make_gan((1, 2, 4), 1), make_gan((2, 4, 8), 2, norm=norm)
    teacher.generator.train()
    teacher.discriminator.eval()
    teacher.generator.decoder.head.weight.requires_grad_(False)
    before = {name: copy.deepcopy(network.state_dict()) for name, network in teacher.networks().items()}
    start = copy.deepcopy(student.generator.state_dict())
    train(STRUCTURES[structure], student, teacher, make_images(6))

    for name, network in teacher.networks().items():
        torch.testing.assert_close(network.state_dict(), before[name], rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(module.training for module in teacher.generator.modules())
    assert not any(module.training for module in teacher.discriminator.modules())
    held = [name for name, p in teacher.generator.named_parameters() if not p.requires_grad]
    assert held == ["decoder.head.weight"]
    assert all(p.requires_grad for p in teacher.discriminator.parameters())
    assert not torch.equal(start["encoder.head.weight"], student.generator.encoder.head.weight)


@pytest.mark.usefixtures("double")
def test_a_frozen_teacher_with_batch_norm_uses_its_running_statistics():
    student, teacher = make_gan((1, 2, 4), 1), make_gan((2, 4, 8), 2, norm="batch")
    with torch.no_grad():
        for _ in range(20):
            teacher.generator(torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1)))
    plain, plain_teacher = Plain(copy.deepcopy(student)), Plain(copy.deepcopy(teacher))
    state, _, _, batches = train(STRUCTURES[1], student, teacher, make_images(10))
    plain_teacher.gan.generator.eval()
    train_plainly(STRUCTURES[1], plain, plain_teacher, batches)
    assert_same_training(state, plain, student)


def test_the_teachers_flags_are_restored_when_a_stage_is_interrupted():
    student, teacher = make_pair()
    states = [TrainState(gan, BETAS, DECAY) for gan in (student, teacher)]
    stage = Stage("x", STRUCTURES[2], 2, RATE, TEACHER_RATE)
    running = records_of(StageRun(stage, 0, *states, make_images(3), K_L, TrainingSettings(1)))
    next(running)
    assert not teacher.generator.training
    assert not any(parameter.requires_grad for parameter in teacher.generator.parameters())
    running.close()
    del running
    assert teacher.generator.training
    assert all(parameter.requires_grad for parameter in teacher.generator.parameters())
    assert not any(module._forward_hooks for gan in (student, teacher) for module in gan.generator.modules())


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("structure", [3, 4])
def test_a_trained_teacher_is_trained_as_if_alone(structure, norm):
    teacher = make_gan((2, 4, 8), 2, norm=norm)
    start, alone = copy.deepcopy(teacher), copy.deepcopy(teacher)
    images = make_images(10)
    _, state, _, batches = train(STRUCTURES[structure], make_gan((1, 2, 4), 1), teacher, images)
    spy = Spy()
    stage = Stage("x", FROM_SCRATCH, 2, TEACHER_RATE, 1.0)
    alone_state = TrainState(alone, BETAS, DECAY, spy)
    list(records_of(StageRun(stage, 0, alone_state, None, images, K_L, TrainingSettings(4))))

    assert len(spy.batches) == len(batches)
    assert all(map(torch.equal, spy.batches, batches))
    for name, network in alone.networks().items():
        weights = dict(teacher.networks()[name].named_parameters())
        torch.testing.assert_close(weights, dict(network.named_parameters()), rtol=0, atol=0)
        assert not torch.equal(start.networks()[name].encoder.head.weight, network.encoder.head.weight)
    assert state.ema_generator is not teacher.generator


def test_a_loss_set_without_a_discriminator_loss_does_not_change_the_discriminator():
    student, _ = make_pair()
    before = copy.deepcopy(student.discriminator.state_dict())
    train(LossSet(mu=1), student, None, make_images(6))
    torch.testing.assert_close(student.discriminator.state_dict(), before, rtol=0, atol=0)


def test_structure_1_works_for_a_student_without_discriminator_and_z2():
    student = make_gan((1, 2, 4), 1, family="ed")
    student = type(student)(student.generator, student.taps)
    _, _, records, _ = train(STRUCTURES[1], student, make_gan((2, 4, 8), 2), make_images(6))
    assert set(records[0].losses) == {"k1", "kx"}


@pytest.mark.parametrize(("batch_size", "num_images", "sizes"), [(4, 10, [4, 4, 2]), (1, 5, [1] * 5), (16, 3, [3])])
def test_an_epoch_sees_each_image_once(batch_size, num_images, sizes):
    images = make_images(num_images)
    _, _, _, batches = train(FROM_SCRATCH, make_gan((1, 2, 4), 1), None, images, batch_size)
    assert [len(batch) for batch in batches] == sizes * 2
    indices = [
        next(i for i, image in enumerate(images) if torch.equal(image / 127.5 - 1, x)) for x in torch.cat(batches)
    ]
    assert sorted(indices[:num_images]) == sorted(indices[num_images:]) == list(range(num_images))
    if num_images > 3:
        assert indices[:num_images] != indices[num_images:]


def test_the_order_depends_on_seed_stage_and_epoch_alone():
    orders = {
        tuple(epoch_order(50, seed, stage, epoch).tolist()) for seed in (0, 1) for stage in (0, 1) for epoch in (1, 2)
    }
    assert len(orders) == 8
    first = epoch_order(50, 3, 1, 2)
    torch.manual_seed(99)
    assert torch.equal(first, epoch_order(50, 3, 1, 2))


def test_the_order_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    epoch_order(5, 0, 0, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("double")
def test_records_between_epochs_hold_the_means_so_far(monkeypatch):
    monkeypatch.setattr(train_log, "RECORD_EVERY_IMAGES", 6)
    student, _ = make_pair()
    plain = Plain(copy.deepcopy(student))
    _, _, records, batches = train(FROM_SCRATCH, student, None, make_images(10), epochs=1)
    terms = [plain.step(x, 1, 1, RATE * (1 - step / 3)) for step, x in enumerate(batches)]
    assert [(r.epoch_done, r.num_images) for r in records] == [(False, 8), (True, 10)]
    for name, value in records[0].losses.items():
        assert value == pytest.approx((terms[0][name] + terms[1][name]) / 2, rel=1e-7)
    assert 0 < records[0].seconds < records[1].seconds


def test_finished_epochs_are_skipped():
    images = make_images(6)
    _, _, whole, batches = train(FROM_SCRATCH, make_gan((1, 2, 4), 1), None, images, epochs=3)
    spy = Spy()
    student = TrainState(make_gan((1, 2, 4), 1), BETAS, DECAY, spy)
    stage = Stage("x", FROM_SCRATCH, 3, RATE, RATE)
    rest = list(records_of(StageRun(stage, 0, student, None, images, K_L, TrainingSettings(4), epochs_done=2)))
    assert spy.steps == [4, 5]
    assert [record.epoch for record in rest] == [3]
    assert [record.epoch for record in whole] == [1, 2, 3]
    assert all(map(torch.equal, spy.batches, batches[-2:]))


class Scripted:
    """An objective that updates nothing and whose losses are given, a dict per batch."""

    def __init__(self, script):
        self.script = script

    def train_step(self, state, images, weight_g, weight_d, step=0, k_l=None):
        return {name: torch.tensor(value) for name, value in self.script[step].items()}


def play(script, epochs=2, epochs_done=0, num_images=10):
    student = TrainState(make_gan((1, 2, 4), 1), BETAS, DECAY, Scripted(script))
    stage, images = Stage("x", FROM_SCRATCH, epochs, RATE), make_images(num_images)
    return records_of(StageRun(stage, 0, student, None, images, K_L, TrainingSettings(4), epochs_done))


def error_message(record):
    assert isinstance(record, DivergedError)
    assert isinstance(record, KdganError)
    return str(record)


@pytest.mark.parametrize("every", [4, 8, 512])
def test_a_losss_mean_is_over_the_images_that_had_it(monkeypatch, every):
    monkeypatch.setattr(train_log, "RECORD_EVERY_IMAGES", every)
    script = [{"a": 1.0}, {"a": 4.0, "b": 5.0}, {"b": 8.0, "c": 7.0}]  # batches of 4, 4 and 2
    records = list(play([*script, {}, {}, {"b": 1.0}]))
    first, second = (record.losses for record in records if record.epoch_done)
    assert first == pytest.approx({"a": np.average([1, 4]), "b": np.average([5, 8], weights=[4, 2]), "c": 7})
    assert second == {"b": 1.0}
    early = {4: {"a": 1.0}, 8: {"a": 2.5, "b": 5.0}, 512: first}[every]
    assert records[0].losses == early


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("epochs_done", [0, 1])
def test_a_loss_that_is_not_finite_ends_the_training(value, epochs_done):
    script = [{"a": 1.0}] * 4 + [{"a": 2.0, "b": value}, {"a": value, "b": value}]  # three batches per epoch
    *records, last = play(script, 3, epochs_done)
    assert [record.epoch for record in records] == [1][epochs_done:]
    assert re.search(rf"finite; b is {value} at step 5 of stage x \(epoch 2\)", error_message(last))


def test_a_loss_that_is_not_finite_is_reported_at_the_next_record(monkeypatch):
    monkeypatch.setattr(train_log, "RECORD_EVERY_IMAGES", 4)
    first, last = play([{"a": 1.0}, {"b": float("nan")}, {}])
    assert first.losses == {"a": 1.0}
    assert "b is nan at step 2 " in error_message(last)


def test_the_first_of_several_losses_that_are_not_finite_is_reported():
    (last,) = play([{"a": 1.0, "b": float("inf"), "c": float("nan")}, {"a": float("nan")}, {}])
    assert "b is inf at step 1 " in error_message(last)


def test_a_learning_rate_that_is_far_too_large_is_reported():
    student = TrainState(make_gan((1, 2, 4), 1), BETAS, DECAY)
    stage = Stage("from-scratch", FROM_SCRATCH, 5, 1e30)
    *_, last = records_of(StageRun(stage, 0, student, None, make_images(8), K_L, TrainingSettings(4)))
    pattern = r"at step \d+ of stage from-scratch \(epoch \d\)\. Lower the learning rate"
    assert re.search(pattern, error_message(last))


def test_a_trained_teachers_bad_loss_is_reported_by_its_name():
    script = [{"bad": float("nan")}]
    student = TrainState(make_gan((1, 2, 4), 1))
    teacher = TrainState(make_gan((2, 4, 8), 2), objective=Scripted(script))
    (last,) = records_of(
        StageRun(Stage("x", STRUCTURES[3], 1, RATE), 0, student, teacher, make_images(4), K_L, TrainingSettings(4))
    )
    assert "teacher_bad is nan at step 1" in error_message(last)


def test_the_plain_engine_trains_one_model():
    run = StageRun(
        Stage("x", FROM_SCRATCH, 1, RATE),
        0,
        TrainState(make_gan((1, 2, 4), 1)),
        None,
        make_images(4),
        K_L,
        TrainingSettings(),
    )
    with ExitStack() as stack, pytest.raises(KdganError, match=r"one model; got 2.*fast_engine"):
        Engine([run, run], stack)
