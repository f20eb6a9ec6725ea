"""A fleet's members against the same schedulers run alone, and what members must agree in."""

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.accel.fleet import FleetState
from kdgan_compress.accel.optimizers import FusedAdam
from kdgan_compress.accel.teacher_cache import TeacherCache, cache_shapes, teacher_rows
from kdgan_compress.distillation import train_log
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.terms import Term
from kdgan_compress.distillation.train_log import DivergedError
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import train_schedulers
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, Gan, build
from kdgan_compress.gans.cvgad import CvgadObjective
from kdgan_compress.gans.ede import GanomalyObjective
from kdgan_compress.losses import discriminator_cross_entropy, l1, l2

SIZES = (30, 21, 13)
"""At batch size 8, epochs have 4, 3 and 2 steps, so that members' records come sometimes together."""

FEW = (7, 3, 4)
CHAINS = [(1,), (2,), (3,), (4,), ("from-scratch",), (2, 3), (3, 2)]

pytestmark = pytest.mark.usefixtures("one_thread")


def make_images(number, seed=0):
    return torch.randint(0, 256, (number, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make_state(channels, seed, latent=8, family="ede", norm="instance", **state):
    architecture = Architecture(family=family, channels=channels, image_size=16, latent_size=latent, norm=norm)
    return TrainState(build(architecture, seed), **state)


def make_scheduler(member, chain, batch_size=8, epochs=2, sizes=SIZES, norms=("instance", "instance"), **changes):
    """Number 0, 1, …, which differ in everything in which members may differ."""
    losses = [STRUCTURES.get(structure, FROM_SCRATCH) for structure in chain]
    scale = 1 + member / 4
    stages = [
        Stage(
            f"s{index}",
            LossSet(each.alpha * scale, each.beta / scale, each.mu * scale, each.nu / scale, each.lam * scale),
            epochs + member,
            1e-3 * (1 + member),
            2e-4 * (1 + member),
        )
        for index, each in enumerate(losses)
    ]
    of_student, of_teacher = GanomalyObjective(w_con=5 + member), teacher_objective(member)
    settings = {
        "stages": stages,
        "student": make_state((1, 2), member, norm=norms[0], objective=of_student),
        "images": make_images(sizes[member], member),
        "teacher": make_state((2, 4), 10 + member, norm=norms[1], objective=of_teacher),
        "k_l": DistillationLoss(w1=10.0 * (1 + member), wx=7 - member),
        "settings": TrainingSettings(batch_size, "constant" if member == 1 else "linear", seed=member),
    }
    if chain == ("from-scratch",):
        settings["teacher"] = None
    return ProgressiveScheduler(**(settings | changes))


def teacher_objective(member):
    return GanomalyObjective(w_enc=1 + member, w_adv=2 - member / 4)


def make_schedulers(chain, batch_sizes=(8, 8, 8), **changes):
    return [make_scheduler(member, chain, batch_size, **changes) for member, batch_size in enumerate(batch_sizes)]


class History:
    """A scheduler's records and its states after every epoch; its error, if it diverged."""

    def __init__(self):
        self.records, self.states, self.error = [], [], None

    def add(self, scheduler, record):
        assert self.error is None
        if isinstance(record, DivergedError):
            self.error = str(record)
            return
        self.records.append(record)
        if record.epoch_done:
            self.states.append(copy.deepcopy(scheduler.state_dict()))


def run_as_fleet(schedulers, *engine):
    histories = [History() for _ in schedulers]
    for member, record in train_schedulers(schedulers, *(engine or (fast_engine,))):
        histories[member].add(schedulers[member], record)
    return histories


def run_alone(schedulers):
    """By the plain engine, which knows nothing of fleets."""
    histories = []
    for scheduler in schedulers:
        history = History()
        for _, record in train_schedulers([scheduler]):
            history.add(scheduler, record)
        histories.append(history)
    return histories


def assert_same(histories, expected, rtol=1e-6, atol=1e-9):
    """Records, and after every epoch weights, EMAs, moments and positions."""
    for history, alone in zip(histories, expected, strict=True):
        assert history.error == alone.error
        summaries = [
            [(r.stage, r.epoch, r.epoch_done, r.num_images) for r in each.records] for each in (history, alone)
        ]
        assert summaries[0] == summaries[1]
        for record, other in zip(history.records, alone.records, strict=True):
            assert record.losses == pytest.approx(other.losses, rel=rtol, abs=atol)
            assert record.seconds > 0
        for state, other in zip(history.states, alone.states, strict=True):
            assert_same_state(state, other, rtol, atol)


def assert_same_state(state, expected, rtol=1e-6, atol=1e-9):
    plain = ("stage_index", "epochs_done", "images")
    assert [state[name] for name in plain] == [expected[name] for name in plain]
    for name in ("student",) if expected["teacher"] is None else ("student", "teacher"):
        assert state[name]["num_averaged"] == expected[name]["num_averaged"]
        tensors = [
            each[name]["networks"] | {key: value["state"] for key, value in each[name]["optimizers"].items()}
            for each in (state, expected)
        ]
        torch.testing.assert_close(*tensors, rtol=rtol, atol=atol)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("chain", "batch_sizes", "sizes"),
    [
        *((chain, (1, 1, 1), FEW) for chain in CHAINS),
        *((chain, (8, 8, 8), SIZES) for chain in CHAINS),
        ((4,), (3, 1, 2), FEW),
        ((2, 3), (3, 1, 2), FEW),
    ],
    ids=str,
)
def test_a_fleets_member_ends_as_if_alone(chain, batch_sizes, sizes):
    fleet, alone = (make_schedulers(chain, batch_sizes, epochs=1, sizes=sizes) for _ in range(2))
    histories = run_as_fleet(fleet)
    assert_same(histories, run_alone(alone))
    assert [len(history.states) for history in histories] == [len(chain) * (1 + member) for member in range(3)]
    assert [scheduler.position for scheduler in fleet] == [(len(chain), 0)] * 3


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("batch_sizes", "sizes"), [((8, 8, 8), SIZES), ((3, 1, 2), FEW)], ids=["equal batch sizes", "unequal batch sizes"]
)
@pytest.mark.parametrize("teacher_norm", ["instance", "batch"])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_batch_norm_students_in_a_fleet_end_as_if_alone(chain, teacher_norm, batch_sizes, sizes):
    norms = "batch", teacher_norm
    fleet, alone = (make_schedulers(chain, batch_sizes, epochs=1, sizes=sizes, norms=norms) for _ in range(2))
    histories = run_as_fleet(fleet)
    assert_same(histories, run_alone(alone))
    for scheduler in fleet:
        counts = [b for n, b in scheduler.student.gan.generator.named_buffers() if n.endswith("num_batches_tracked")]
        assert counts
        assert all(int(count) > 0 for count in counts)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "make_optimizer", [FusedAdam, torch.optim.Adam, functools.partial(torch.optim.Adam, fused=True)]
)
def test_members_may_have_any_adam_before_and_after(make_optimizer):
    def made():
        for member in range(2):
            states = [
                make_state(channels, seed + member, norm="batch", make_optimizer=make_optimizer)
                for channels, seed in (((1, 2), 0), ((2, 4), 10))
            ]
            yield make_scheduler(member, (4,), student=states[0], teacher=states[1])

    whole = run_as_fleet(list(made()))
    assert_same(whole, run_alone(made()))
    for member, scheduler in enumerate(made()):
        scheduler.load_state_dict(whole[member].states[0])
        (history,) = run_alone([scheduler])
        assert_same_state(history.states[-1], whole[member].states[-1])


@pytest.mark.usefixtures("double")
def test_a_fourth_tap_in_a_fleet():
    def made():
        for member in range(3):
            k_l = DistillationLoss(w1=1.0 + member, terms=(Term("encoder.features", weight=5),))
            student = make_state((2, 4), member, norm="batch")
            yield make_scheduler(member, (2,), batch_size=3 + member, student=student, k_l=k_l)

    histories = run_as_fleet(list(made()))
    assert_same(histories, run_alone(made()))
    assert "k_encoder.features" in histories[0].records[0].losses


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(("chain", "is_cached"), [((2,), False), ((1,), True), ((4,), False)], ids=str)
@pytest.mark.parametrize("loss", ["rkd_distance", "rkd_angle", "sp", "attention", "fsp"])
def test_losses_between_images_never_compare_those_of_two_members(loss, chain, is_cached, norm):
    """At these batch sizes and numbers of images there are padded batches and last batches of 1, 2 and 3 images.

    Losses between images need no connectors, so that members may be narrower than their teachers.
    """
    tap = ("decoder.features", "encoder.features") if loss == "fsp" else "encoder.features"
    k_l = DistillationLoss(w1=1, wx=1, w2=1, terms=(Term(tap, 10.0, loss), Term("encoder.features", 5.0, "sp")))

    def made():
        for member, (batch_size, size) in enumerate([(5, 16), (3, 8), (6, 9)]):
            student = make_state((2, 4) if loss == "fsp" else (1, 2), member, norm=norm)
            scheduler = make_scheduler(member, chain, batch_size, 1, k_l=k_l, student=student, images=make_images(size))
            if is_cached:
                teacher, images = scheduler.teacher.gan, scheduler.images
                rows = torch.cat(list(teacher_rows(teacher, images, k_l, "float32")))
                scheduler.use_targets(TeacherCache(rows, cache_shapes(teacher, images, k_l)))
            yield scheduler

    histories = run_as_fleet(list(made()))
    assert_same(histories, run_alone(made()))
    name = Term(tap, loss=loss).name
    assert all(record.losses[name] > 0 for history in histories for record in history.records)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("chain", "family"), [((1,), "ede"), ((2, 3), "ede"), ((1,), "ed")], ids=str)
def test_members_may_differ_in_the_weight_of_k_r(chain, family):
    """Two train together and the one without K_r alone, each as if alone."""

    def made():
        for member, w_r in enumerate((500.0, 0.0, 20.0)):
            student, teacher = (
                make_state(channels, seed + member, family=family) for channels, seed in (((1, 2), 0), ((2, 4), 10))
            )
            k_l = DistillationLoss(w_r=w_r, re_encode=True)
            yield make_scheduler(member, chain, batch_size=3 + member, student=student, teacher=teacher, k_l=k_l)

    histories = run_as_fleet(list(made()))
    assert_same(histories, run_alone(made()))
    assert ["kr" in history.records[0].losses for history in histories] == [True, False, True]


@pytest.mark.usefixtures("double")
def test_students_without_a_discriminator_are_a_fleet_under_structure_1():
    def made():
        for member in range(2):
            gan = make_state((1, 2), member).gan
            yield make_scheduler(member, (1,), student=TrainState(Gan(gan.generator, gan.taps)))

    assert_same(run_as_fleet(list(made())), run_alone(made()))


@pytest.mark.usefixtures("double")
def test_after_100_steps_a_fleets_member_is_still_as_if_alone():
    fleet, alone = (make_schedulers((4,), (3, 2), epochs=13, sizes=(23, 8)) for _ in range(2))
    histories = run_as_fleet(fleet)
    optimizers = [history.states[-1]["student"]["optimizers"]["generator"]["state"] for history in histories]
    steps = [int(optimizer[0]["step"]) for optimizer in optimizers]
    assert steps == [13 * 8, 14 * 4]
    assert_same(histories, run_alone(alone))


def test_in_single_precision_a_fleets_member_is_near_what_it_is_alone():
    fleet, alone = (make_schedulers((4,), epochs=1) for _ in range(2))
    for scheduler in (*fleet, *alone):  # weights of 0.02 have gradients so small that Adam amplifies rounding errors
        for gan in (scheduler.student.gan, scheduler.teacher.gan):
            for seed, parameter in enumerate(p for network in gan.networks().values() for p in network.parameters()):
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3
    assert_same(run_as_fleet(fleet), run_alone(alone), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("double")
def test_records_between_epochs_are_those_of_each_member_alone(monkeypatch):
    monkeypatch.setattr(train_log, "RECORD_EVERY_IMAGES", 7)
    fleet, alone = (make_schedulers((2,), (3, 1, 2), epochs=1, sizes=(16, 8, 15)) for _ in range(2))
    histories = run_as_fleet(fleet)
    assert_same(histories, run_alone(alone))
    for history in histories:
        assert sum(not record.epoch_done for record in history.records) >= len(history.states)
        seconds = [record.seconds for record in history.records if record.epoch == 1]
        assert seconds == sorted(seconds)
        assert seconds[0] < seconds[-1]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("distance", ["mean", "norm"])
def test_both_distances_and_weights_of_0_work_in_a_fleet(distance):
    weights = [(0.0, 3.0), (2.0, 0.0), (1.0, 1.0)]

    def made():
        for member, (first, second) in enumerate(weights):
            objective = GanomalyObjective(w_con=first, w_adv=second, distance=distance)
            yield make_scheduler(
                member,
                (2,),
                student=make_state((1, 2), member, objective=objective),
                k_l=DistillationLoss(w1=second, w2=first, distance=distance),
            )

    assert_same(run_as_fleet(list(made())), run_alone(made()))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("family", ["ed", "ed_ehat"])
def test_other_families_are_fleets_too(family):
    def made():
        for member in range(2):
            student, teacher = (
                make_state(channels, seed + member, family=family) for channels, seed in (((1, 2), 0), ((2, 4), 10))
            )
            yield make_scheduler(member, (2,), student=student, teacher=teacher, k_l=DistillationLoss(re_encode=True))

    histories = run_as_fleet(list(made()))
    assert_same(histories, run_alone(made()))
    assert "k2" in histories[0].records[0].losses


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("chain", [(1,), (2,)], ids=str)
def test_students_of_one_frozen_teacher_are_a_fleet(chain):
    def made():
        teacher = make_state((2, 4), 10)
        return [make_scheduler(member, chain, teacher=teacher) for member in range(3)]

    assert_same(run_as_fleet(made()), run_alone(made()))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "chains",
    [((1,), (2,), (1,)), ((2, 3), (2,), (2, 3)), ((2, 3), (3, 2), ("from-scratch",)), ((4,), (2, 4), (1, 2, 4))],
    ids=str,
)
def test_schedulers_of_different_structures_run_together(chains):
    fleet, alone = ([make_scheduler(member, chain, epochs=1) for member, chain in enumerate(chains)] for _ in range(2))
    assert_same(run_as_fleet(fleet), run_alone(alone))


@pytest.mark.usefixtures("double")
def test_fleets_leave_the_random_state_unchanged():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run_as_fleet(make_schedulers((2, 3)))
    assert torch.equal(torch.get_rng_state(), before)


# A member that diverges


def break_training(scheduler, how):
    if how == "weights":
        scheduler.student.gan.generator.encoder.head.weight.data[3] = torch.nan
        return scheduler
    scheduler.stages = tuple(dataclasses.replace(stage, learning_rate=1e300) for stage in scheduler.stages)
    return scheduler


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("how", ["weights", "rate"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_member_that_diverges_is_reported_and_the_others_end_as_if_alone(bad, how):
    runs, chain = [], (2, 3)
    for run in (run_as_fleet, run_alone):
        schedulers = make_schedulers(chain, epochs=1)
        schedulers[bad] = break_training(schedulers[bad], how)
        histories = run(schedulers)
        assert [history.error is None for history in histories] == [member != bad for member in range(3)]
        assert [scheduler.position for scheduler in schedulers if scheduler is not schedulers[bad]] == [
            (len(chain), 0)
        ] * 2
        runs.append(histories)
    fleet, alone = runs
    assert fleet[bad].error == alone[bad].error
    assert fleet[bad].error.startswith("Losses must stay finite; ")
    assert_same(*([history for member, history in enumerate(histories) if member != bad] for histories in runs))


def test_all_members_may_diverge():
    schedulers = [break_training(scheduler, "weights") for scheduler in make_schedulers((2, 3))]
    assert all(history.error is not None for history in run_as_fleet(schedulers))


# Members that are resumed


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("chain", "cuts"), [((4,), (0, 1, 2)), ((2,), (1, 1, 1)), ((2, 3), (2, 0, 4)), ((3, 2), (3, 4, 6))], ids=str
)
def test_members_resumed_at_different_epochs_end_as_if_uninterrupted(chain, cuts):
    whole = run_alone(make_schedulers(chain))
    schedulers = []
    for member, cut in enumerate(cuts):
        scheduler = make_scheduler(
            member,
            chain,
            student=make_state((1, 2), 50, objective=GanomalyObjective(w_con=5 + member)),
            teacher=make_state((2, 4), 60, objective=teacher_objective(member)),
        )
        if cut == 0:
            scheduler = make_scheduler(member, chain)
        else:
            scheduler.load_state_dict(whole[member].states[cut - 1])
        schedulers.append(scheduler)
    resumed = run_as_fleet(schedulers)
    for other, cut in zip(whole, cuts, strict=True):
        other.records, other.states = other.records[cut:], other.states[cut:]
    assert_same(resumed, whole)


@pytest.mark.usefixtures("double")
def test_the_state_of_a_fleet_after_an_epoch_can_be_resumed_alone():
    whole = run_as_fleet(make_schedulers((2, 3)))
    for member in range(3):
        for cut in (0, 2):
            scheduler = make_scheduler(member, (2, 3))
            scheduler.load_state_dict(whole[member].states[cut])
            (history,) = run_alone([scheduler])
            assert_same_state(history.states[-1], whole[member].states[-1])


# What members must agree in


def of_student(**state):
    return lambda: {"student": make_state((1, 2), 5, **state)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_student(betas=(0.9, 0.99)), r"differ in betas; got \(0\.5, 0\.99\), \(0\.9, 0\.99\)\."),
        (of_student(ema_decay=0.5), r"differ in ema_decay; got 0\.5, 0\.99\."),
        (of_student(objective=GanomalyObjective(distance="norm")), "differ in distance; got mean, norm"),
        (of_student(objective=CvgadObjective()), "differ in kind of objective; got CvgadObjective, GanomalyObjective"),
        (lambda: {"k_l": DistillationLoss(distance="norm")}, "differ in distance; got mean, norm"),
        (lambda: {"k_l": DistillationLoss(re_encode=True)}, "differ in re_encode; got False, True"),
        (
            lambda: {"student": make_state((2, 2), 5)},
            r"differ in shape; encoder\.features\.0\.weight is \(1, 1, 4, 4\)",
        ),
        (
            lambda: {"teacher": make_state((2, 3), 5)},
            r"differ in shape; encoder\.features\.3\.weight is \(4, 2, 4, 4\)",
        ),
        (lambda: {"teacher": make_state((2, 4), 5, 9)}, "teacher's shapes; found connectors"),
        (lambda: {"images": make_images(5).repeat(1, 3, 1, 1)}, "The network takes images of"),
    ],
    ids=[
        "betas",
        "ema_decay",
        "distance of L_g",
        "kind of objective",
        "distance of K_l",
        "re_encode",
        "student's shape",
        "teacher's shape",
        "connectors",
        "images",
    ],
)
def test_members_that_differ_are_told_in_what(change, message):
    schedulers = [make_scheduler(0, (2,)), make_scheduler(1, (2,)), make_scheduler(2, (2,), **change())]
    with pytest.raises(KdganError, match=message):
        list(train_schedulers(schedulers, fast_engine))


def test_trained_teachers_must_agree_too():
    schedulers = [make_scheduler(0, (3,)), make_scheduler(1, (3,), teacher=make_state((2, 4), 5, ema_decay=0.5))]
    with pytest.raises(KdganError, match=r"differ in ema_decay; got 0\.5, 0\.99"):
        list(train_schedulers(schedulers, fast_engine))


class MixesChannels(nn.Module):
    """A network whose outputs are less their mean over the channels, which are those of all members in a stack."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        first, *others = self.network(images)
        return first - first.mean(1, keepdim=True), *others


@pytest.mark.parametrize(
    ("role", "chain", "network"),
    [
        ("student", (1,), "generator"),
        ("student", ("from-scratch",), "discriminator"),
        ("teacher", (1,), "generator"),
        ("teacher", (3,), "generator"),
        ("teacher", (3,), "discriminator"),
    ],
    ids=str,
)
def test_networks_that_mix_channels_are_refused_in_every_role(role, chain, network):
    schedulers = make_schedulers(chain)
    for scheduler in schedulers:
        state = getattr(scheduler, role)
        for parameter in (p for net in state.gan.networks().values() for p in net.parameters()):
            parameter.data.mul_(10)
        taps = {name: f"network.{path}" for name, path in state.gan.taps.items()} if network == "generator" else {}
        mixing = {network: MixesChannels(state.gan.networks()[network])}
        state.gan = dataclasses.replace(state.gan, **mixing, taps=taps or state.gan.taps)
    list(train_schedulers([copy.deepcopy(schedulers[0])], fast_engine))  # alone it is trained
    with pytest.raises(KdganError, match="stacked network computes something else"):
        list(train_schedulers(schedulers, fast_engine))


# One mean per member

LOSSES = {
    "l1": l1,
    "l1 norm": lambda a, b: l1(a, b, "norm"),
    "l2": l2,
    "l2 norm": lambda a, b: l2(a, b, "norm"),
    "cross entropy": discriminator_cross_entropy,
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sizes", [(3, 3), (1, 4, 2), (2, 2, 2, 1), (1, 1), (5,)], ids=str)
@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_fleets_losses_and_their_gradients_are_its_members(loss, shape, sizes):
    fleet = FleetState([make_state((1, 2), member) for member in range(len(sizes))])
    batch, num_members = max(sizes), len(sizes)
    weights = torch.tensor([[(row < size) / size for size in sizes] for row in range(batch)])
    fleet.set_sample_weights(weights, is_padded=True)
    a, b = torch.randn(2, batch * num_members, *shape, generator=torch.Generator().manual_seed(0))
    losses = fleet.reduce(loss(a.requires_grad_(), b))
    losses.sum().backward()
    assert losses.shape == (num_members,)
    for member, size in enumerate(sizes):
        one, other = (side.detach()[member::num_members][:size].clone() for side in (a, b))
        expected = loss(one.requires_grad_(), other).mean()
        expected.backward()
        torch.testing.assert_close(losses[member], expected, rtol=1e-12, atol=1e-14)
        gradient = a.grad[member::num_members]
        torch.testing.assert_close(gradient[:size], one.grad, rtol=1e-12, atol=1e-14)
        assert not gradient[size:].any()


def test_an_objective_that_takes_its_own_mean_is_refused():
    @dataclasses.dataclass(frozen=True)
    class OwnMean:
        def train_step(self, state, images, weight_g, weight_d, step=0, k_l=None):
            state.update("generator", (state.forward(images)["x_hat"] - images).abs().mean())
            return {}

    schedulers = [
        make_scheduler(member, ("from-scratch",), student=make_state((1, 2), member, objective=OwnMean()))
        for member in range(2)
    ]
    with pytest.raises(KdganError, match=r"one loss per member; got shape \(\) for 2 members"):
        list(train_schedulers(schedulers, fast_engine))


def test_members_of_different_precision_are_refused():
    schedulers = [
        make_scheduler(member, (1,), settings=TrainingSettings(8, precision=precision))
        for member, precision in enumerate(("float32", "tf32"))
    ]
    with pytest.raises(KdganError, match="differ in precision; got float32, tf32"):
        list(train_schedulers(schedulers, fast_engine))


def test_the_plain_engine_refuses_a_fleet():
    with pytest.raises(KdganError, match="This engine trains one model; got 3"):
        list(train_schedulers(make_schedulers((1,))))
