"""Further terms of K_l by name: what a step with them does, what connectors they need, and what is refused when."""

import copy

import pytest
import torch

from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.terms import TERM_LOSSES, Term, TermLoss
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import train_schedulers
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build
from kdgan_compress.losses import attention, correlation, cosine, fsp, rkd_angle, rkd_distance, similarity_preserving

IMAGES = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PAIR = ("encoder.features.2", "encoder.features")
FUNCTIONS = {
    "cosine": cosine,
    "correlation": correlation,
    "attention": attention,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "sp": similarity_preserving,
}


def make_scheduler(k_l, channels=(1, 2), batch_size=6, images=IMAGES, family="ede"):
    student, teacher = (
        TrainState(build(Architecture(family=family, channels=widths, image_size=16, latent_size=8), seed))
        for widths, seed in ((channels, 1), ((2, 4), 2))
    )
    stages = [Stage("x", STRUCTURES[1], 1, 2e-3)]
    return ProgressiveScheduler(stages, student, images, teacher, k_l, TrainingSettings(batch_size))


def terms_of(loss, weight=5.0, tap="encoder.features"):
    return DistillationLoss(terms=(Term(PAIR if loss == "fsp" else tap, weight, loss),))


def features_of(generator, taps):
    """Features of the images at dotted paths, with their graph."""
    found = {}
    handles = [
        generator.get_submodule(tap).register_forward_hook(lambda _m, _i, output, tap=tap: found.update({tap: output}))
        for tap in taps
    ]
    outputs = generator(IMAGES / 127.5 - 1)
    for handle in handles:
        handle.remove()
    return outputs, found


@pytest.mark.usefixtures("double", "one_thread")
@pytest.mark.parametrize("loss", [*FUNCTIONS, "fsp"])
def test_a_step_with_a_term_is_that_of_plain_autograd(loss):
    scheduler = make_scheduler(terms_of(loss), channels=(2, 4))
    student, teacher = copy.deepcopy(scheduler.student.gan.generator), scheduler.teacher.gan.generator
    ((_, record),) = train_schedulers([scheduler])

    taps = PAIR if loss == "fsp" else ("encoder.features",)
    (outputs, features), (targets, target_features) = (features_of(network, taps) for network in (student, teacher))
    both = [*(features[tap] for tap in taps), *(target_features[tap].detach() for tap in taps)]
    value = (fsp if loss == "fsp" else FUNCTIONS[loss])(*both).mean()
    assert record.losses["_".join(["k", loss, *taps])] == pytest.approx(value.item(), rel=1e-9)
    (z1, x_hat, z2), (t1, t_hat, t2) = outputs, (target.detach() for target in targets)
    k_l = 50 * (z1 - t1).square().mean() + 10 * (x_hat - t_hat).abs().mean() + 50 * (z2 - t2).square().mean()
    (k_l + 5 * value).backward()
    torch.optim.Adam(student.parameters(), 2e-3, scheduler.student.betas).step()
    trained = scheduler.student.gan.generator.state_dict()
    torch.testing.assert_close(trained, student.state_dict(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "connected"),
    [
        *((loss, ["encoder/features"]) for loss in ("l1", "l2", "cosine", "correlation")),
        ("fsp", ["encoder/features/2", "encoder/features"]),
        *((loss, []) for loss in ("attention", "rkd_distance", "rkd_angle", "sp")),
    ],
)
def test_only_losses_that_compare_values_get_a_connector(loss, connected):
    scheduler = make_scheduler(terms_of(loss))
    list(train_schedulers([scheduler]))
    assert list(scheduler.student.connectors.maps) == connected


def test_two_terms_on_one_tap_are_two_terms():
    terms = (Term("encoder.features"), Term("encoder.features", loss="sp"), Term("z1", loss="rkd_distance"))
    scheduler = make_scheduler(DistillationLoss(terms=terms))
    ((_, record),) = train_schedulers([scheduler])
    names = ["k_encoder.features", "k_sp_encoder.features", "k_rkd_distance_z1"]
    assert list(record.losses) == ["k1", "kx", "k2", *names]
    assert all(record.losses[name] > 0 for name in names)


@pytest.mark.parametrize("loss", ["attention", "rkd_distance"])
def test_terms_work_in_another_family(loss):
    ((_, record),) = train_schedulers([make_scheduler(terms_of(loss), family="cvgad")])
    assert record.losses[f"k_{loss}_encoder.features"] > 0


def test_a_term_may_compare_a_re_encoded_z2():
    k_l = DistillationLoss(re_encode=True, terms=(Term("z2", loss="cosine"),))
    ((_, record),) = train_schedulers([make_scheduler(k_l, family="ed")])
    assert record.losses["k_cosine_z2"] > 0


def test_a_term_alone_is_a_k_l():
    features = {"a": torch.zeros(3, 4)}
    (term,) = DistillationLoss(terms=(Term("a", loss="cosine"),))(features, features)
    assert term[0] == "k_cosine_a"


def test_another_loss_is_one_row_of_the_table(monkeypatch):
    monkeypatch.setitem(TERM_LOSSES, "largest", TermLoss(lambda a, b: (a - b).abs().flatten(1).amax(1)))
    scheduler = make_scheduler(terms_of("largest"))
    ((_, record),) = train_schedulers([scheduler])
    assert record.losses["k_largest_encoder.features"] > 0
    assert list(scheduler.student.connectors.maps) == ["encoder/features"]


# What is refused


def test_an_unknown_loss_is_refused_with_the_nearest():
    with pytest.raises(KdganError, match=r"got 'rkd-distance'\. Choose one of l1, .*, perhaps rkd_distance"):
        Term("z1", loss="rkd-distance")


@pytest.mark.parametrize(
    ("tap", "loss", "message"),
    [
        ("z1", "fsp", r"fsp reads 2 taps; got 1: z1\. Give tap: \[FIRST, SECOND\]"),
        (PAIR, "sp", r"sp reads 1 tap; got 2: encoder\.features\.2, encoder\.features\. Give tap: NAME"),
        ((*PAIR, "z1"), "fsp", "fsp reads 2 taps; got 3"),
    ],
)
def test_a_wrong_number_of_taps_is_refused(tap, loss, message):
    with pytest.raises(KdganError, match=message):
        Term(tap, loss=loss)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term("z1", loss="attention"), r"feature maps \(B, C, H, W\) \(term attention on z1\); got \(1, 8\)"),
        (Term(("encoder.features", "z2"), loss="fsp"), r"\(term fsp on encoder\.features and z2\); got \(1, 8\)"),
        (Term("encoder.feature", loss="sp"), r"does not name a submodule; .*perhaps 'encoder\.features'"),
    ],
)
def test_a_tap_that_does_not_fit_is_refused_before_training(term, message):
    scheduler = make_scheduler(DistillationLoss(terms=(term,)))
    before = torch.get_rng_state()
    weights = copy.deepcopy(scheduler.student.gan.generator.state_dict())
    with pytest.raises(KdganError, match=message):
        scheduler.check()
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KdganError, match=message):
        scheduler.begin_stage()
    torch.testing.assert_close(scheduler.student.gan.generator.state_dict(), weights, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [name for name, loss in TERM_LOSSES.items() if loss.num_images > 1])
@pytest.mark.parametrize("few", ["batch size", "images"])
def test_batches_with_too_few_images_are_refused_before_training(loss, few):
    num_images = TERM_LOSSES[loss].num_images
    enough, short = {"batch_size": num_images, "images": IMAGES[:num_images]}, num_images - 1
    make_scheduler(terms_of(loss), **enough).check()
    changes = {"batch_size": short} if few == "batch size" else {"images": IMAGES[:short]}
    for begin in (ProgressiveScheduler.check, ProgressiveScheduler.begin_stage):
        with pytest.raises(KdganError, match=rf"{loss} .* at least {num_images}; got {short}\. Give --batch-size"):
            begin(make_scheduler(terms_of(loss), **(enough | changes)))


def test_a_last_batch_of_one_image_trains_by_the_other_terms():
    scheduler = make_scheduler(terms_of("rkd_angle"), batch_size=5)
    list(train_schedulers([scheduler]))
    assert scheduler.student.is_finite()
