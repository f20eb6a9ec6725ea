import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdgan_compress.errors import KdganError
from kdgan_compress.losses import l1, l2

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
values = st.floats(-100, 100, width=32)


@st.composite
def arrays(draw, count):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=4))
    return [draw(hnp.arrays(np.float64, shape, elements=values)) for _ in range(count)]


def l1_by_loop(a, b, kind):
    """The distance of each pair of samples."""
    samples = [[abs(x - y) for x, y in zip(p.ravel(), q.ravel(), strict=True)] for p, q in zip(a, b, strict=True)]
    return [math.fsum(sample) / (len(sample) if kind == "mean" else 1) for sample in samples]


def l2_by_loop(a, b, kind):
    samples = [[(x - y) ** 2 for x, y in zip(p.ravel(), q.ravel(), strict=True)] for p, q in zip(a, b, strict=True)]
    if kind == "mean":
        return [math.fsum(sample) / len(sample) for sample in samples]
    return [math.sqrt(math.fsum(sample)) for sample in samples]


@few
@given(pair=arrays(2), kind=st.sampled_from(["mean", "norm"]))
def test_distances_equal_plain_loops(pair, kind):
    a, b = pair
    losses = [distance(torch.from_numpy(a), torch.from_numpy(b), kind) for distance in (l1, l2)]
    assert all(loss.shape == (len(a),) for loss in losses)
    assert losses[0].tolist() == pytest.approx(l1_by_loop(a, b, kind), rel=1e-12)
    assert losses[1].tolist() == pytest.approx(l2_by_loop(a, b, kind), rel=1e-12)


def test_distances_of_a_small_example_worked_by_hand():
    a = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 4.0], [0.0, -2.0]])
    assert l1(a, b).tolist() == [(3 + 4) / 2, 2 / 2]
    assert l1(a, b, "norm").tolist() == [7, 2]
    assert l2(a, b).tolist() == [(9 + 16) / 2, 4 / 2]
    assert l2(a, b, "norm").tolist() == [5, 2]


@few
@given(pair=arrays(2))
def test_l1_is_numpys_mean_of_each_sample(pair):
    a, b = pair
    distances = l1(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(distances.numpy(), [np.abs(p - q).mean() for p, q in zip(a, b, strict=True)], rtol=1e-12)
    assert distances.mean().item() == pytest.approx(np.abs(a - b).mean(), rel=1e-12)


@few
@given(triple=arrays(3), kind=st.sampled_from(["mean", "norm"]))
def test_distances_are_symmetric_and_at_least_zero(triple, kind):
    a, b, c = map(torch.from_numpy, triple)
    for distance in (l1, l2):
        distances = distance(a, b, kind)
        assert torch.equal(distances, distance(b, a, kind))
        assert (distances >= 0).all()
        assert not distance(a, a, kind).any()
        assert torch.equal(distances == 0, (a == b).flatten(1).all(1))
    for distance in (l1, l2) if kind == "norm" else (l1,):
        detour = distance(a, c, kind) + distance(c, b, kind)
        assert (distance(a, b, kind) <= detour * (1 + 1e-9)).all()


@pytest.mark.parametrize("kind", ["mean", "norm"])
def test_only_the_mean_of_squares_grows_with_the_square(kind):
    a, b = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(l1(3 * a, 3 * b, kind), 3 * l1(a, b, kind))
    torch.testing.assert_close(l2(3 * a, 3 * b, kind), (9 if kind == "mean" else 3) * l2(a, b, kind))


@pytest.mark.parametrize("distance", [l1, l2])
@pytest.mark.parametrize("kind", ["mean", "norm"])
@pytest.mark.parametrize(
    ("shape", "other"), [((2, 4), (1, 4)), ((2, 4), (2, 1)), ((2, 4), (4,)), ((2, 4, 1, 1), (2, 4)), ((2, 4), (4, 2))]
)
def test_shapes_are_never_broadcast(distance, kind, shape, other):
    with pytest.raises(KdganError) as caught:
        distance(torch.zeros(shape), torch.zeros(other), kind)
    assert str(caught.value).startswith(f"The two sides of a loss differ in shape; got {shape} and {other}.")


@pytest.mark.parametrize("distance", [l1, l2])
@pytest.mark.parametrize("kind", ["mean", "norm"])
def test_a_sample_may_be_one_number(distance, kind):
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 7.0])
    expected = [0, 4, 16] if distance is l2 and kind == "mean" else [0, 2, 4]
    assert distance(a, b, kind).tolist() == expected


def test_gradient_of_a_norm_at_zero_is_zero():
    a = torch.ones(2, 3, 2, 2, requires_grad=True)
    l2(a, torch.ones(2, 3, 2, 2), "norm").mean().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_gradient_of_a_norm_is_a_unit_vector_per_sample():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-6]], dtype=torch.float64, requires_grad=True)
    l2(a, torch.zeros(3, 2, dtype=torch.float64), "norm").mean().backward()
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64) / 3
    torch.testing.assert_close(a.grad, expected)


@pytest.mark.parametrize("distance", [l1, l2])
def test_gradient_of_a_mean_is_spread_over_all_elements(distance):
    a = torch.tensor([[2.0, -1.0], [0.5, 4.0]], requires_grad=True)
    distance(a, torch.zeros(2, 2)).mean().backward()
    expected = np.sign(a.detach().numpy()) if distance is l1 else 2 * a.detach().numpy()
    np.testing.assert_allclose(a.grad.numpy(), expected / 4)


@pytest.mark.parametrize("distance", [l1, l2])
def test_both_sides_get_opposite_gradients(distance):
    a, b = (torch.randn(2, 5, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (0, 1))
    distance(a, b, "norm").mean().backward()
    assert a.grad.abs().sum() > 0
    torch.testing.assert_close(a.grad, -b.grad)
