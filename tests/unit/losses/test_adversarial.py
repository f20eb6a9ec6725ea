import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from sklearn.metrics import log_loss

from kdgan_compress.errors import KdganError
from kdgan_compress.losses import discriminator_cross_entropy, gradient_penalty, wasserstein_loss

logit_pairs = hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(1, 6)), elements=st.floats(-15, 15))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(pair=logit_pairs)
def test_cross_entropy_equals_scikit_learns(pair):
    losses = discriminator_cross_entropy(*torch.from_numpy(pair))
    expected = [log_loss([1, 0], expit(logits), labels=[0, 1]) for logits in pair.T]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
    sides = [
        log_loss(np.full(len(part), label), expit(part), labels=[0, 1])
        for part, label in zip(pair, (1, 0), strict=True)
    ]
    assert losses.mean().item() == pytest.approx(sum(sides) / 2, rel=1e-6)


def test_cross_entropy_of_one_pair_worked_by_hand():
    loss = discriminator_cross_entropy(torch.tensor([math.log(3)]), torch.tensor([math.log(4)]))
    assert loss.tolist() == pytest.approx([(-math.log(3 / 4) - math.log(1 - 4 / 5)) / 2])


def test_a_discriminator_at_chance_level_has_log_2():
    assert discriminator_cross_entropy(torch.zeros(3), torch.zeros(3)).tolist() == pytest.approx([math.log(2)] * 3)


@pytest.mark.parametrize(
    ("real", "fake", "expected"), [(200.0, -200.0, 0), (-200.0, 200.0, 200), (200.0, 200.0, 100), (-200, -200, 100)]
)
def test_saturated_logits_stay_finite_with_their_gradients(real, fake, expected):
    real, fake = torch.full((2,), float(real), requires_grad=True), torch.full((2,), float(fake), requires_grad=True)
    loss = discriminator_cross_entropy(real, fake).mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(real.grad, (expit(real.detach().numpy()) - 1) / 4, atol=1e-12)
    np.testing.assert_allclose(fake.grad, expit(fake.detach().numpy()) / 4, atol=1e-12)


def test_logits_may_be_maps():
    real, fake = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    per_position = discriminator_cross_entropy(real.flatten(), fake.flatten()).view(3, 4)
    torch.testing.assert_close(discriminator_cross_entropy(real, fake), per_position.mean(1))


@pytest.mark.parametrize("loss", [discriminator_cross_entropy, wasserstein_loss])
@pytest.mark.parametrize(("shape", "other"), [((3,), (1,)), ((3,), (3, 1)), ((3, 1, 4, 4), (3, 1, 1, 1))])
def test_shapes_are_never_broadcast(loss, shape, other):
    with pytest.raises(KdganError, match="differ in shape"):
        loss(torch.zeros(shape), torch.zeros(other))


# WGAN-GP


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_wasserstein_loss_worked_by_hand():
    losses = wasserstein_loss(torch.tensor([3.0, 5.0, 1.0]), torch.tensor([1.0, 0.0, 2.0]))
    assert losses.tolist() == [-2, -5, 1]
    assert losses.mean() == 1 - 3


def test_gradient_of_the_wasserstein_loss():
    real, fake = noise(3).requires_grad_(), noise(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(wasserstein_loss, (real, fake))
    wasserstein_loss(real, fake).mean().backward()
    assert real.grad.sum() == pytest.approx(-1)  # down the loss is up for real images
    assert fake.grad.sum() == pytest.approx(1)


@pytest.mark.parametrize("slope", [0.25, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic_is_that_of_its_slope(slope):
    weight = noise(2, 4, 4)
    weight *= slope / weight.square().sum().sqrt()
    real, fake, t = noise(3, 2, 4, 4), noise(3, 2, 4, 4, seed=1), torch.rand(3).double()
    penalty = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)) + 7, real, fake, t)
    assert penalty.tolist() == pytest.approx([(slope - 1) ** 2] * 3, abs=1e-12)


def test_the_penalty_is_taken_between_the_images_of_a_pair():
    real, fake, t = noise(4, 1, 3, 3), noise(4, 1, 3, 3, seed=1), torch.tensor([0.0, 1.0, 0.25, 0.7]).double()
    # ‖x‖² / 2 has the gradient x, so the penalty shows where it was taken.
    penalty = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, real, fake, t)
    points = [s * x + (1 - s) * y for s, x, y in zip(t.numpy(), real.numpy(), fake.numpy(), strict=True)]
    assert penalty.tolist() == pytest.approx([(np.linalg.norm(point) - 1) ** 2 for point in points])


def test_the_penalty_trains_the_critic_and_nothing_behind_the_images():
    real, fake, t = noise(3, 1, 2, 2).requires_grad_(), noise(3, 1, 2, 2, seed=1).requires_grad_(), torch.rand(3)

    def penalty(hidden, out):
        return gradient_penalty(lambda x: torch.tanh(x.flatten(1) @ hidden) @ out, real, fake, t.double())

    weights = noise(4, 5, seed=2).requires_grad_(), noise(5, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(penalty, weights)  # against finite differences
    penalty(*weights).mean().backward()
    assert all(weight.grad.abs().max() > 1e-3 for weight in weights)
    assert real.grad is None
    assert fake.grad is None


def test_a_flat_critic_has_a_penalty_of_1_and_a_finite_gradient():
    weight = torch.zeros(4, requires_grad=True)
    penalty = gradient_penalty(
        lambda x: x.flatten(1) @ weight, torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), torch.ones(2)
    )
    penalty.mean().backward()
    assert penalty.tolist() == [1, 1]
    assert torch.equal(weight.grad, torch.zeros(4))


@pytest.mark.parametrize("other", [(1, 1, 4, 4), (2, 3, 4, 4), (2, 1, 4)])
def test_the_penalty_needs_pairs(other):
    with pytest.raises(KdganError, match="differ in shape"):
        gradient_penalty(lambda x: x.sum((1, 2, 3)), torch.zeros(2, 1, 4, 4), torch.zeros(other), torch.ones(2))
