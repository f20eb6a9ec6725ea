"""CVGAD as teacher and student, and distillation between families: what is trained, what K_2 is, that K_l falls."""

import copy

import pytest
import torch

from kdgan_compress.distillation import trainer
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, StageRun, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.gans import FAMILIES, Architecture, build
from kdgan_compress.gans.cvgad import CvgadObjective

BETAS = (0.5, 0.999)
ALWAYS_NEGATIVE = CvgadObjective(latent_threshold=1e9)
IMAGES = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
KINDS = {"k1", "kx", "k2"}
PAIRS = [("cvgad", "cvgad"), ("ede", "cvgad"), ("cvgad", "ede")]


pytestmark = pytest.mark.usefixtures("one_thread")


def make_gan(family, channels, seed, latent=8, norm="instance"):
    clusters = 2 if family == "cvgad" else None
    return build(
        Architecture(
            family=family, channels=channels, image_size=16, latent_size=latent, norm=norm, num_clusters=clusters
        ),
        seed,
    )


def train(loss_sets, student, teacher, objectives, epochs=3, batch_size=4, k_l=None, rate=2e-3):
    """Mean losses of each epoch, by loss sets or structures' numbers; the same noise each time."""
    torch.manual_seed(3)
    pairs = zip((student, teacher), objectives, strict=True)
    states = [TrainState(gan, BETAS, 0.9, objective) for gan, objective in pairs]
    stages = [Stage("x", STRUCTURES.get(loss_set, loss_set), epochs, rate, 1e-3) for loss_set in loss_sets]
    settings = TrainingSettings(batch_size, "constant")
    scheduler = ProgressiveScheduler(stages, states[0], IMAGES, states[1], k_l, settings)
    return [record.losses for _, record in trainer.train_schedulers([scheduler]) if record.epoch_done]


def snapshot(gan):
    return {name: copy.deepcopy(network.state_dict()) for name, network in gan.networks().items()}


def changed_parts(gan, before):
    """The parts of a cvgad GAN of which a parameter has changed."""
    parts = set()
    for network in gan.networks():
        for name, parameter in gan.networks()[network].named_parameters():
            if not torch.equal(parameter, before[network][name]):
                part = ".".join(name.split(".")[: 2 if name.startswith("encoder") else 1])
                parts.add("critic" if network == "discriminator" else part)
    return parts


DISTILLED = {"encoder.features", "encoder.mu", "decoder"}
WHOLE = {*DISTILLED, "encoder.log_var", "classifier", "means", "feature_discriminator", "critic"}


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(
    ("structures", "of_student", "of_teacher"),
    [
        ([1], DISTILLED, set()),
        ([2], WHOLE, set()),
        ([3], DISTILLED, WHOLE),
        ([4], WHOLE, WHOLE),
        ([2, 3], WHOLE, WHOLE),
        ([2, 1], WHOLE, set()),
    ],
    ids=["1", "2", "3", "4", "2->3", "2->1"],
)
def test_which_parts_are_trained(structures, of_student, of_teacher, norm):
    student, teacher = make_gan("cvgad", (1, 2), 1, norm=norm), make_gan("cvgad", (2, 4), 2, norm=norm)
    before = snapshot(student), snapshot(teacher)
    losses = train(structures, student, teacher, [ALWAYS_NEGATIVE] * 2)
    assert len(losses) == 3 * len(structures)
    assert changed_parts(student, before[0]) == of_student
    assert changed_parts(teacher, before[1]) == of_teacher
    if not of_teacher:  # not even a buffer
        torch.testing.assert_close(snapshot(teacher), before[1], rtol=0, atol=0)
    names = {"ssim", "l1", "latent", "categorical", "negative", "mutual", "wasserstein", "penalty", "adversarial"}
    for structure, epochs in zip(structures, (losses[i : i + 3] for i in range(0, len(losses), 3)), strict=True):
        expected = {"k1", "kx"}
        expected |= names if structure in (2, 4) else set()
        expected |= {f"teacher_{name}" for name in names} if structure in (3, 4) else set()
        assert set().union(*epochs) == expected


@pytest.mark.parametrize("loss_set", [LossSet(alpha=1, lam=1), LossSet(beta=1, lam=1)], ids=["alpha", "beta"])
def test_a_teacher_trained_by_one_loss(loss_set):
    student, teacher = make_gan("cvgad", (1, 2), 1), make_gan("cvgad", (2, 4), 2)
    before = snapshot(teacher)
    states = TrainState(student, objective=ALWAYS_NEGATIVE), TrainState(teacher, objective=ALWAYS_NEGATIVE)
    list(
        trainer.train_schedulers([ProgressiveScheduler([Stage("x", loss_set, 3, 1e-3)], states[0], IMAGES, states[1])])
    )
    assert changed_parts(teacher, before) == (WHOLE - {"critic"} if loss_set.alpha > 0 else {"critic"})


def test_a_trained_teacher_is_trained_as_if_alone():
    # In structure 3 the student draws no noise, so that the teacher's is the same.
    teacher, alone = make_gan("cvgad", (2, 4), 2), make_gan("cvgad", (2, 4), 2)
    train([3], make_gan("cvgad", (1, 2), 1), teacher, [ALWAYS_NEGATIVE] * 2)
    torch.manual_seed(3)
    state, settings = TrainState(alone, BETAS, 0.9, ALWAYS_NEGATIVE), TrainingSettings(4, "constant")
    list(
        trainer.train_schedulers(
            [ProgressiveScheduler([Stage("x", FROM_SCRATCH, 3, 1e-3)], state, IMAGES, settings=settings)]
        )
    )
    torch.testing.assert_close(snapshot(teacher), snapshot(alone), rtol=0, atol=0)


def test_distillation_does_not_depend_on_the_phase_of_the_objective():
    # Algorithm 1 counts batches, K_l does not: structure 1 is the same whatever the objective.
    losses = [
        train([1], make_gan("cvgad", (1, 2), 1), make_gan("cvgad", (2, 4), 2), [objective, None])
        for objective in (ALWAYS_NEGATIVE, None)
    ]
    assert losses[0] == losses[1]


# K_2 where there is no second encoder.


def features_of(gan, images):
    """z1, x̂ and z2 of either family."""
    outputs = gan.generator(images)
    if len(outputs) == 3:
        return outputs
    mu, x_hat = outputs
    return mu, x_hat, gan.generator(x_hat)[0]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=["cvgad", "ede from cvgad", "cvgad from ede"])
def test_a_step_with_re_encoding_is_adams_on_k_l_written_out(student, teacher):
    student, teacher = make_gan(student, (1, 2), 1), make_gan(teacher, (2, 4), 2)
    by_hand = copy.deepcopy(student)
    weights = DistillationLoss(w1=2, wx=3, w2=5, re_encode=True)
    losses = train([1], student, teacher, [None, None], 1, len(IMAGES), weights)

    images = IMAGES.double() / 127.5 - 1
    (z1, x_hat, z2), targets = features_of(by_hand, images), features_of(teacher, images)
    z1_t, x_hat_t, z2_t = (target.detach() for target in targets)
    k1, kx, k2 = (z1 - z1_t).square().mean(), (x_hat - x_hat_t).abs().mean(), (z2 - z2_t).square().mean()
    assert losses == [pytest.approx({"k1": k1.item(), "kx": kx.item(), "k2": k2.item()})]
    (2 * k1 + 3 * kx + 5 * k2).backward()
    torch.optim.Adam(by_hand.generator.parameters(), 2e-3, BETAS).step()
    torch.testing.assert_close(student.generator.state_dict(), by_hand.generator.state_dict(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("student", "teacher", "re_encode", "w2", "expected"),
    [
        ("cvgad", "cvgad", True, 1.0, KINDS),
        ("cvgad", "cvgad", False, 1.0, {"k1", "kx"}),
        ("cvgad", "cvgad", True, 0.0, {"k1", "kx"}),
        ("ede", "cvgad", False, 1.0, {"k1", "kx"}),
        ("ede", "cvgad", True, 1.0, KINDS),
        ("cvgad", "ede", True, 1.0, KINDS),
        ("ed", "ede", True, 1.0, KINDS),
        ("ede", "ede", False, 1.0, KINDS),
    ],
)
def test_k_2_exists_where_both_have_a_z2_or_it_is_re_encoded(student, teacher, re_encode, w2, expected):
    student, teacher = make_gan(student, (1, 2), 1, 5), make_gan(teacher, (2, 4), 2)
    k_l = DistillationLoss(w2=w2, re_encode=re_encode)
    (losses,) = train([1], student, teacher, [None, None], 1, 8, k_l)
    assert set(losses) == expected


@pytest.mark.parametrize(
    "loss_set", [STRUCTURES[1], LossSet(mu=0.001, nu=1, lam=1), STRUCTURES[4]], ids=["1", "2", "4"]
)
@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=["cvgad", "ede from cvgad", "cvgad from ede"])
def test_between_families_k_l_falls_through_connectors(student, teacher, loss_set):
    objectives = [FAMILIES[family].objective() for family in (student, teacher)]
    student, teacher = make_gan(student, (2, 4), 1, latent=5), make_gan(teacher, (2, 4), 2)
    # Random weights of 0.02 leave the teacher's x̂ near grey, so there would be nothing to learn.
    for parameter in teacher.generator.decoder.head.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2, generator=torch.Generator().manual_seed(1))
    losses = train([loss_set], student, teacher, objectives, 12, 4, DistillationLoss(re_encode=True), rate=1e-2)
    values = [50 * epoch["k1"] + 10 * epoch["kx"] + 50 * epoch["k2"] for epoch in losses]
    assert all(torch.tensor(list(epoch.values())).isfinite().all() for epoch in losses)
    assert loss_set.trains_teacher or values[-1] < 0.8 * values[0]  # a trained teacher is a moving target


def test_connectors_exist_for_z2_too():
    student, teacher = make_gan("cvgad", (1, 2), 1, latent=5), make_gan("ede", (2, 4), 2)
    states = TrainState(student, objective=ALWAYS_NEGATIVE), TrainState(teacher)
    k_l, settings = DistillationLoss(re_encode=True), TrainingSettings(4)
    before = snapshot(student), snapshot(teacher)
    run = StageRun(Stage("x", STRUCTURES[2], 1, 1e-3), 0, *states, IMAGES, k_l, settings)
    run.begin()
    torch.testing.assert_close((snapshot(student), snapshot(teacher)), before, rtol=0, atol=0)
    maps = states[0].connectors.maps
    assert {name: tuple(connector.weight.shape) for name, connector in maps.items()} == {"z1": (8, 5), "z2": (8, 5)}
    start = copy.deepcopy(maps.state_dict())
    list(trainer.train_stage([trainer.StageProgress(run)]))
    assert not any(torch.equal(weight, start[name]) for name, weight in maps.state_dict().items())


def test_a_frozen_batch_norm_teacher_keeps_its_statistics_when_z2_is_re_encoded():
    student, teacher = make_gan("cvgad", (1, 2), 1), make_gan("cvgad", (2, 4), 2, norm="batch")
    before = snapshot(teacher)
    train([2], student, teacher, [ALWAYS_NEGATIVE] * 2, k_l=DistillationLoss(re_encode=True))
    torch.testing.assert_close(snapshot(teacher), before, rtol=0, atol=0)
