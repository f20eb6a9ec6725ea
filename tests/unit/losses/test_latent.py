import math

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import entropy, multivariate_normal
from torch import nn
from torch.distributions import Normal, kl_divergence

from kdgan_compress.errors import KdganError
from kdgan_compress.losses import categorical_loss, latent_loss, mutual_information_loss


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(num=4, num_clusters=3, size=5):
    """μ, log σ², means and p(y|z)."""
    p_y = (2 * noise(num, num_clusters, seed=3)).softmax(1)
    return noise(num, size), 0.7 * noise(num, size, seed=1), noise(num_clusters, size, seed=2), p_y


@pytest.mark.parametrize(("num_clusters", "size"), [(1, 1), (3, 5), (4, 2)])
def test_the_latent_loss_is_torchs_divergence(num_clusters, size):
    mu, log_var, means, p_y = example(4, num_clusters, size)
    expected = [0.0] * 4
    for i in range(4):
        code = Normal(mu[i], (log_var[i] / 2).exp())
        for y in range(num_clusters):
            expected[i] += p_y[i, y].item() * kl_divergence(code, Normal(means[y], 1.0)).sum().item()
    assert latent_loss(mu, log_var, means, p_y, "norm").tolist() == pytest.approx(expected)
    assert latent_loss(mu, log_var, means, p_y).tolist() == pytest.approx([value / size for value in expected])


def test_the_latent_loss_is_the_integral_by_sampling():
    mu, log_var, means, p_y = example(2, 3, 4)
    code = Normal(mu, (log_var / 2).exp())
    torch.manual_seed(0)
    z = code.sample((100_000,))
    log_ratio = [code.log_prob(z).sum(2) - Normal(mean, 1.0).log_prob(z).sum(2) for mean in means]
    drawn = sum(p_y[:, y] * log_ratio[y] for y in range(3))
    error = drawn.std(0) / len(drawn) ** 0.5
    assert (error < 0.02).all()
    assert ((latent_loss(mu, log_var, means, p_y, "norm") - drawn.mean(0)).abs() < 4 * error).all()


def test_with_one_mean_at_0_it_is_the_plain_vaes():
    mu, log_var, _, _ = example()
    expected = -0.5 * (1 + log_var - mu**2 - log_var.exp()).sum(1)
    losses = latent_loss(mu, log_var, torch.zeros(1, 5).double(), torch.ones(4, 1).double(), "norm")
    torch.testing.assert_close(losses, expected)


def test_codes_that_are_their_own_gaussian_have_no_latent_loss():
    _, _, means, _ = example()
    label = torch.tensor([2, 0, 1, 2])
    mu, p_y = means[label], torch.eye(3).double()[label]
    assert not latent_loss(mu, torch.zeros_like(mu), means, p_y).any()
    assert (latent_loss(mu, torch.zeros_like(mu), means, p_y.roll(1, 1)) > 0.1).all()


@pytest.mark.parametrize("distance", ["mean", "norm"])
def test_gradient_of_the_latent_loss(distance):
    inputs = [tensor.requires_grad_() for tensor in example()]
    assert torch.autograd.gradcheck(lambda *tensors: latent_loss(*tensors, distance), inputs)


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ([(4, 5), (4, 1), (3, 5), (4, 3)], r"got \(4, 5\) and \(4, 1\)"),
        ([(4, 5), (1, 5), (3, 5), (4, 3)], r"got \(4, 5\) and \(1, 5\)"),
        ([(4, 5), (4, 5), (3, 1), (4, 3)], r"got \(4, 5\), \(3, 1\) and \(4, 3\)"),
        ([(4, 5), (4, 5), (5,), (4, 3)], r"got \(4, 5\), \(5,\) and \(4, 3\)"),
        ([(4, 5), (4, 5), (3, 5), (4, 1)], r"got \(4, 5\), \(3, 5\) and \(4, 1\)"),
        ([(4, 5), (4, 5), (3, 5), (1, 3)], r"got \(4, 5\), \(3, 5\) and \(1, 3\)"),
        ([(4, 5), (4, 5), (3, 5), (3, 4)], r"got \(4, 5\), \(3, 5\) and \(3, 4\)"),
    ],
)
def test_shapes_are_never_broadcast(shapes, found):
    with pytest.raises(KdganError, match=found):
        latent_loss(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("num_clusters", [1, 2, 7])
def test_the_categorical_loss_is_log_k_minus_scipys_entropy(num_clusters):
    logits = 3 * noise(6, num_clusters)
    expected = [math.log(num_clusters) - entropy(row) for row in softmax(logits.numpy(), axis=1)]
    assert categorical_loss(logits).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_ends_of_the_categorical_loss():
    assert categorical_loss(torch.full((3, 5), 2.0)).tolist() == pytest.approx([0] * 3, abs=1e-6)
    sure = torch.tensor([[300.0, -300.0, -300.0]], requires_grad=True)
    loss = categorical_loss(sure)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    assert sure.grad.isfinite().all()


def test_gradient_of_the_categorical_loss():
    assert torch.autograd.gradcheck(categorical_loss, noise(4, 3).requires_grad_())


def test_the_mutual_information_loss_is_the_sum_written_out():
    paired, shuffled = 2 * noise(3, 1, 4, 4), 2 * noise(3, 1, 4, 4, seed=1)
    expected = -np.log(expit(paired.numpy())) - np.log(1 - expit(shuffled.numpy()))
    assert mutual_information_loss(paired, shuffled).tolist() == pytest.approx(expected.mean((1, 2, 3)).tolist())


def test_an_fd_at_chance_level_has_2_log_2():
    losses = mutual_information_loss(torch.zeros(4), torch.zeros(4))
    assert losses.tolist() == pytest.approx([2 * math.log(2)] * 4)


def test_gradient_of_the_mutual_information_loss():
    assert torch.autograd.gradcheck(mutual_information_loss, (noise(3, 4).requires_grad_(), noise(3, 4, seed=1)))
    assert torch.autograd.gradcheck(mutual_information_loss, (noise(3, 4), noise(3, 4, seed=1).requires_grad_()))


def best_loss(correlation):
    """2 log 2 − 2 JS of a Gaussian pair and its shuffled self, summed over a fine grid."""
    line = np.linspace(-6, 6, 301)
    places = np.stack(np.meshgrid(line, line), axis=-1)
    p = multivariate_normal(cov=[[1, correlation], [correlation, 1]]).pdf(places)
    q = multivariate_normal(cov=np.eye(2)).pdf(places)
    cell = (line[1] - line[0]) ** 2
    js = (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))).sum() * cell / 2
    return 2 * math.log(2) - 2 * js


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_a_trained_fd_finds_the_dependence_that_there_is(correlation):
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(discriminator.parameters(), 0.02)

    def loss(num):
        x = torch.randn(num)
        z = correlation * x + math.sqrt(1 - correlation**2) * torch.randn(num)
        return mutual_information_loss(
            discriminator(torch.stack([x, z], 1)), discriminator(torch.stack([x, z.roll(1)], 1))
        ).mean()

    for _ in range(300):
        optimizer.zero_grad()
        loss(512).backward()
        optimizer.step()
    with torch.no_grad():
        reached = loss(50_000).item()
    assert best_loss(0.0) == pytest.approx(2 * math.log(2))
    assert best_loss(correlation) - 0.02 < reached < best_loss(correlation) + 0.03
    assert best_loss(0.9) < 2 * math.log(2) - 0.4
