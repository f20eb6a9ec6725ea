import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdgan_compress.errors import KdganError
from kdgan_compress.losses import l1, l1_per_image, l2

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
values = st.floats(-100, 100, width=32)


@st.composite
def arrays(draw, count):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=4))
    return [draw(hnp.arrays(np.float64, shape, elements=values)) for _ in range(count)]


def l1_by_loop(a, b, reduction):
    examples = [[abs(x - y) for x, y in zip(p.ravel(), q.ravel(), strict=True)] for p, q in zip(a, b, strict=True)]
    total = sum(math.fsum(example) for example in examples)
    return total / (a.size if reduction == "mean" else len(a))


def l2_by_loop(a, b, reduction):
    examples = [[(x - y) ** 2 for x, y in zip(p.ravel(), q.ravel(), strict=True)] for p, q in zip(a, b, strict=True)]
    if reduction == "mean":
        return sum(math.fsum(example) for example in examples) / a.size
    return sum(math.sqrt(math.fsum(example)) for example in examples) / len(a)


@few
@given(pair=arrays(2), reduction=st.sampled_from(["mean", "norm"]))
def test_distances_equal_plain_loops(pair, reduction):
    a, b = pair
    ours = [distance(torch.from_numpy(a), torch.from_numpy(b), reduction) for distance in (l1, l2)]
    assert all(loss.shape == () for loss in ours)
    assert ours[0].item() == pytest.approx(l1_by_loop(a, b, reduction), rel=1e-12)
    assert ours[1].item() == pytest.approx(l2_by_loop(a, b, reduction), rel=1e-12)


def test_distances_of_a_small_example_worked_by_hand():
    a = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 4.0], [0.0, -2.0]])
    assert l1(a, b) == (3 + 4 + 2) / 4
    assert l1(a, b, "norm") == (7 + 2) / 2
    assert l2(a, b) == (9 + 16 + 4) / 4
    assert l2(a, b, "norm") == (5 + 2) / 2


@few
@given(pair=arrays(2))
def test_l1_per_image_is_numpys_mean_of_each(pair):
    a, b = pair
    ours = l1_per_image(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(ours.numpy(), [np.abs(p - q).mean() for p, q in zip(a, b, strict=True)], rtol=1e-12)
    assert ours.mean().item() == pytest.approx(l1(torch.from_numpy(a), torch.from_numpy(b)).item(), rel=1e-12)


@few
@given(triple=arrays(3), reduction=st.sampled_from(["mean", "norm"]))
def test_distances_are_symmetric_and_at_least_zero(triple, reduction):
    a, b, c = map(torch.from_numpy, triple)
    for distance in (l1, l2):
        assert distance(a, b, reduction) == distance(b, a, reduction) >= 0
        assert distance(a, a, reduction) == 0
        assert (distance(a, b, reduction) == 0) == torch.equal(a, b)
    for distance in (l1, l2) if reduction == "norm" else (l1,):
        detour = distance(a, c, reduction) + distance(c, b, reduction)
        assert distance(a, b, reduction) <= detour * (1 + 1e-9)


@pytest.mark.parametrize("reduction", ["mean", "norm"])
def test_only_the_mean_of_squares_grows_with_the_square(reduction):
    a, b = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(l1(3 * a, 3 * b, reduction), 3 * l1(a, b, reduction))
    torch.testing.assert_close(l2(3 * a, 3 * b, reduction), (9 if reduction == "mean" else 3) * l2(a, b, reduction))


@pytest.mark.parametrize("distance", [l1, l2])
@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize(
    ("shape", "other"), [((2, 4), (1, 4)), ((2, 4), (2, 1)), ((2, 4), (4,)), ((2, 4, 1, 1), (2, 4)), ((2, 4), (4, 2))]
)
def test_shapes_are_never_broadcast(distance, reduction, shape, other):
    with pytest.raises(KdganError) as caught:
        distance(torch.zeros(shape), torch.zeros(other), reduction)
    assert f"got {shape} and {other}." in str(caught.value)
    with pytest.raises(KdganError, match="one shape"):
        l1_per_image(torch.zeros(shape), torch.zeros(other))


@pytest.mark.parametrize("distance", [l1, l2])
def test_one_number_an_example_is_a_shape_too(distance):
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 7.0])
    assert distance(a, b, "norm") == 2


def test_gradient_of_a_euclidean_length_at_zero_is_zero():
    a = torch.ones(2, 3, 2, 2, requires_grad=True)
    l2(a, torch.ones(2, 3, 2, 2), "norm").backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_gradient_of_a_euclidean_length_is_a_unit_vector_an_example():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-6]], dtype=torch.float64, requires_grad=True)
    l2(a, torch.zeros(3, 2, dtype=torch.float64), "norm").backward()
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]], dtype=torch.float64) / 3
    torch.testing.assert_close(a.grad, expected)


@pytest.mark.parametrize("distance", [l1, l2])
def test_gradient_of_a_mean_is_spread_over_all_elements(distance):
    a = torch.tensor([[2.0, -1.0], [0.5, 4.0]], requires_grad=True)
    distance(a, torch.zeros(2, 2)).backward()
    expected = np.sign(a.detach().numpy()) if distance is l1 else 2 * a.detach().numpy()
    np.testing.assert_allclose(a.grad.numpy(), expected / 4)


@pytest.mark.parametrize("distance", [l1, l2])
def test_both_sides_get_opposite_gradients(distance):
    a, b = (torch.randn(2, 5, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (0, 1))
    distance(a, b, "norm").backward()
    assert a.grad.abs().sum() > 0
    torch.testing.assert_close(a.grad, -b.grad)


# Fleets


def shares_of(sizes):
    """What each image counts for each member, where member k has sizes[k] images."""
    return torch.tensor(
        [[1 / size if image < size else 0.0 for size in sizes] for image in range(max(sizes))], dtype=torch.float64
    )


def by_member(tensor, sizes, member):
    """The images that count of one member, whose channels stand together."""
    per_member = tensor.shape[1] // len(sizes)
    return tensor[: sizes[member], member * per_member : (member + 1) * per_member].detach().numpy()


FLEETS = [(3, 3), (1, 4, 2), (2, 2, 2, 1), (1, 1), (5,)]


@pytest.mark.parametrize("sizes", FLEETS, ids=str)
@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize(("distance", "by_loop"), [(l1, l1_by_loop), (l2, l2_by_loop)])
def test_a_fleets_distances_are_its_members_own(distance, by_loop, reduction, shape, sizes):
    batch, members = max(sizes), len(sizes)
    a, b = torch.randn(
        2, batch, members * shape[0], *shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    ours = distance(a, b, reduction, shares_of(sizes))
    assert ours.shape == (members,)
    expected = [by_loop(*(by_member(side, sizes, member) for side in (a, b)), reduction) for member in range(members)]
    assert ours.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "norm"])
@pytest.mark.parametrize("distance", [l1, l2])
def test_a_fleets_gradients_are_its_members_own(distance, reduction):
    sizes = (2, 4, 3)
    a, b = torch.randn(2, 4, 3 * 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance(a.requires_grad_(), b, reduction, shares_of(sizes)).sum().backward()
    for member, (size, gradient) in enumerate(zip(sizes, a.grad.chunk(3, 1), strict=True)):
        own, other = (side.detach().chunk(3, 1)[member][:size].clone() for side in (a, b))
        distance(own.requires_grad_(), other, reduction).backward()
        torch.testing.assert_close(gradient[:size], own.grad, rtol=1e-12, atol=1e-14)
        assert not gradient[size:].any()


def test_shapes_are_not_broadcast_in_a_fleet_either():
    with pytest.raises(KdganError, match=r"got \(2, 4\) and \(2, 2\)"):
        l1(torch.zeros(2, 4), torch.zeros(2, 2), shares=shares_of((2, 2)))
