"""The teacher cache: its rows against the teacher run image by image, its key, and trainings with and without it."""

import contextlib
import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

from kdgan_compress.accel import teacher_cache
from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.accel.teacher_cache import (
    TeacherCache,
    cache_key,
    cache_shapes,
    cache_size_bytes,
    teacher_rows,
)
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings, num_frozen_stages
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import train_schedulers
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, Gan, build

RE_ENCODING = DistillationLoss(re_encode=True)

pytestmark = pytest.mark.usefixtures("one_thread")


def make_images(number, seed=0):
    return torch.randint(0, 256, (number, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make_gan(channels=(2, 4), seed=1, **changes):
    """Weights far from 0.02, with which all images would have nearly the same features."""
    gan = build(Architecture(**{"channels": channels, "image_size": 16, "latent_size": 8} | changes), seed)
    for i, parameter in enumerate(gan.generator.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * seed + i)) * 0.4
    return gan


def make_cache(teacher, images, k_l=None, dtype="float32"):
    k_l = k_l or DistillationLoss()
    shapes = cache_shapes(teacher, images, k_l)
    return TeacherCache(torch.cat(list(teacher_rows(teacher, images, k_l, dtype))), shapes)


def one_by_one(gan, images):
    """z1, x̂ and z2, or z1 of x̂ where there is none, of each image alone, one after the other in a row."""
    network = copy.deepcopy(gan.generator).eval()
    rows = []
    for image in images:
        with torch.no_grad():
            outputs = network(image[None] / 127.5 - 1)
            z1, x_hat = outputs[:2]
            z2 = outputs[2] if len(outputs) == 3 and outputs[2] is not None else network(x_hat)[0]
        rows.append(torch.cat([z1.flatten(), x_hat.flatten(), z2.flatten()]))
    return torch.stack(rows)


# Rows


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "batch"},
        {"image_channels": 3},
        {"family": "ed"},
        {"family": "cvgad", "num_clusters": 2},
    ],
    ids=str,
)
def test_rows_are_the_teachers_features_of_each_image(changes, dtype):
    teacher, images = make_gan(**changes), make_images(130).repeat(1, changes.get("image_channels", 1), 1, 1)
    with torch.no_grad():  # batch norm has statistics of its own
        teacher.generator(images[:50] / 127.5 - 1)
    batches = list(teacher_rows(teacher, images, RE_ENCODING, dtype))
    assert [len(batch) for batch in batches] == [64, 64, 2]
    rows = torch.cat(batches)
    assert rows.dtype == getattr(torch, dtype)
    expected = one_by_one(teacher, images)
    assert expected.std(0).median() > 1e-2
    torch.testing.assert_close(rows.float(), expected, rtol=1e-3 if dtype == "float16" else 1e-4, atol=1e-5)
    shapes = cache_shapes(teacher, images, RE_ENCODING)
    assert shapes == {"z1": (8,), "x_hat": images.shape[1:], "z2": (8,)}
    assert list(shapes) == ["z1", "x_hat", "z2"]
    assert cache_size_bytes(shapes, len(images), dtype) == rows.numel() * rows.element_size()


def test_without_re_encoding_a_teacher_without_z2_has_none():
    teacher, images = make_gan(family="ed"), make_images(3)
    shapes = cache_shapes(teacher, images, DistillationLoss())
    assert set(shapes) == {"z1", "x_hat"}
    (rows,) = teacher_rows(teacher, images, DistillationLoss(), "float32")
    torch.testing.assert_close(rows, one_by_one(teacher, images)[:, : 8 + 256], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_teacher_is_unchanged_even_where_the_rows_are_interrupted(norm):
    teacher, images = make_gan(norm=norm), make_images(70)
    teacher.generator.train()
    teacher.generator.decoder.eval()
    before = copy.deepcopy(teacher.generator.state_dict())
    modes = [module.training for module in teacher.generator.modules()]
    cache_shapes(teacher, images, DistillationLoss())
    rows = teacher_rows(teacher, images, DistillationLoss(), "float32")
    next(rows)
    rows.close()
    make_cache(teacher, images)
    torch.testing.assert_close(teacher.generator.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in teacher.generator.modules()] == modes
    assert all(parameter.requires_grad for parameter in teacher.generator.parameters())
    assert not any(module._forward_hooks for module in teacher.generator.modules())


def test_features_are_computed_in_float32(monkeypatch):
    """On a GPU torch allows TF32 in convolutions, by which an image's features depend on its batch."""
    entered = []
    monkeypatch.setattr(
        teacher_cache, "precision_context", lambda *args: entered.append(args) or contextlib.nullcontext()
    )
    make_cache(make_gan(), make_images(3))
    assert entered == [("float32", "cpu")] * 2


def test_rows_have_no_graph_and_use_no_random_numbers():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    rows = make_cache(make_gan(), make_images(3)).rows
    assert not rows.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 1e6), ("float32", float("nan"))])
def test_rows_that_are_not_finite_are_refused(dtype, scale):
    teacher = make_gan()
    teacher.generator.encoder.head.weight.data.mul_(scale)
    with pytest.raises(KdganError, match=f"must be finite in {dtype} to be cached"):
        make_cache(teacher, make_images(3), dtype=dtype)


# What can't be cached


class Teacher(nn.Module):
    """A user's network that changes its code."""

    def __init__(self, change):
        super().__init__()
        self.encoder, self.code = nn.Linear(256, 8), nn.Identity()
        self.decoder, self.change = nn.Linear(8, 256), change

    def forward(self, images):
        z1 = self.code(self.change(self.encoder(images.flatten(1))))
        return z1, self.decoder(z1)


def users_gan(change):
    torch.manual_seed(0)
    return Gan(Teacher(change), {"z1": "code", "x_hat": "decoder"})


RANDOM = {
    "dropout forced on": lambda z: dropout(z, 0.5, training=True),
    "noise": lambda z: z + 0.01 * torch.randn_like(z),
}
OF_THE_BATCH = {
    "less the batch's mean": lambda z: z - z.mean(0),
    "batch norm forced on": lambda z: nn.functional.batch_norm(z, None, None, training=len(z) > 1) if len(z) > 1 else z,
    "order": lambda z: z.cumsum(0).flip(0),
}


@pytest.mark.parametrize("change", RANDOM.values(), ids=RANDOM)
def test_a_random_teacher_is_refused(change):
    with pytest.raises(KdganError, match=r"always the same can be cached; z1 differs from one pass .*--cache off"):
        cache_shapes(users_gan(change), make_images(20), DistillationLoss())


def test_checking_a_random_teacher_leaves_the_random_state_unchanged():
    # The training continues without a cache and equals the one with --cache off.
    teacher, images = users_gan(RANDOM["noise"]), make_images(20)
    before = torch.get_rng_state()
    with pytest.raises(KdganError):
        cache_shapes(teacher, images, DistillationLoss())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("change", OF_THE_BATCH.values(), ids=OF_THE_BATCH)
def test_a_teacher_that_depends_on_the_batch_is_refused(change):
    with pytest.raises(KdganError, match=r"always the same can be cached; z1 depends on the batch\. .*--cache off"):
        cache_shapes(users_gan(change), make_images(20), DistillationLoss())


@pytest.mark.parametrize("change", [nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Identity()], ids=repr)
def test_layers_that_are_deterministic_in_evaluation_can_be_cached(change):
    teacher = users_gan(change)
    assert cache_shapes(teacher, make_images(20), DistillationLoss()) == {"z1": (8,), "x_hat": (256,)}


@pytest.mark.parametrize(
    ("chain", "number"),
    [
        ((1,), 1),
        ((2,), 1),
        ((1, 2), 2),
        ((2, 3), 1),
        ((2, 1, 4, 2), 2),
        (("from-scratch", 2), 2),
        (("from-scratch", 2, 3), 2),
    ],
    ids=str,
)
def test_stages_can_be_cached_until_the_teacher_is_trained(chain, number):
    assert num_frozen_stages(make_stages(chain)) == number


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ((3,), "stage s0 trains the teacher"),
        ((4, 2), "stage s0 trains the teacher"),
        ((3, 2), "stage s0 trains the teacher"),
        ((LossSet(beta=0.1, lam=1),), "stage s0 trains the teacher"),
        (("from-scratch",), "no stage before that uses the teacher"),
        (("from-scratch", 3), "no stage before that uses the teacher"),
    ],
    ids=str,
)
def test_where_no_stage_can_be_cached_the_reason_is_given(chain, reason):
    with pytest.raises(KdganError, match=rf"Only a frozen teacher.s outputs can be cached; {reason}\. .*--cache off"):
        num_frozen_stages(make_stages(chain))
    with pytest.raises(KdganError, match=reason):
        make_scheduler(chain, cached=TeacherCache(torch.zeros(10, 272), {}))


# The key


def key(teacher=None, images=None, k_l=None, dtype="float32"):
    teacher, images = teacher or make_gan(norm="batch"), make_images(5) if images is None else images
    return cache_key(teacher, images, k_l or DistillationLoss(), dtype)


def test_the_key_is_64_hex_digits_and_always_the_same():
    assert key() == key()
    assert len(key()) == 64
    assert set(key()) <= set("0123456789abcdef")


def test_any_weight_or_statistic_makes_another_key():
    teacher = make_gan(norm="batch")
    keys = {key(teacher)}
    tensors = teacher.generator.state_dict()
    assert any("running_var" in name for name in tensors)
    for tensor in tensors.values():
        for index in {0, tensor.numel() - 1}:
            tensor.view(-1)[index] += 1
            keys.add(key(teacher))
            tensor.view(-1)[index] -= 1
    assert len(keys) == 1 + sum(1 + (tensor.numel() > 1) for tensor in tensors.values())


def test_any_pixel_their_order_and_their_shape_make_another_key():
    images, keys = make_images(5), {key()}
    for index in range(0, images.numel(), 97):
        other = images.clone()
        other.view(-1)[index] ^= 1
        keys.add(key(images=other))
    changed = [images[:4], images.flip(0), images.reshape(5, 1, 8, 32), images.view(torch.int8), images.float()]
    keys |= {key(images=other) for other in changed}
    assert len(keys) == 1 + len(range(0, images.numel(), 97)) + len(changed)


def test_taps_dtype_and_re_encoding_make_another_key():
    teacher = make_gan(norm="batch")
    taps = [
        {"z1": "encoder", "x_hat": "decoder"},
        {"z1": "encoder2", "x_hat": "decoder", "z2": "encoder"},
        {"z1": "encoder", "x_hat": "decoder", "z2": "encoder2.head"},
    ]
    keys = [key(dataclasses.replace(teacher, taps=each)) for each in taps]
    keys += [key(), key(dtype="float16"), key(k_l=RE_ENCODING)]
    assert len(set(keys)) == 6


def test_weights_under_other_names_or_of_another_type_make_another_key():
    teacher = make_gan()
    before = key(teacher)
    swapped = Gan(copy.deepcopy(teacher.generator), teacher.taps)
    swapped.generator.encoder, swapped.generator.encoder2 = teacher.generator.encoder2, teacher.generator.encoder
    double = Gan(copy.deepcopy(teacher.generator).double(), teacher.taps)
    assert len({before, key(swapped), key(double)}) == 3


def test_nothing_else_makes_another_key():
    teacher, images = make_gan(norm="batch"), make_images(5)
    before = key(teacher)
    for parameter in teacher.discriminator.parameters():
        parameter.data += 1
    assert key(teacher) == before
    assert key(dataclasses.replace(teacher, discriminator=None)) == before
    teacher.generator.eval().requires_grad_(False)
    assert key(teacher) == before
    assert key(k_l=DistillationLoss(w1=1, wx=2, w2=3, distance="norm")) == before
    assert key(images=images.transpose(2, 3).contiguous().transpose(2, 3)) == before
    assert key(images=torch.cat([images, images])[:5]) == before
    torch.manual_seed(99)
    assert key() == before


def test_rows_of_other_taps_have_another_key():
    # Without a weight for K_2 nothing is encoded again, so that rows have no z2.
    teacher, images = make_gan(family="ed"), make_images(5)
    with_k_2, without = DistillationLoss(re_encode=True), DistillationLoss(re_encode=True, w2=0)
    assert set(cache_shapes(teacher, images, with_k_2)) != set(cache_shapes(teacher, images, without))
    assert key(teacher, k_l=with_k_2) != key(teacher, k_l=without)


# Training with a cache


def make_stages(chain, epochs=2):
    loss_sets = [each if isinstance(each, LossSet) else STRUCTURES.get(each, FROM_SCRATCH) for each in chain]
    return [Stage(f"s{i}", loss_set, epochs, 2e-3, 5e-4) for i, loss_set in enumerate(loss_sets)]


def make_scheduler(chain, member=0, cached=None, teacher=None, student=None, k_l=None, without_teacher=False):
    images = make_images(10 + member, member)
    teacher = teacher or make_gan(seed=10 + member)
    if cached == "each its own":
        cached = make_cache(teacher, images, k_l)
    scheduler = ProgressiveScheduler(
        make_stages(chain, 2 + member),
        TrainState(student or make_gan((1, 2), seed=20 + member)),
        images,
        None if without_teacher else TrainState(teacher),
        k_l,
        TrainingSettings(4, seed=member),
    )
    if cached is not None:
        scheduler.use_targets(cached)
    return scheduler


def states(schedulers):
    """Networks and moments of every model."""
    saved = [
        {"student": each.student.state_dict(), "teacher": None if each.teacher is None else each.teacher.state_dict()}
        for each in schedulers
    ]
    for state in (state for both in saved for state in both.values() if state is not None):
        state["optimizers"] = {name: optimizer["state"] for name, optimizer in state["optimizers"].items()}
    return saved


def losses(schedulers):
    records = [[] for _ in schedulers]
    for member, record in train_schedulers(schedulers, fast_engine):
        records[member].append(record.losses)
    return records


def assert_near(value, expected, rtol=1e-4, atol=1e-6):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("chain", [(1,), (2,), (2, 3), ("from-scratch", 2)], ids=str)
def test_a_training_with_a_cache_is_the_training_without(chain, members):
    with_cache, without = (
        [make_scheduler(chain, member, cached) for member in range(members)] for cached in ("each its own", None)
    )
    assert_near(losses(with_cache), losses(without))
    assert_near(states(with_cache), states(without))


@pytest.mark.usefixtures("double")
def test_half_precision_rows_train_nearly_the_same():
    teacher, images = make_gan(seed=10), make_images(10)
    cached = make_cache(teacher, images, dtype="float16")
    half, exact = losses([make_scheduler((1,), cached=cached)]), losses([make_scheduler((1,))])
    assert_near(half, exact, rtol=1e-2, atol=1e-3)
    assert half != exact


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("members", [1, 2])
def test_the_targets_come_from_the_cache(members):
    schedulers = [make_scheduler((1,), member, "each its own") for member in range(members)]
    calls = []
    for scheduler in schedulers:
        scheduler.teacher.gan.generator.encoder.register_forward_hook(lambda *_: calls.append(1))
        for parameter in scheduler.teacher.gan.generator.parameters():
            parameter.data.zero_()
    without = [make_scheduler((1,), member) for member in range(members)]
    assert_near(losses(schedulers), losses(without))
    assert len(calls) <= members  # one pass for the shapes


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("latent_size", [8, 5], ids=["equal latents", "connectors"])
def test_a_cache_is_enough_without_the_teacher(latent_size):
    trained = []
    for without_teacher in (True, False):
        student = make_gan((1, 2), seed=20, latent_size=latent_size)
        torch.manual_seed(4)  # connectors are drawn
        scheduler = make_scheduler((2,), cached="each its own", student=student, without_teacher=without_teacher)
        trained.append((losses([scheduler]), states([scheduler])[0]["student"]))
    torch.testing.assert_close(*trained, rtol=0, atol=0)


def test_a_stage_that_trains_the_teacher_needs_it_whatever_is_cached():
    scheduler = make_scheduler((2, 3), cached="each its own", without_teacher=True)
    with pytest.raises(KdganError, match="Stage s1 needs a teacher; found none"):
        list(train_schedulers([scheduler]))


@pytest.mark.usefixtures("double")
def test_the_cache_is_not_used_once_the_teacher_is_trained():
    teacher, images = make_gan(seed=10), make_images(10)
    wrong = make_cache(teacher, images)
    wrong.rows.zero_()
    right, spoiled, neither = (
        make_scheduler((2, 3), cached=each) for each in (make_cache(teacher, images), wrong, None)
    )
    epochs = [losses([scheduler])[0] for scheduler in (right, spoiled, neither)]
    assert_near(epochs[0], epochs[2])
    assert epochs[1][0]["k1"] != pytest.approx(epochs[2][0]["k1"], rel=0.01)
    assert [list(epoch) for epoch in epochs[1]] == [list(epoch) for epoch in epochs[2]]
    # The students differ by then, but the targets in stage 3 are the trained teacher's, which is the same.
    assert_near(states([spoiled])[0]["teacher"], states([neither])[0]["teacher"])
    assert [epoch["teacher_s_con"] for epoch in epochs[1][2:]] == [epoch["teacher_s_con"] for epoch in epochs[2][2:]]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("student", ["ede", "ed"])
def test_re_encoded_codes_are_cached_too(student):
    k_l, trained = DistillationLoss(re_encode=True), []
    for cached in ("each its own", None):
        scheduler = make_scheduler(
            (2,),
            cached=cached,
            teacher=make_gan(seed=10, family="ed"),
            student=make_gan((1, 2), seed=20, family=student),
            k_l=k_l,
        )
        trained.append((losses([scheduler]), states([scheduler])))
    assert_near(*trained)
    assert "k2" in trained[0][0][0][0]


@pytest.mark.usefixtures("double")
def test_cached_teachers_of_a_fleet_may_have_different_widths():
    widths = ((2, 4), (3, 5), (4, 4))
    with_cache, alone = (
        [
            make_scheduler((2,), member, cached, teacher=make_gan(channels, seed=10))
            for member, channels in enumerate(widths)
        ]
        for cached in ("each its own", None)
    )
    assert_near(losses(with_cache), [losses([scheduler])[0] for scheduler in alone])
    assert_near(states(with_cache), states(alone))


@pytest.mark.usefixtures("double")
def test_a_fleet_in_which_some_have_a_cache_equals_one_without():
    mixed, without = (
        [make_scheduler((2,), member, cached) for member, cached in enumerate(caches)]
        for caches in (("each its own", None, "each its own"), (None, None, None))
    )
    assert_near(losses(mixed), losses(without))


def test_cached_teachers_with_different_taps_are_refused():
    schedulers = [
        make_scheduler((1,), member, "each its own", teacher=make_gan(seed=10, family=family))
        for member, family in enumerate(("ede", "ed"))
    ]
    with pytest.raises(KdganError, match="Teachers of a fleet differ in their taps"):
        losses(schedulers)


@pytest.mark.usefixtures("double")
def test_stored_targets_may_be_any_callable_for_one_model_but_not_in_a_fleet():
    schedulers = [make_scheduler((1,), member, "each its own") for member in range(2)]
    for scheduler in schedulers:
        cache = scheduler.stage_run(0).targets
        scheduler.use_targets(lambda images, indices, cache=cache: cache(images, indices))
    with pytest.raises(KdganError, match="stored targets are teacher caches; got function"):
        losses(schedulers)
    assert losses([schedulers[0]]) == losses([make_scheduler((1,), 0, "each its own")])
