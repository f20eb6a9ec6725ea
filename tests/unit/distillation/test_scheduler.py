"""The scheduler against stages chained by hand, and against itself interrupted after any epoch and resumed."""

import copy
import io

import pytest
import torch

from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, StageRun, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import StageProgress, train_schedulers, train_stage
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build
from kdgan_compress.gans.cvgad import CvgadObjective

BETAS, DECAY = (0.5, 0.99), 0.9
SETTINGS = TrainingSettings(batch_size=4, seed=3)
IMAGES = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SCHEDULES = {
    "from-scratch": [FROM_SCRATCH],
    "2->3": [STRUCTURES[2], STRUCTURES[3]],
    "2->4": [STRUCTURES[2], STRUCTURES[4]],
    "3->2": [STRUCTURES[3], STRUCTURES[2]],
    "4->1": [STRUCTURES[4], STRUCTURES[1]],
}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_stages(loss_sets, epochs=2):
    return [Stage(f"s{i}", loss_set, epochs, 2e-3 / (i + 1), 5e-4) for i, loss_set in enumerate(loss_sets)]


def make_state(channels, seed, latent=16, norm="instance", decay=DECAY):
    return TrainState(build(Architecture(channels=channels, latent_size=latent, norm=norm), seed), BETAS, decay)


def make_scheduler(loss_sets, seed=0, latent=16, norm="instance", decay=DECAY):
    student = make_state((1, 2, 4), seed, latent, norm, decay)
    teacher = None if loss_sets == [FROM_SCRATCH] else make_state((2, 4, 8), seed + 1, 16, norm, decay)
    return ProgressiveScheduler(make_stages(loss_sets), student, IMAGES, teacher, settings=SETTINGS)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def records_of(scheduler):
    return (record for _, record in train_schedulers([scheduler]))


def run_epochs(scheduler, number=None):
    """Mean losses of each epoch, as many epochs as are asked for."""
    losses = []
    for record in records_of(scheduler):
        if record.epoch_done:
            losses.append((record.stage, record.epoch, record.losses))
            if len(losses) == number:
                break
    return losses


def assert_identical(state, expected):
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


@pytest.mark.parametrize("second", [3, 4])
def test_the_second_stage_starts_from_the_last_weights_of_both(second):
    scheduler = make_scheduler([STRUCTURES[2], STRUCTURES[second]])
    by_hand = copy.deepcopy((scheduler.student.gan, scheduler.teacher.gan))
    run_epochs(scheduler)
    for index, stage in enumerate(scheduler.stages):
        # New states have new optimisers and no EMA, so only the networks' weights are kept.
        student, teacher = (TrainState(gan, BETAS, DECAY) for gan in by_hand)
        run = StageRun(stage, index, student, teacher, IMAGES, DistillationLoss(), SETTINGS)
        run.begin()
        list(train_stage([StageProgress(run)]))
    assert_identical(scheduler.student.state_dict(), student.state_dict())
    assert_identical(scheduler.teacher.state_dict(), teacher.state_dict())


def test_a_stage_starts_with_new_optimisers():
    scheduler = make_scheduler(SCHEDULES["2->4"])
    seen = []
    for record in records_of(scheduler):
        optimizer = scheduler.student.state_dict()["optimizers"]["generator"]["state"]
        seen.append((record.stage, record.epoch, {int(parameter["step"]) for parameter in optimizer.values()}))
    assert seen == [("s0", 1, {2}), ("s0", 2, {4}), ("s1", 1, {2}), ("s1", 2, {4})]


def test_the_teacher_changes_only_in_the_stage_that_trains_it():
    scheduler = make_scheduler(SCHEDULES["2->3"])
    weight = scheduler.teacher.gan.generator.encoder.head.weight
    start = weight.detach().clone()
    assert [torch.equal(weight, start) for _ in records_of(scheduler)] == [True, True, False, False]


def test_the_position_counts_stages_and_epochs():
    scheduler = make_scheduler(SCHEDULES["2->3"])
    assert scheduler.position == (0, 0)
    assert [scheduler.position for _ in records_of(scheduler)] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert scheduler.position == (2, 0)
    assert list(records_of(scheduler)) == []


@pytest.mark.parametrize(
    ("name", "cut"),
    [("from-scratch", 1), ("from-scratch", 2)]
    + [(name, cut) for name in ("2->3", "2->4", "3->2", "4->1") for cut in (1, 2, 3, 4)],
)
def test_interrupted_and_resumed_equals_uninterrupted(name, cut):
    whole = make_scheduler(SCHEDULES[name])
    expected = run_epochs(whole)
    first = make_scheduler(SCHEDULES[name])
    losses = run_epochs(first, cut)
    state = through_a_file(first.state_dict())
    second = make_scheduler(SCHEDULES[name], seed=50)  # none of the new weights may stay
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
def test_connectors_buffers_and_runs_without_ema_are_resumed_too(change):
    loss_sets = [STRUCTURES[2], LossSet(alpha=1, beta=1, mu=0.5, lam=0.5)]
    torch.manual_seed(8)
    whole = make_scheduler(loss_sets, **change)
    expected = run_epochs(whole)
    torch.manual_seed(8)
    first = make_scheduler(loss_sets, **change)
    losses = run_epochs(first, 3)
    state = through_a_file(first.state_dict())
    torch.manual_seed(9)
    second = make_scheduler(loss_sets, seed=50, **change)
    second.load_state_dict(state)
    losses += run_epochs(second)
    assert losses == expected
    assert_identical(second.student.state_dict(), whole.student.state_dict())
    assert_identical(second.teacher.state_dict(), whole.teacher.state_dict())
    if "latent" in change:
        assert "connectors" in state["student"]["networks"]


def make_cvgad_scheduler(loss_sets, seed=0, latent=8):
    def state(channels, seed, latent):
        architecture = Architecture(
            family="cvgad", channels=channels, image_size=16, latent_size=latent, num_clusters=2
        )
        objective = CvgadObjective(latent_threshold=1e9)  # outliers are drawn too
        return TrainState(build(architecture, seed), BETAS, DECAY, objective)

    student, teacher = state((1, 2), seed, latent), state((2, 4), seed + 1, 8)
    images = IMAGES[..., ::2, ::2].contiguous()
    settings = TrainingSettings(batch_size=2, seed=3)  # 3 steps per epoch: epochs begin in two phases of a cycle
    return ProgressiveScheduler(
        make_stages(loss_sets), student, images, teacher, DistillationLoss(re_encode=True), settings
    )


@pytest.mark.parametrize("latent", [8, 5], ids=["equal latents", "connectors"])
@pytest.mark.parametrize("name", ["2->3", "3->2", "4->1"])
def test_cvgad_resumed_in_the_middle_ends_bit_for_bit(name, latent):
    torch.manual_seed(8)
    whole = make_cvgad_scheduler(SCHEDULES[name], latent=latent)
    expected = run_epochs(whole)
    assert any(name.endswith("negative") for _, _, losses in expected for name in losses)
    for cut in (1, 2, 3):
        torch.manual_seed(8)
        first = make_cvgad_scheduler(SCHEDULES[name], latent=latent)
        losses = run_epochs(first, cut)
        state = through_a_file(first.state_dict())
        torch.manual_seed(1234)
        second = make_cvgad_scheduler(SCHEDULES[name], seed=50, latent=latent)
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
        losses.append(run_epochs(make_cvgad_scheduler(SCHEDULES["2->3"])))
    assert losses[0] == losses[1] != losses[2]


def test_the_random_state_is_restored():
    first = make_scheduler([FROM_SCRATCH])
    torch.manual_seed(4)
    run_epochs(first, 1)
    state = through_a_file(first.state_dict())
    expected = torch.rand(3)
    make_scheduler([FROM_SCRATCH]).load_state_dict(state)
    assert torch.equal(torch.rand(3), expected)


def test_two_runs_of_one_seed_are_the_same_and_of_another_are_not():
    losses = run_epochs(make_scheduler(SCHEDULES["2->3"]))
    assert run_epochs(make_scheduler(SCHEDULES["2->3"])) == losses
    assert run_epochs(make_scheduler(SCHEDULES["2->3"], seed=1)) != losses


def test_no_images_are_an_error():
    with pytest.raises(KdganError, match="at least one image; got 0"):
        ProgressiveScheduler(make_stages([FROM_SCRATCH]), make_state((1, 2, 4), 0), IMAGES[:0])


@pytest.mark.parametrize("loss_set", [*STRUCTURES.values(), LossSet(mu=1, beta=1)])
def test_a_stage_that_needs_a_teacher_is_refused_without_one(loss_set):
    scheduler = ProgressiveScheduler(make_stages([loss_set]), make_state((1, 2, 4), 0), IMAGES, settings=SETTINGS)
    with pytest.raises(KdganError, match="Stage s0 needs a teacher; found none"):
        next(records_of(scheduler))


def test_a_stage_has_at_least_one_epoch():
    with pytest.raises(KdganError, match="at least 1 epoch; got 0"):
        Stage("x", FROM_SCRATCH, 0, 1e-3, 1e-3)


def test_a_schedule_has_at_least_one_stage():
    with pytest.raises(KdganError, match="at least one stage; got none"):
        ProgressiveScheduler([], make_state((1, 2, 4), 0), IMAGES)


@pytest.mark.parametrize("change", ["format", "images"])
def test_a_state_of_another_format_or_of_other_images_is_refused(change):
    state = make_scheduler([FROM_SCRATCH]).state_dict()
    state[change] = "2"
    message = {"format": "not of format 3; found 2", "images": "needs the training images it began with"}[change]
    with pytest.raises(KdganError, match=message):
        make_scheduler([FROM_SCRATCH]).load_state_dict(state)


def test_a_scheduler_is_finished_after_its_last_epoch():
    scheduler = make_scheduler(SCHEDULES["2->3"])
    assert not scheduler.is_finished
    assert [scheduler.is_finished for _ in records_of(scheduler)] == [False, False, False, True]
    assert scheduler.is_finished
