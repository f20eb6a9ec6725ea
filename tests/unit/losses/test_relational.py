"""Attention transfer, FSP, RKD and SP against plain loops written from the papers, and what they must not depend on."""

import doctest

import numpy as np
import pytest
import torch
from reference import distillation_losses as reference
from scipy.spatial import distance as scipy_distance
from torch.autograd import gradcheck
from torch.nn.functional import normalize

from kdgan_compress.errors import KdganError
from kdgan_compress.losses import (
    attention,
    correlation,
    cosine,
    distances,
    fsp,
    fsp_matrix,
    relational,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)

WITHIN_BATCH = [rkd_distance, rkd_angle, similarity_preserving]


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Values


@pytest.mark.parametrize("distance", ["mean", "norm"])
def test_attention_is_the_papers(distance):
    student, teacher = noise(3, 2, 4, 5), noise(3, 7, 4, 5, seed=1)
    values = attention(student, teacher, distance)
    assert values.shape == (3,)
    assert values.mean().item() == pytest.approx(reference.attention(student.numpy(), teacher.numpy(), distance))


@pytest.mark.parametrize("sizes", [(4, 4), (8, 4), (4, 8)], ids=str)
def test_fsp_is_the_papers(sizes):
    shapes = [(channels, size, size) for channels, size in zip((2, 5), sizes, strict=True)]
    features = [noise(3, *shape, seed=seed) for seed in (0, 1) for shape in shapes]
    arrays = [feature.numpy() for feature in features]
    matrices = fsp_matrix(*features[:2])
    assert matrices.shape == (3, 2, 5)
    for matrix, first, second in zip(matrices, *arrays[:2], strict=True):
        np.testing.assert_allclose(matrix, reference.fsp_matrix(first, second), rtol=1e-9)
    values = fsp(*features, "norm")
    assert values.shape == (3,)
    assert values.mean().item() == pytest.approx(reference.fsp(*arrays))
    torch.testing.assert_close(fsp(*features), values / 10)


@pytest.mark.parametrize("loss", WITHIN_BATCH)
@pytest.mark.parametrize("scale", [1, 10], ids=["quadratic", "linear"])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_mean_of_losses_between_images_is_the_papers(loss, batch_size, scale):
    student, teacher = noise(batch_size, 3, 2, 2), noise(batch_size, 7, seed=1)
    student[0] *= scale  # differences above 1, where the Huber loss is linear
    values = loss(student, teacher)
    assert values.shape == (batch_size,)
    expected = getattr(reference, loss.__name__)(student.numpy(), teacher.numpy())
    assert values.mean().item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert (expected == 0) == (batch_size == 2 and loss is not similarity_preserving)  # RKD of two images is always 0


@pytest.mark.parametrize("loss", [cosine, correlation])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2, 2)], ids=str)
def test_cosine_and_correlation_are_scipys(loss, shape):
    a, b = noise(*shape) + 0.5, noise(*shape, seed=1)
    pairs = zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)
    expected = [getattr(scipy_distance, loss.__name__)(*pair) for pair in pairs]
    assert loss(a, b).tolist() == pytest.approx(expected)
    torch.testing.assert_close(loss(3 * a, b), loss(a, b))
    assert (loss is cosine) != torch.allclose(loss(a + 1, b), loss(a, b))


def test_torchdistill_agrees_where_it_follows_the_papers(monkeypatch):
    """Its FSP loss sums norms of columns, its SP divides rows by their L1 norm; the papers square and take L2."""
    losses = pytest.importorskip("torchdistill.losses.mid_level")
    student, teacher = noise(6, 3, 4, 4), noise(6, 3, 4, 4, seed=1)
    outputs = [{name: {"output": feature} for name in ("tap", ".")} for feature in (student, teacher)]
    pairs = {"pair": {side: {"path": "tap", "io": "output"} for side in ("student", "teacher")}}

    for distance, mode in (("norm", "paper"), ("mean", "code")):
        expected = losses.ATLoss(pairs, mode=mode)(*outputs)
        torch.testing.assert_close(attention(student, teacher, distance).mean(), expected)
    for loss, factors in ((rkd_distance, (1.0, 0.0)), (rkd_angle, (0.0, 1.0))):
        expected = losses.RKDLoss("tap", "tap", *factors, reduction="mean")(*outputs)
        torch.testing.assert_close(loss(student, teacher).mean(), expected)
    expected = losses.FSPLoss.compute_fsp_matrix(student, noise(6, 5, 2, 2, seed=2))
    torch.testing.assert_close(fsp_matrix(student, noise(6, 5, 2, 2, seed=2)), expected)
    expected = losses.DISTLoss("", "", "", "").inter_class_relation(student.flatten(1), teacher.flatten(1))
    torch.testing.assert_close(correlation(student, teacher).mean(), expected)
    monkeypatch.setattr(losses, "normalize", lambda rows, _order: normalize(rows))
    expected = losses.SPKDLoss("tap", "tap", reduction="batchmean")(*outputs)
    torch.testing.assert_close(similarity_preserving(student, teacher).mean(), expected)


def test_the_examples_of_the_docstrings_are_right():
    for module in (relational, distances):
        results = doctest.testmod(module)
        assert results.attempted > 0
        assert results.failed == 0


# What they do not depend on


def test_attention_ignores_scale_sign_and_number_of_channels():
    maps = noise(2, 3, 4, 4)
    torch.testing.assert_close(attention(-5 * maps, maps), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(attention(torch.cat([maps, maps], 1), maps), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_rkd_ignores_scale_shift_and_rotation(loss):
    features = noise(5, 4)
    rotation, _ = torch.linalg.qr(noise(4, 4, seed=1))
    torch.testing.assert_close(loss(3 * features @ rotation + 7, features), torch.zeros(5, dtype=torch.float64))


def test_sp_ignores_scale_and_rotation():
    features = noise(5, 4)
    rotation, _ = torch.linalg.qr(noise(4, 4, seed=1))
    values = similarity_preserving(3 * features @ rotation, features)
    torch.testing.assert_close(values, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("loss", WITHIN_BATCH)
@pytest.mark.parametrize("num_images", [1, 2, 3, 4])
def test_images_of_weight_0_have_no_relations(loss, num_images):
    """Padding repeats the images of the batch, as a fleet does."""
    student, teacher = noise(num_images, 3, 2, 2), noise(num_images, 7, seed=1)
    weights = torch.zeros(5, dtype=torch.float64)
    weights[:num_images] = 1 / num_images
    rows = torch.arange(5) % num_images
    results = []
    for features, targets, sample_weights in ((student, teacher, None), (student[rows], teacher[rows], weights)):
        features = features.clone().requires_grad_()
        values = loss(features, targets, sample_weights)
        total = values.mean() if sample_weights is None else values @ sample_weights
        total.backward()
        results.append((total, features.grad[:num_images]))
        assert not features.grad[num_images:].any()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("loss", WITHIN_BATCH)
def test_one_image_has_no_relations(loss):
    features = noise(1, 4).requires_grad_()
    values = loss(features, noise(1, 6, seed=1))
    values.sum().backward()
    assert values.tolist() == pytest.approx([0])
    assert features.grad.abs().max() == pytest.approx(0)


# Gradients


@pytest.mark.parametrize("loss", [*WITHIN_BATCH, cosine, correlation, attention])
def test_gradients_are_right(loss):
    assert gradcheck(lambda features: loss(features, noise(4, 2, 2, 2, seed=1)), noise(4, 2, 2, 2).requires_grad_())


def test_the_gradient_of_fsp_is_right():
    others = noise(2, 3, 2, 2, seed=1), noise(2, 2, 4, 4, seed=2), noise(2, 3, 2, 2, seed=3)
    assert gradcheck(lambda features: fsp(features, *others), noise(2, 2, 4, 4).requires_grad_())


@pytest.mark.parametrize("loss", WITHIN_BATCH)
@pytest.mark.parametrize("rounding", [0, 1e-7])
def test_a_photo_that_is_there_twice_gives_no_large_gradient(loss, rounding):
    """Its two features may differ by rounding, which must not become a direction."""
    student, teacher = noise(6, 8, dtype=torch.float32), noise(6, 8, seed=1, dtype=torch.float32)
    gradients = []
    for copies in (False, True):
        if copies:
            student[1], teacher[1] = student[0], teacher[0] * (1 + rounding)
        features = student.clone().requires_grad_()
        loss(features, teacher).mean().backward()
        assert features.grad.isfinite().all()
        gradients.append(float(features.grad.abs().max()))
    assert gradients[1] < 5 * gradients[0]


@pytest.mark.parametrize("loss", WITHIN_BATCH)
def test_equal_images_give_a_finite_gradient(loss):
    features = torch.ones(4, 3, requires_grad=True)
    loss(features, torch.ones(4, 2)).mean().backward()
    assert not features.grad.any()


# What is refused


@pytest.mark.parametrize(
    ("student", "teacher", "problem"),
    [
        ((2, 8), (2, 8), r"need feature maps \(B, C, H, W\); got \(2, 8\)\. Tap a convolutional layer"),
        ((2, 3, 4, 4), (2, 8), r"need feature maps \(B, C, H, W\); got \(2, 8\)"),
        ((2, 3, 4, 4), (2, 3, 8, 8), r"one height and width; got \(2, 3, 4, 4\) and \(2, 3, 8, 8\)"),
        ((2, 3, 4, 4), (1, 3, 4, 4), "differ in shape"),
    ],
)
def test_attention_of_other_than_feature_maps_is_refused(student, teacher, problem):
    with pytest.raises(KdganError, match=problem):
        attention(torch.zeros(student), torch.zeros(teacher))


def test_fsp_of_other_than_feature_maps_is_refused():
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(KdganError, match=r"need feature maps \(B, C, H, W\); got \(2, 3\)"):
        fsp(maps, torch.zeros(2, 3), maps, torch.zeros(2, 3))
    with pytest.raises(KdganError, match=r"differ in shape; got \(2, 3, 3\) and \(2, 3, 5\)"):
        fsp(maps, maps, maps, torch.zeros(2, 5, 4, 4))


@pytest.mark.parametrize("loss", WITHIN_BATCH)
def test_features_of_other_images_are_refused(loss):
    with pytest.raises(KdganError, match="need the same images; got 3 and 2 of them"):
        loss(torch.zeros(2, 3), torch.zeros(3, 3))


@pytest.mark.parametrize("loss", [cosine, correlation])
def test_cosine_and_correlation_never_broadcast(loss):
    with pytest.raises(KdganError, match="differ in shape"):
        loss(torch.zeros(2, 3), torch.zeros(1, 3))
