import math

import numpy as np
import pytest
import pytorch_msssim
import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.losses import ssim, ssim_loss

C1, C2 = 0.01**2, 0.03**2


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def ssim_by_windows(a, b):
    """Equation 11 of one pair of images (C, S, S) in [−1, 1], window by window."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = np.outer(line, line) / line.sum() ** 2
    values = []
    for e, f in zip((a + 1) / 2, (b + 1) / 2, strict=True):
        for row in range(len(e) - 10):
            for column in range(len(e) - 10):
                p, q = (plane[row : row + 11, column : column + 11] for plane in (e, f))
                mu_p, mu_q = (weight * p).sum(), (weight * q).sum()
                var_p, var_q = (weight * (p - mu_p) ** 2).sum(), (weight * (q - mu_q) ** 2).sum()
                covariance = (weight * (p - mu_p) * (q - mu_q)).sum()
                luminance = (2 * mu_p * mu_q + C1) / (mu_p**2 + mu_q**2 + C1)
                values.append(luminance * (2 * covariance + C2) / (var_p + var_q + C2))
    return np.mean(values)


@pytest.mark.parametrize(("shape", "dtype"), [((1, 16), "float64"), ((3, 13), "float64"), ((1, 32), "float32")])
def test_ssim_is_its_definition_window_by_window(shape, dtype):
    channels, side = shape
    a = noise(4, channels, side, side)
    b = torch.stack([a[0] * 0.5 + 0.3, a[1] + 0.2 * noise(channels, side, side, seed=1), a[3], -a[3]])
    a, b = (images.clamp(-1, 1).to(getattr(torch, dtype)) for images in (a, b))
    expected = np.array([ssim_by_windows(p.double().numpy(), q.double().numpy()) for p, q in zip(a, b, strict=True)])
    assert expected.max() > 0.5
    assert expected.min() < 0
    atol = 1e-6 if dtype == "float64" else 1e-5  # the library's window has float32's digits
    np.testing.assert_allclose(ssim(a, b), expected, rtol=0, atol=atol)
    loss = -np.log(np.maximum(expected, 1e-3))
    np.testing.assert_allclose(ssim_loss(a, b), loss, rtol=100 * atol)


def test_flat_images_worked_by_hand():
    a, b = torch.full((2, 1, 16, 16), -0.5), torch.full((2, 1, 16, 16), 0.5)  # 1/4 and 3/4 of full
    a[1] = b[1] = -1  # black: c1 alone
    expected = [(2 * 3 / 16 + C1) / (1 / 16 + 9 / 16 + C1), 1]
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-3)  # c2 is small against float32's digits


def test_equal_images_have_no_loss_and_sides_may_be_swapped():
    a, b = noise(3, 2, 16, 16).float(), noise(3, 2, 16, 16, seed=1).float()
    assert torch.equal(ssim(a, a), torch.ones(3))
    assert not ssim_loss(a, a).any()
    torch.testing.assert_close(ssim(a, b), ssim(b, a))


def test_below_the_bound_the_loss_is_log_1000_and_flat():
    a = noise(1, 1, 16, 16)
    b = (-a).requires_grad_()
    assert ssim(a, b) < 0
    loss = ssim_loss(a, b)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(1000))
    assert torch.equal(b.grad, torch.zeros_like(b))


@pytest.mark.parametrize("function", [ssim, ssim_loss])
def test_no_image_affects_another(function):
    a, b = noise(4, 1, 16, 16), (0.3 * noise(4, 1, 16, 16)).requires_grad_()
    together = function(a, b)
    assert together.shape == (4,)
    one_by_one = torch.cat([function(a[i : i + 1], b[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, one_by_one)
    assert together.detach().std() > 1e-3
    (gradient,) = torch.autograd.grad(function(a, a * 0.1 + b)[2], b)
    assert (gradient.abs().amax((1, 2, 3)) > 0).tolist() == [False, False, True, False]


def test_gradient_of_the_loss():
    a = noise(2, 1, 12, 12)
    b = (0.5 * a + 0.2 * noise(2, 1, 12, 12, seed=1)).requires_grad_()
    assert ssim(a, b).min() > 0.1  # above the bound
    assert torch.autograd.gradcheck(ssim_loss, (a, b))


@pytest.mark.parametrize("function", [ssim, ssim_loss])
@pytest.mark.parametrize("other", [(1, 1, 16, 16), (2, 3, 16, 16), (2, 1, 16, 1), (2, 1, 32, 32)])
def test_shapes_are_never_broadcast(function, other):
    with pytest.raises(KdganError, match=r"differ in shape; got \(2, 1, 16, 16\) and"):
        function(torch.zeros(2, 1, 16, 16), torch.zeros(other))


def test_ssim_equals_pytorch_msssim():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 20, 24, dtype=torch.float64, generator=generator)[..., :20] * 2 - 1
    b = (a + 0.3 * torch.randn(a.shape, dtype=torch.float64, generator=generator)).clamp(-1, 1)
    expected = pytorch_msssim.ssim((a + 1) / 2, (b + 1) / 2, data_range=1, size_average=False)
    torch.testing.assert_close(ssim(a, b), expected, rtol=0, atol=1e-7)  # its window is float32


@pytest.mark.parametrize("ground", [-1.0, 0.0, 1.0])
def test_float32_is_exact_on_flat_backgrounds(ground):
    a = torch.full((4, 1, 32, 32), ground, dtype=torch.float64)
    a[:, :, 10:20, 10:20] = 0.6
    b = (a + 0.01 * torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    torch.testing.assert_close(ssim_loss(a.float(), b.float()), ssim_loss(a, b).float(), rtol=1e-4, atol=0)
