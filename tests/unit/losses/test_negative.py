import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdgan_compress.errors import KdganError
from kdgan_compress.losses import is_outlier_code, negative_loss

C1 = 0.01**2


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10**6), num=st.integers(1, 6), size=st.integers(1, 9), distance=st.floats(0, 3))
def test_is_outlier_code_equals_a_plain_loop(seed, num, size, distance):
    random = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(7, size, generator=random, dtype=torch.float64)
    means = torch.randn(num, size, generator=random, dtype=torch.float64)
    expected = [
        all(
            math.sqrt(sum((a - b) ** 2 for a, b in zip(code, mean, strict=True)) / size) > distance
            for mean in means.tolist()
        )
        for code in z.tolist()
    ]
    far = is_outlier_code(z, means, distance)
    assert far.dtype == torch.bool
    assert far.tolist() == expected


def test_a_normal_images_code_lies_at_1_whatever_its_length():
    means = torch.randn(1, 256, generator=torch.Generator().manual_seed(0))
    z = means + torch.randn(200, 256, generator=torch.Generator().manual_seed(1))
    assert is_outlier_code(z, means, 0.8).all()
    assert not is_outlier_code(z, means, 1.2).any()


def test_at_the_distance_itself_a_code_is_not_far():
    z = torch.tensor([[3.0, 4.0], [3.0, 4.0001]]) * 2**0.5
    assert is_outlier_code(z, torch.zeros(1, 2), 5.0).tolist() == [False, True]


def test_negative_loss_of_flat_images_worked_by_hand():
    grey = torch.tensor([0.25, 0.5, 1.0])
    other = torch.tensor([0.75, 0.5, 0.125])
    x, x_hat = ((2 * values - 1).view(3, 1, 1, 1).expand(3, 1, 16, 16) for values in (grey, other))
    pairs = list(zip(grey.tolist(), other.tolist(), strict=True))
    ssim = [(2 * p * q + C1) / (p * p + q * q + C1) for p, q in pairs]
    difference = [2 * abs(p - q) for p, q in pairs]
    both = [3 * s - 2 * d for s, d in zip(ssim, difference, strict=True)]
    assert negative_loss(x, x_hat, 3.0, 0.0).tolist() == pytest.approx([3 * s for s in ssim], rel=1e-3)
    assert negative_loss(x, x_hat, 0.0, 2.0).tolist() == pytest.approx([-2 * d for d in difference], rel=1e-5)
    assert negative_loss(x, x_hat, 3.0, 2.0).tolist() == pytest.approx(both, abs=1e-3)


def test_its_ends_are_a_perfect_reconstruction_and_one_of_the_wrong_sign():
    x = torch.randint(0, 2, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    assert negative_loss(x, x, 3.0, 2.0).tolist() == pytest.approx([3, 3])
    assert all(-3 - 2 * 2 < loss < -2 * 2 for loss in negative_loss(x, -x, 3.0, 2.0))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_down_the_loss_a_reconstruction_gets_worse(weights):
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x_hat = (0.9 * x + 0.05).requires_grad_()
    negative_loss(x, x_hat, *weights).mean().backward()
    after = (x_hat - 1e-2 * x_hat.grad.sign()).detach()
    assert (negative_loss(x, after, *weights) < negative_loss(x, x_hat, *weights)).all()
    assert ((x - after).abs().mean((1, 2, 3)) > (x - x_hat).abs().mean((1, 2, 3))).all()


def test_shapes_are_never_broadcast():
    with pytest.raises(KdganError, match="differ in shape"):
        negative_loss(torch.zeros(2, 1, 16, 16), torch.zeros(1, 1, 16, 16), 1.0, 1.0)
