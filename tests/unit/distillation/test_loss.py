"""K_l against NumPy, and any further tap: its value, its connector, its rows in the cache and its saved state."""

import copy
import io

import numpy as np
import pytest
import torch

from kdgan_compress.accel.teacher_cache import TeacherCache, cache_key, cache_shapes, teacher_rows
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.terms import Term
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import train_schedulers
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build

TAPS = ("z1", "x_hat", "z2")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(seed, names=TAPS):
    shapes = {"z1": (3, 5), "x_hat": (3, 2, 4, 4), "z2": (3, 5)}
    return {name: noise(*shapes[name], seed=seed + i).requires_grad_() for i, name in enumerate(names)}


def weighted_sum(k_l, student, teacher):
    """K_l of a batch, and the mean of each of its terms."""
    terms = {name: (weight, per_sample.mean()) for name, weight, per_sample in k_l(student, teacher)}
    return sum(weight * value for weight, value in terms.values()), {name: value for name, (_, value) in terms.items()}


def distances_by_numpy(student, teacher, distance):
    terms = {}
    for tap, name in zip(TAPS, ("k1", "kx", "k2"), strict=True):
        if tap not in student or tap not in teacher:
            continue
        rows = (student[tap].detach().numpy() - teacher[tap].detach().numpy()).reshape(3, -1)
        order = 1 if tap == "x_hat" else 2
        if distance == "norm":
            terms[name] = np.mean([np.linalg.norm(row, order) for row in rows])
        else:
            terms[name] = np.mean([np.abs(row) ** order for row in rows])
    return terms


@pytest.mark.parametrize("distance", ["mean", "norm"])
def test_k_l_is_the_weighted_sum_of_equation_7(distance):
    student, teacher = outputs(0), outputs(10)
    k_l = DistillationLoss(w1=2, wx=3, w2=5, distance=distance)
    assert [per_sample.shape for _, _, per_sample in k_l(student, teacher)] == [(3,)] * 3
    loss, terms = weighted_sum(k_l, student, teacher)
    expected = distances_by_numpy(student, teacher, distance)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(2 * expected["k1"] + 3 * expected["kx"] + 5 * expected["k2"])


def test_k_l_trains_the_student_and_never_the_teacher():
    student, teacher = outputs(0), outputs(10)
    loss, _ = weighted_sum(DistillationLoss(w1=2, wx=3, w2=5), student, teacher)
    loss.backward()
    for name, weight in (("z1", 2), ("z2", 5)):
        expected = weight * 2 * (student[name] - teacher[name]) / student[name].numel()
        torch.testing.assert_close(student[name].grad, expected.detach())
    expected = 3 * (student["x_hat"] - teacher["x_hat"]).sign() / student["x_hat"].numel()
    torch.testing.assert_close(student["x_hat"].grad, expected.detach())
    assert all(output.grad is None for output in teacher.values())


def test_k_l_between_networks_leaves_the_teacher_without_a_gradient():
    architecture = Architecture(channels=(2, 4), image_size=16, latent_size=16)
    teacher, student = build(architecture, seed=1), build(architecture, seed=2)
    images = noise(3, 1, 16, 16).tanh().float()
    features = [dict(zip(TAPS, gan.generator(images), strict=True)) for gan in (student, teacher)]
    loss, _ = weighted_sum(DistillationLoss(), *features)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.generator.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.generator.parameters())


def test_k_l_of_a_network_with_itself_is_zero():
    features = outputs(0)
    loss, terms = weighted_sum(DistillationLoss(), features, features)
    assert loss == 0
    assert set(terms) == {"k1", "kx", "k2"}


@pytest.mark.parametrize(
    ("student_taps", "teacher_taps", "names"),
    [
        (TAPS, ("z1", "x_hat"), {"k1", "kx"}),
        (("z1", "x_hat"), TAPS, {"k1", "kx"}),
        (("x_hat",), TAPS, {"kx"}),
        (("z2", "x_hat"), ("z1", "z2"), {"k2"}),
    ],
)
def test_only_taps_that_both_have_count(student_taps, teacher_taps, names):
    student, teacher = outputs(0, student_taps), outputs(10, teacher_taps)
    loss, terms = weighted_sum(DistillationLoss(w1=2, wx=3, w2=5), student, teacher)
    expected = distances_by_numpy(student, teacher, "mean")
    assert terms.keys() == expected.keys() == names
    weights = {"k1": 2, "kx": 3, "k2": 5}
    assert loss.item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()))


@pytest.mark.parametrize(("student_taps", "teacher_taps"), [((), TAPS), (("z1",), ("x_hat", "z2"))])
def test_no_tap_in_common_is_an_error(student_taps, teacher_taps):
    with pytest.raises(KdganError, match=r"need a tap of z1, x_hat or z2 in common; got \['x_hat'"):
        weighted_sum(DistillationLoss(), outputs(0, student_taps), outputs(10, teacher_taps))


def test_latents_of_different_lengths_are_an_error():
    student, teacher = {"z1": torch.zeros(3, 16)}, {"z1": torch.zeros(3, 24)}
    with pytest.raises(KdganError, match=r"differ in shape; got \(3, 16\) and \(3, 24\)"):
        weighted_sum(DistillationLoss(), student, teacher)


def test_a_weight_of_zero_leaves_its_term_in_the_log_only():
    student, teacher = outputs(0), outputs(10)
    loss, terms = weighted_sum(DistillationLoss(w1=0, wx=1, w2=0), student, teacher)
    assert loss == terms["kx"]
    assert terms["k1"] > 0


@pytest.mark.parametrize("name", ["w1", "wx", "w2", "w_r"])
@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_at_least_0(name, weight):
    with pytest.raises(KdganError, match=f"got {name} = {weight:g}.* finite number ≥ 0"):
        DistillationLoss(**{name: weight})


# The residual term


@pytest.mark.parametrize("distance", ["mean", "norm"])
def test_k_r_is_the_distance_of_residuals(distance):
    student, teacher = outputs(0), outputs(10)
    k_l = DistillationLoss(w1=0, wx=0, w2=0, w_r=7, distance=distance)
    loss, terms = weighted_sum(k_l, student, teacher)
    assert list(terms) == ["k1", "kx", "k2", "kr"]
    z1, z2, target1, target2 = (f[name].detach().numpy() for f in (student, teacher) for name in ("z1", "z2"))
    rows = [
        [(a - b) - (c - d) for a, b, c, d in zip(*four, strict=True)]
        for four in zip(z1, z2, target1, target2, strict=True)
    ]
    squares = [sum(value**2 for value in row) for row in rows]
    expected = np.mean([np.sqrt(square) if distance == "norm" else square / 5 for square in squares])
    assert terms["kr"].item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(7 * expected)

    loss.backward()
    residual = torch.tensor(rows)
    norms = residual.norm(dim=1, keepdim=True)
    gradient = 7 / 3 * (residual / norms if distance == "norm" else 2 * residual / 5)
    torch.testing.assert_close(student["z1"].grad, gradient)
    torch.testing.assert_close(student["z2"].grad, -gradient)
    assert all(output.grad is None for output in teacher.values())


def test_k_r_ignores_what_moves_z1_and_z2_alike():
    teacher = outputs(0)
    student = teacher | {name: teacher[name] + 3 for name in ("z1", "z2")}
    _, terms = weighted_sum(DistillationLoss(w_r=1), student, teacher)
    assert terms["k1"].item() == terms["k2"].item() == pytest.approx(9)
    assert terms["kr"].item() == pytest.approx(0)


@pytest.mark.parametrize("taps", [("z1", "x_hat"), ("z2", "x_hat")])
@pytest.mark.parametrize("is_student", [True, False])
def test_k_r_needs_z1_and_z2_of_both(taps, is_student):
    features = [outputs(0, taps), outputs(10)]
    with pytest.raises(
        KdganError, match=rf"K_r needs z1 and z2 of teacher and student; got x_hat, {taps[0]}\. Set .*w_r"
    ):
        weighted_sum(DistillationLoss(w_r=1), *(features if is_student else features[::-1]))


@pytest.mark.parametrize("family", ["ed", "cvgad"])
def test_k_r_of_a_family_without_z2_is_refused_before_a_stage_begins(family):
    gan = build(Architecture(family=family, channels=(2, 4), image_size=16, latent_size=8, image_channels=1), 0)
    with pytest.raises(KdganError, match="K_r needs z1 and z2 of teacher and student"):
        DistillationLoss(w_r=1).taps(gan)
    assert "z2" not in DistillationLoss(w_r=1, re_encode=True).taps(gan)
    assert DistillationLoss(w2=0, w_r=1, re_encode=True).re_encodes


def test_z1_and_z2_of_different_sizes_have_no_residual():
    features = {"z1": torch.zeros(3, 8), "z2": torch.zeros(3, 1)}
    with pytest.raises(KdganError, match=r"differ in shape; got \(3, 8\) and \(3, 1\)"):
        weighted_sum(DistillationLoss(w_r=1), features, features)


@pytest.mark.usefixtures("double", "one_thread")
@pytest.mark.parametrize("is_cached", [False, True], ids=["live", "cache"])
@pytest.mark.parametrize(
    ("family", "latent_size"), [("ede", 8), ("ede", 6), ("ed", 8)], ids=["ede", "connectors", "re-encoded"]
)
def test_a_step_with_k_r_is_that_of_plain_autograd(family, latent_size, is_cached):
    k_l = DistillationLoss(w1=2, wx=3, w2=4, w_r=500, re_encode=family == "ed")
    gans = [
        build(Architecture(family=family, channels=channels, image_size=16, latent_size=latent), seed)
        for channels, latent, seed in (((1, 2), latent_size, 1), ((2, 4), 8, 2))
    ]
    scheduler = ProgressiveScheduler(
        [Stage("x", STRUCTURES[1], 1, 2e-3)], TrainState(gans[0]), IMAGES, TrainState(gans[1]), k_l, TrainingSettings(6)
    )
    if is_cached:
        shapes = cache_shapes(gans[1], IMAGES, k_l)
        scheduler.use_targets(TeacherCache(torch.cat(list(teacher_rows(gans[1], IMAGES, k_l, "float32"))), shapes))
    student, teacher = copy.deepcopy(gans[0].generator), gans[1].generator
    torch.manual_seed(3)  # connectors are drawn
    scheduler.stage_run(0).begin()
    connectors = copy.deepcopy(scheduler.student.connectors)
    assert len(connectors.maps) == (2 if latent_size == 6 else 0)
    scheduler.student.connectors = None
    torch.manual_seed(3)
    ((_, record),) = train_schedulers([scheduler])

    x = IMAGES / 127.5 - 1
    (z1, x_hat, z2), (t1, t_hat, t2) = (latents(generator, x) for generator in (student, teacher))
    t1, t_hat, t2 = t1.detach(), t_hat.detach(), t2.detach()
    if latent_size == 6:
        z1, z2 = (z @ connectors.maps[name].weight.T for z, name in ((z1, "z1"), (z2, "z2")))
    residual = ((z1 - z2) - (t1 - t2)).square().mean()
    assert record.losses["kr"] == pytest.approx(residual.item(), rel=1e-4 if is_cached else 1e-9)
    loss = 2 * (z1 - t1).square().mean() + 3 * (x_hat - t_hat).abs().mean() + 4 * (z2 - t2).square().mean()
    (loss + 500 * residual).backward()
    torch.optim.Adam([*student.parameters(), *connectors.parameters()], 2e-3, scheduler.student.betas).step()
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if is_cached else {"rtol": 1e-7, "atol": 1e-9}
    for trained, by_hand in ((scheduler.student.gan.generator, student), (scheduler.student.connectors, connectors)):
        torch.testing.assert_close(trained.state_dict(), by_hand.state_dict(), **tolerance)


def latents(generator, x):
    """z1, x̂ and z2; of a family without a second encoder, z1 of x̂."""
    z1 = generator.encoder(x)
    x_hat = generator.decoder(z1)
    return z1, x_hat, (generator.encoder2 or generator.encoder)(x_hat)


# Further taps

FOURTH = Term("encoder.features", weight=5)
IMAGES = torch.randint(0, 256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_gan(channels, seed):
    return build(Architecture(channels=channels, image_size=16, latent_size=8), seed)


def make_scheduler(channels, k_l, seed=1, epochs=1, batch_size=6):
    student, teacher = TrainState(make_gan(channels, seed)), TrainState(make_gan((2, 4), 2))
    stages = [Stage("x", STRUCTURES[2 if epochs > 1 else 1], epochs, 2e-3)]
    return ProgressiveScheduler(stages, student, IMAGES, teacher, k_l, TrainingSettings(batch_size))


def mean_by_loop(loss, a, b):
    """Mean of a loss over all elements, one after the other."""
    pairs = zip(a.detach().flatten().tolist(), b.detach().flatten().tolist(), strict=True)
    distances = [abs(p - q) if loss == "l1" else (p - q) ** 2 for p, q in pairs]
    return sum(distances) / len(distances)


@pytest.mark.usefixtures("double", "one_thread")
@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("channels", [(2, 4), (1, 2)], ids=["equal channels", "connector"])
def test_a_fourth_tap_is_a_term_like_the_others(channels, loss):
    k_l = DistillationLoss(w1=2, wx=3, w2=4, terms=(Term("encoder.features", weight=5, loss=loss),))
    scheduler = make_scheduler(channels, k_l)
    student, teacher = copy.deepcopy(scheduler.student.gan.generator), scheduler.teacher.gan.generator
    torch.manual_seed(3)  # the connector is drawn
    run = scheduler.stage_run(0)
    run.begin()
    connectors = copy.deepcopy(run.student.connectors)
    assert list(connectors.maps) == ([] if channels == (2, 4) else ["encoder/features"])
    torch.manual_seed(3)
    scheduler.student.connectors = None
    ((_, record),) = train_schedulers([scheduler])

    x = IMAGES / 127.5 - 1
    features, targets = student.encoder.features(x), teacher.encoder.features(x).detach()
    if channels != (2, 4):
        features = torch.einsum("bchw,oc->bohw", features, connectors.maps["encoder/features"].weight[:, :, 0, 0])
    assert record.losses["k_encoder.features"] == pytest.approx(mean_by_loop(loss, features, targets), rel=1e-9)
    assert list(record.losses) == ["k1", "kx", "k2", "k_encoder.features"]

    total = 5 * ((features - targets).abs() if loss == "l1" else (features - targets).square()).mean()
    distances = zip(student(x), teacher(x), (2, 3, 4), strict=True)
    for tap, (output, target, weight) in zip(TAPS, distances, strict=True):
        difference = output - target.detach()
        total = total + weight * (difference.abs() if tap == "x_hat" else difference.square()).mean()
    total.backward()
    torch.optim.Adam([*student.parameters(), *connectors.parameters()], 2e-3, scheduler.student.betas).step()
    for trained, by_hand in ((scheduler.student.gan.generator, student), (scheduler.student.connectors, connectors)):
        torch.testing.assert_close(trained.state_dict(), by_hand.state_dict(), rtol=1e-7, atol=1e-9)


def test_a_terms_weight_is_checked():
    with pytest.raises(KdganError, match="got weight = -1"):
        Term("encoder.features", weight=-1)


def test_a_tap_that_a_network_does_not_have_is_refused():
    scheduler = make_scheduler((2, 4), DistillationLoss(terms=(Term("encoder.feature"),)))
    with pytest.raises(KdganError, match=r"encoder\.feature.*perhaps 'encoder\.features'"):
        list(train_schedulers([scheduler]))


@pytest.mark.usefixtures("double", "one_thread")
@pytest.mark.parametrize("channels", [(2, 4), (1, 2)], ids=["equal channels", "connector"])
def test_the_cache_holds_a_fourth_tap_too(channels):
    k_l, teacher = DistillationLoss(terms=(FOURTH,)), make_gan((2, 4), 2)
    shapes = cache_shapes(teacher, IMAGES, k_l)
    assert shapes == {"encoder.features": (4, 4, 4), "z1": (8,), "x_hat": (1, 16, 16), "z2": (8,)}
    cache = TeacherCache(torch.cat(list(teacher_rows(teacher, IMAGES, k_l, "float32"))), shapes)
    expected = teacher.generator.encoder.features(IMAGES[[3, 1]] / 127.5 - 1).detach()
    torch.testing.assert_close(cache(IMAGES, torch.tensor([3, 1]))["encoder.features"], expected, rtol=1e-5, atol=1e-6)
    assert cache_key(teacher, IMAGES, k_l, "float32") != cache_key(teacher, IMAGES, DistillationLoss(), "float32")

    losses = []
    for is_cached in (True, False):
        torch.manual_seed(3)
        scheduler = make_scheduler(channels, k_l, epochs=2, batch_size=4)
        if is_cached:
            scheduler.use_targets(cache)
        losses.append([record.losses for _, record in train_schedulers([scheduler])])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("one_thread")
def test_the_connector_of_a_fourth_tap_is_saved_and_resumed():
    k_l = DistillationLoss(terms=(FOURTH,))
    torch.manual_seed(3)
    whole = make_scheduler((1, 2), k_l, epochs=2, batch_size=4)
    running = train_schedulers([whole])
    next(running)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    expected = [record.losses for _, record in running]

    resumed = make_scheduler((1, 2), k_l, seed=9, epochs=2, batch_size=4)
    state = torch.load(file, weights_only=True)
    assert list(state["student"]["networks"]["connectors"]) == ["maps.encoder/features.weight"]
    resumed.load_state_dict(state)
    assert [record.losses for _, record in train_schedulers([resumed])] == expected
    torch.testing.assert_close(resumed.student.state_dict(), whole.student.state_dict(), rtol=0, atol=0)
