import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from sklearn.metrics import log_loss

from kdgan_compress.losses import discriminator_cross_entropy

logits = hnp.arrays(np.float64, st.integers(1, 6), elements=st.floats(-15, 15))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(real=logits, fake=logits)
def test_cross_entropy_equals_scikit_learns(real, fake):
    ours = discriminator_cross_entropy(torch.from_numpy(real), torch.from_numpy(fake))
    theirs = [log_loss(np.full(part.size, label), expit(part), labels=[0, 1]) for part, label in ((real, 1), (fake, 0))]
    assert ours.shape == ()
    assert ours.item() == pytest.approx(sum(theirs) / 2, rel=1e-6)  # each side counts half, whatever its size


def test_cross_entropy_of_one_pair_worked_by_hand():
    ours = discriminator_cross_entropy(torch.tensor([math.log(3)]), torch.tensor([math.log(4)]))
    assert ours.item() == pytest.approx((-math.log(3 / 4) - math.log(1 - 4 / 5)) / 2)


def test_a_discriminator_that_can_not_tell_has_log_2():
    assert discriminator_cross_entropy(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("real", "fake", "expected"), [(200.0, -200.0, 0), (-200.0, 200.0, 200), (200.0, 200.0, 100), (-200, -200, 100)]
)
def test_saturated_logits_stay_finite_with_their_gradients(real, fake, expected):
    real, fake = torch.full((2,), float(real), requires_grad=True), torch.full((4,), float(fake), requires_grad=True)
    loss = discriminator_cross_entropy(real, fake)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(real.grad, (expit(real.detach().numpy()) - 1) / 4, atol=1e-12)
    np.testing.assert_allclose(fake.grad, expit(fake.detach().numpy()) / 8, atol=1e-12)


def test_logits_may_have_any_shape():
    real, fake = torch.randn(2, 3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        discriminator_cross_entropy(real, fake), discriminator_cross_entropy(real.flatten(), fake.flatten())
    )
