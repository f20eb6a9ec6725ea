"""A fleet's members against the same schedules run alone, and what members must agree in."""

import copy

import pytest
import torch
from kdgan_compress.gans.cvgad_objective import CvgadObjective
from kdgan_compress.gans.ganomaly_objective import GanomalyObjective

from kdgan_compress.distillation import train_log as meter
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import Schedule, run_together
from kdgan_compress.distillation.train_log import DivergedError
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import TrainingSettings
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build

SIZES = (30, 21, 13)
"""At batch 8 epochs have 4, 3 and 2 steps, so that members' records come now together, now apart."""

FEW = (7, 3, 4)
CHAINS = [(1,), (2,), (3,), (4,), ("alone",), (2, 3), (3, 2)]

pytestmark = pytest.mark.usefixtures("one_thread")


def make_images(number, seed=0):
    return torch.randint(0, 256, (number, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make_learner(channels, seed, latent=8, family="ede", **learner):
    architecture = Architecture(family=family, channels=channels, image_size=16, latent_size=latent)
    return TrainState(build(architecture, seed), **learner)


def make_schedule(member, chain, batch_size=8, epochs=2, sizes=SIZES, **changes):
    """Number 0, 1, …, each other than the rest in all in which members may differ."""
    losses = [STRUCTURES.get(structure, FROM_SCRATCH) for structure in chain]
    scale = 1 + member / 4
    stages = [
        Stage(
            f"s{place}",
            LossSet(own.alpha * scale, own.beta / scale, own.mu * scale, own.nu / scale, own.lam * scale),
            epochs + member,
            1e-3 * (1 + member),
            2e-4 * (1 + member),
        )
        for place, own in enumerate(losses)
    ]
    student = make_learner((1, 2), member, objective=GanomalyObjective(w_con=5 + member))
    teacher = make_learner((2, 4), 10 + member, objective=GanomalyObjective(w_enc=1 + member, w_adv=2 - member / 4))
    settings = TrainingSettings(batch_size, "constant" if member == 1 else "linear", seed=member)
    given = {
        "stages": stages,
        "student": student,
        "images": make_images(sizes[member], member),
        "teacher": None if chain == ("alone",) else teacher,
        "distillation": Distillation(w1=10.0 * (1 + member), wx=7 - member),
        "settings": settings,
    }
    return Schedule(**(given | changes))


def make_schedules(chain, batch_sizes=(8, 8, 8), **changes):
    return [make_schedule(member, chain, batch_size, **changes) for member, batch_size in enumerate(batch_sizes)]


class Course:
    """What a schedule told and the states it was in after every epoch; its error, if it diverged."""

    def __init__(self):
        self.records, self.states, self.error = [], [], None

    def add(self, schedule, record):
        if isinstance(record, DivergedError):
            self.error = str(record)
            return
        assert self.error is None
        self.records.append(record)
        if record.epoch_done:
            self.states.append(copy.deepcopy(schedule.state_dict()))


def run_alone(schedules):
    courses = []
    for schedule in schedules:
        course = Course()
        try:
            for record in schedule.run():
                course.add(schedule, record)
        except DivergedError as error:
            course.add(schedule, error)
        courses.append(course)
    return courses


def run_as_fleet(schedules):
    courses = [Course() for _ in schedules]
    for member, record in run_together(schedules):
        courses[member].add(schedules[member], record)
    return courses


def assert_same(ours, theirs, rtol=1e-6, atol=1e-9):
    """Records, and after every epoch weights, averages, moments and positions."""
    for own, other in zip(ours, theirs, strict=True):
        assert own.error == other.error
        assert [(r.stage, r.epoch, r.epoch_done, r.num_images) for r in own.records] == [
            (r.stage, r.epoch, r.epoch_done, r.num_images) for r in other.records
        ]
        for record, expected in zip(own.records, other.records, strict=True):
            assert record.losses == pytest.approx(expected.losses, rel=rtol, abs=atol)
            assert record.seconds > 0
        for state, expected in zip(own.states, other.states, strict=True):
            assert_same_state(state, expected, rtol, atol)


def assert_same_state(ours, theirs, rtol=1e-6, atol=1e-9):
    plain = ("stage_index", "epochs_done", "images")
    assert [ours[name] for name in plain] == [theirs[name] for name in plain]
    learners = ("student",) if theirs["teacher"] is None else ("student", "teacher")
    for name in learners:
        torch.testing.assert_close(ours[name], theirs[name], rtol=rtol, atol=atol)


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
    ours, theirs = (make_schedules(chain, batch_sizes, epochs=1, sizes=sizes) for _ in range(2))
    courses = run_as_fleet(ours)
    assert_same(courses, run_alone(theirs))
    assert [len(course.states) for course in courses] == [len(chain) * (1 + member) for member in range(3)]
    assert [schedule.position for schedule in ours] == [(len(chain), 0)] * 3


@pytest.mark.usefixtures("double")
def test_after_100_steps_a_fleets_member_is_still_as_if_alone():
    ours, theirs = (make_schedules((4,), (3, 2), epochs=13, sizes=(23, 8)) for _ in range(2))
    courses = run_as_fleet(ours)
    steps = [course.states[-1]["student"]["optimizers"]["generator"]["steps"][0].item() for course in courses]
    assert steps == [13 * 8, 14 * 4]
    assert_same(courses, run_alone(theirs))


def test_in_single_precision_a_fleets_member_is_near_what_it_is_alone():
    ours, theirs = (make_schedules((4,), epochs=1) for _ in range(2))
    for schedule in (*ours, *theirs):  # weights of 0.02 have gradients so small that Adam makes roundings steps
        for gan in (schedule.student.gan, schedule.teacher.gan):
            for seed, parameter in enumerate(p for network in gan.networks().values() for p in network.parameters()):
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.3
    assert_same(run_as_fleet(ours), run_alone(theirs), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("double")
def test_records_between_epochs_are_those_of_each_member_alone(monkeypatch):
    monkeypatch.setattr(meter, "RECORD_EVERY_IMAGES", 7)
    ours, theirs = (make_schedules((2,), (3, 1, 2), epochs=1, sizes=(16, 8, 15)) for _ in range(2))
    courses = run_as_fleet(ours)
    assert_same(courses, run_alone(theirs))
    for course in courses:
        assert sum(not record.epoch_done for record in course.records) >= len(course.states)
        seconds = [record.seconds for record in course.records if record.epoch == 1]
        assert seconds == sorted(seconds)
        assert seconds[0] < seconds[-1]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["mean", "norm"])
def test_both_reductions_and_coefficients_of_0_work_in_a_fleet(norm):
    weights = [(0.0, 3.0), (2.0, 0.0), (1.0, 1.0)]

    def made():
        for member, (first, second) in enumerate(weights):
            objective = GanomalyObjective(w_con=first, w_adv=second, reduction=norm)
            yield make_schedule(
                member,
                (2,),
                student=make_learner((1, 2), member, objective=objective),
                distillation=Distillation(w1=second, w2=first, reduction=norm),
            )

    assert_same(run_as_fleet(list(made())), run_alone(made()))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("family", ["ed", "ed_ehat"])
def test_other_families_are_fleets_too(family):
    def made():
        for member in range(2):
            student, teacher = (
                make_learner(channels, seed + member, family=family) for channels, seed in (((1, 2), 0), ((2, 4), 10))
            )
            yield make_schedule(
                member, (2,), student=student, teacher=teacher, distillation=Distillation(re_encode=True)
            )

    ours, theirs = run_as_fleet(list(made())), run_alone(made())
    assert_same(ours, theirs)
    assert "k2" in ours[0].records[0].losses


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("chain", [(1,), (2,)], ids=str)
def test_students_of_one_frozen_teacher_are_a_fleet(chain):
    def made():
        teacher = make_learner((2, 4), 10)
        return [make_schedule(member, chain, teacher=teacher) for member in range(3)]

    assert_same(run_as_fleet(made()), run_alone(made()))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "chains",
    [((1,), (2,), (1,)), ((2, 3), (2,), (2, 3)), ((2, 3), (3, 2), ("alone",)), ((4,), (2, 4), (1, 2, 4))],
    ids=str,
)
def test_schedules_of_unlike_structures_run_together(chains):
    ours, theirs = ([make_schedule(member, chain, epochs=1) for member, chain in enumerate(chains)] for _ in range(2))
    assert_same(run_as_fleet(ours), run_alone(theirs))


@pytest.mark.usefixtures("double")
def test_fleets_leave_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run_as_fleet(make_schedules((2, 3)))
    assert torch.equal(torch.get_rng_state(), before)


# A member that diverges


def spoil(schedule, how):
    if how == "weights":
        schedule.student.gan.generator.encoder.head.weight.data[3] = torch.nan
        return schedule
    stages = [Stage(stage.name, stage.loss_set, stage.epochs, 1e300, 1e-4) for stage in schedule.stages]
    return Schedule(
        stages, schedule.student, schedule._images, schedule.teacher, schedule._distillation, schedule._settings
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("how", ["weights", "rate"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_member_that_diverges_is_told_and_the_others_end_as_if_alone(bad, how):
    runs, chain = [], (2, 3)
    for run in (run_as_fleet, run_alone):
        schedules = make_schedules(chain, epochs=1)
        schedules[bad] = spoil(schedules[bad], how)
        courses = run(schedules)
        assert [course.error is None for course in courses] == [member != bad for member in range(3)]
        assert [schedule.position for schedule in schedules if schedule is not schedules[bad]] == [(len(chain), 0)] * 2
        runs.append(courses)
    ours, theirs = runs
    assert ours[bad].error == theirs[bad].error
    assert ours[bad].error.startswith("Losses must stay finite; ")
    assert_same(*([course for member, course in enumerate(courses) if member != bad] for courses in runs))


def test_all_members_may_diverge():
    schedules = [spoil(schedule, "weights") for schedule in make_schedules((2, 3))]
    assert all(course.error is not None for course in run_as_fleet(schedules))


# Members taken up from where they were


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("chain", "cuts"), [((4,), (0, 1, 2)), ((2,), (1, 1, 1)), ((2, 3), (2, 0, 4)), ((3, 2), (3, 4, 6))], ids=str
)
def test_members_taken_up_at_unlike_epochs_end_where_they_would_have(chain, cuts):
    whole = run_alone(make_schedules(chain))
    schedules = []
    for member, cut in enumerate(cuts):
        schedule = make_schedule(
            member,
            chain,
            student=make_learner((1, 2), 50, objective=GanomalyObjective(w_con=5 + member)),
            teacher=make_learner((2, 4), 60, objective=GanomalyObjective(w_enc=1 + member, w_adv=2 - member / 4)),
        )
        if cut == 0:
            schedule = make_schedule(member, chain)
        else:
            schedule.load_state_dict(whole[member].states[cut - 1])
        schedules.append(schedule)
    ours = run_as_fleet(schedules)
    for other, cut in zip(whole, cuts, strict=True):
        other.records, other.states = other.records[cut:], other.states[cut:]
    assert_same(ours, whole)


@pytest.mark.usefixtures("double")
def test_what_a_fleet_leaves_behind_an_epoch_is_taken_up_alone():
    whole = run_as_fleet(make_schedules((2, 3)))
    for member in range(3):
        for cut in (0, 2):
            schedule = make_schedule(member, (2, 3))
            schedule.load_state_dict(whole[member].states[cut])
            (course,) = run_alone([schedule])
            assert_same_state(course.states[-1], whole[member].states[-1])


# What members must agree in


def of_student(**learner):
    return lambda: {"student": make_learner((1, 2), 5, **learner)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_student(betas=(0.9, 0.99)), r"agree in betas; got \(0\.5, 0\.99\), \(0\.9, 0\.99\)\."),
        (of_student(ema_decay=0.5), r"agree in ema_decay; got 0\.5, 0\.99\."),
        (of_student(objective=GanomalyObjective(reduction="norm")), "agree in reduction; got mean, norm"),
        (of_student(objective=CvgadObjective()), "agree in kind of objective; got CvgadObjective, GanomalyObjective"),
        (lambda: {"distillation": Distillation(reduction="norm")}, "agree in reduction; got mean, norm"),
        (lambda: {"distillation": Distillation(re_encode=True)}, "agree in re_encode; got False, True"),
        (lambda: {"student": make_learner((2, 2), 5)}, r"one shape; encoder\.features\.0\.weight is \(1, 1, 4, 4\)"),
        (lambda: {"teacher": make_learner((2, 3), 5)}, r"one shape; encoder\.features\.3\.weight is \(4, 2, 4, 4\)"),
        (lambda: {"teacher": make_learner((2, 4), 5, 9)}, "teacher's shapes; found connectors"),
        (lambda: {"images": make_images(5).repeat(1, 3, 1, 1)}, "Images must be"),
    ],
    ids=[
        "betas",
        "ema_decay",
        "reduction of L_g",
        "kind of objective",
        "reduction of K_l",
        "re_encode",
        "student's shape",
        "teacher's shape",
        "connectors",
        "images",
    ],
)
def test_members_that_disagree_are_told_in_what(change, message):
    schedules = [make_schedule(0, (2,)), make_schedule(1, (2,)), make_schedule(2, (2,), **change())]
    with pytest.raises(KdganError, match=message):
        list(run_together(schedules))


def test_moving_teachers_must_agree_too():
    schedules = [make_schedule(0, (3,)), make_schedule(1, (3,), teacher=make_learner((2, 4), 5, ema_decay=0.5))]
    with pytest.raises(KdganError, match=r"agree in ema_decay; got 0\.5, 0\.99"):
        list(run_together(schedules))
