"""The scheduler against stages chained by hand, and against itself broken off after any epoch and taken up again."""

import copy
import io

import pytest
import torch
from kdgan_compress.gans.cvgad_objective import CvgadObjective

from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import Schedule
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import StageRun, TrainingSettings, begin_stage, run_stage
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build

BETAS, DECAY = (0.5, 0.99), 0.9
SETTINGS = TrainingSettings(batch_size=4, seed=3)
IMAGES = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SCHEDULES = {
    "alone": [FROM_SCRATCH],
    "2->3": [STRUCTURES[2], STRUCTURES[3]],
    "2->4": [STRUCTURES[2], STRUCTURES[4]],
    "3->2": [STRUCTURES[3], STRUCTURES[2]],
    "4->1": [STRUCTURES[4], STRUCTURES[1]],
}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_stages(loss_sets, epochs=2):
    return [Stage(f"s{i}", loss_set, epochs, 2e-3 / (i + 1), 5e-4) for i, loss_set in enumerate(loss_sets)]


def make_learner(channels, seed, latent=16, norm="instance", decay=DECAY):
    return TrainState(build(Architecture(channels=channels, latent_size=latent, norm=norm), seed), BETAS, decay)


def make_schedule(loss_sets, seed=0, latent=16, norm="instance", decay=DECAY):
    student = make_learner((1, 2, 4), seed, latent, norm, decay)
    teacher = None if loss_sets == [FROM_SCRATCH] else make_learner((2, 4, 8), seed + 1, 16, norm, decay)
    return Schedule(make_stages(loss_sets), student, IMAGES, teacher, settings=SETTINGS)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def run_epochs(schedule, number=None):
    """Mean losses of each epoch, as many epochs as are asked for."""
    losses = []
    for record in schedule.run():
        if record.epoch_done:
            losses.append((record.stage, record.epoch, record.losses))
            if len(losses) == number:
                break
    return losses


def assert_identical(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("second", [3, 4])
def test_the_second_stage_starts_from_the_last_weights_of_both(second):
    schedule = make_schedule([STRUCTURES[2], STRUCTURES[second]])
    by_hand = copy.deepcopy((schedule.student.gan, schedule.teacher.gan))
    run_epochs(schedule)
    for index, stage in enumerate(schedule.stages):
        # New learners have new optimisers and no average, so all that goes on is the networks' raw weights.
        student, teacher = (TrainState(gan, BETAS, DECAY) for gan in by_hand)
        begin_stage(StageRun(stage, 0, student, teacher, IMAGES, Distillation(), TrainingSettings()))
        list(run_stage(StageRun(stage, index, student, teacher, IMAGES, Distillation(), SETTINGS)))
    assert_identical(schedule.student.state_dict(), student.state_dict())
    assert_identical(schedule.teacher.state_dict(), teacher.state_dict())


def test_a_stage_starts_with_new_optimisers():
    schedule = make_schedule(SCHEDULES["2->4"])
    seen = []
    for record in schedule.run():
        steps = schedule.student.state_dict()["optimizers"]["generator"]["steps"]
        seen.append((record.stage, record.epoch, {int(own) for own in steps}))
    assert seen == [("s0", 1, {2}), ("s0", 2, {4}), ("s1", 1, {2}), ("s1", 2, {4})]


def test_the_teacher_moves_only_in_the_stage_that_trains_it():
    schedule = make_schedule(SCHEDULES["2->3"])
    weight = schedule.teacher.gan.generator.encoder.head.weight
    start = weight.detach().clone()
    assert [torch.equal(weight, start) for _ in schedule.run()] == [True, True, False, False]


def test_a_schedule_tells_where_it_is():
    schedule = make_schedule(SCHEDULES["2->3"])
    assert schedule.position == (0, 0)
    assert [schedule.position for _ in schedule.run()] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert schedule.position == (2, 0)
    assert list(schedule.run()) == []


@pytest.mark.parametrize(
    ("name", "cut"),
    [("alone", 1), ("alone", 2)] + [(name, cut) for name in ("2->3", "2->4", "3->2", "4->1") for cut in (1, 2, 3, 4)],
)
def test_broken_off_and_taken_up_is_never_broken_off(name, cut):
    whole = make_schedule(SCHEDULES[name])
    expected = run_epochs(whole)
    first = make_schedule(SCHEDULES[name])
    losses = run_epochs(first, cut)
    state = through_a_file(first.state_dict())
    second = make_schedule(SCHEDULES[name], seed=50)  # nothing of the new weights may stay
    torch.manual_seed(1234)
    second.load_state_dict(state)
    losses += run_epochs(second)
    assert losses == expected
    assert_identical(second.student.state_dict(), whole.student.state_dict())
    if whole.teacher is not None:
        assert_identical(second.teacher.state_dict(), whole.teacher.state_dict())
        assert_identical(second.teacher.ema_generator.state_dict(), whole.teacher.ema_generator.state_dict())
    assert_identical(second.student.ema_generator.state_dict(), whole.student.ema_generator.state_dict())


@pytest.mark.parametrize("change", [{"latent": 8}, {"norm": "batch"}, {"decay": 0.0}], ids=str)
def test_connectors_buffers_and_runs_without_average_are_taken_up_too(change):
    loss_sets = [STRUCTURES[2], LossSet(alpha=1, beta=1, mu=0.5, lam=0.5)]
    torch.manual_seed(8)
    whole = make_schedule(loss_sets, **change)
    expected = run_epochs(whole)
    torch.manual_seed(8)
    first = make_schedule(loss_sets, **change)
    losses = run_epochs(first, 3)
    state = through_a_file(first.state_dict())
    torch.manual_seed(9)
    second = make_schedule(loss_sets, seed=50, **change)
    second.load_state_dict(state)
    losses += run_epochs(second)
    assert losses == expected
    assert_identical(second.student.state_dict(), whole.student.state_dict())
    assert_identical(second.teacher.state_dict(), whole.teacher.state_dict())
    if "latent" in change:
        assert "connectors" in state["student"]["networks"]


def make_cvgad_schedule(loss_sets, seed=0, latent=8):
    def learner(channels, seed, latent):
        architecture = Architecture(
            family="cvgad", channels=channels, image_size=16, latent_size=latent, num_clusters=2
        )
        objective = CvgadObjective(latent_threshold=1e9)  # outliers are drawn too
        return TrainState(build(architecture, seed), BETAS, DECAY, objective)

    student, teacher = learner((1, 2), seed, latent), learner((2, 4), seed + 1, 8)
    images = IMAGES[..., ::2, ::2].contiguous()
    settings = TrainingSettings(batch_size=2, seed=3)  # 3 steps an epoch, so that epochs begin at two places of a cycle
    return Schedule(make_stages(loss_sets), student, images, teacher, Distillation(re_encode=True), settings)


@pytest.mark.parametrize("latent", [8, 5], ids=["alike", "connectors"])
@pytest.mark.parametrize("name", ["2->3", "3->2", "4->1"])
def test_cvgad_broken_off_in_the_middle_ends_bit_for_bit(name, latent):
    torch.manual_seed(8)
    whole = make_cvgad_schedule(SCHEDULES[name], latent=latent)
    expected = run_epochs(whole)
    assert any(name.endswith("negative") for _, _, losses in expected for name in losses)
    for cut in (1, 2, 3):
        torch.manual_seed(8)
        first = make_cvgad_schedule(SCHEDULES[name], latent=latent)
        losses = run_epochs(first, cut)
        state = through_a_file(first.state_dict())
        torch.manual_seed(1234)
        second = make_cvgad_schedule(SCHEDULES[name], seed=50, latent=latent)
        second.load_state_dict(state)
        losses += run_epochs(second)
        assert losses == expected
        assert_identical(second.student.state_dict(), whole.student.state_dict())
        assert_identical(second.teacher.state_dict(), whole.teacher.state_dict())
        assert_identical(second.student.ema_generator.state_dict(), whole.student.ema_generator.state_dict())


def test_cvgads_noise_is_the_global_random_states():
    losses = []
    for seed in (8, 8, 9):
        torch.manual_seed(seed)
        losses.append(run_epochs(make_cvgad_schedule(SCHEDULES["2->3"])))
    assert losses[0] == losses[1] != losses[2]


def test_the_random_state_is_taken_up():
    first = make_schedule([FROM_SCRATCH])
    torch.manual_seed(4)
    run_epochs(first, 1)
    state = through_a_file(first.state_dict())
    expected = torch.rand(3)
    make_schedule([FROM_SCRATCH]).load_state_dict(state)
    assert torch.equal(torch.rand(3), expected)


def test_two_runs_of_one_seed_are_the_same_and_of_another_are_not():
    losses = run_epochs(make_schedule(SCHEDULES["2->3"]))
    assert run_epochs(make_schedule(SCHEDULES["2->3"])) == losses
    assert run_epochs(make_schedule(SCHEDULES["2->3"], seed=1)) != losses


def test_no_images_are_an_error():
    with pytest.raises(KdganError, match="at least one image; got 0"):
        Schedule(make_stages([FROM_SCRATCH]), make_learner((1, 2, 4), 0), IMAGES[:0])


@pytest.mark.parametrize("loss_set", [*STRUCTURES.values(), LossSet(mu=1, beta=1)])
def test_a_stage_that_needs_a_teacher_must_have_one(loss_set):
    schedule = Schedule(make_stages([loss_set]), make_learner((1, 2, 4), 0), IMAGES, settings=SETTINGS)
    with pytest.raises(KdganError, match="Stage s0 must have a teacher"):
        next(schedule.run())


def test_a_stage_lasts_at_least_an_epoch():
    with pytest.raises(KdganError, match="at least 1 epoch; got 0"):
        Stage("x", FROM_SCRATCH, 0, 1e-3, 1e-3)
