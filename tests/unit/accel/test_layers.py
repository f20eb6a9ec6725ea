"""The layers against torch's own: outputs, gradients, gradients of gradients, and which operator runs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdgan_compress.accel import layers

# in, out, kernel, stride, padding, height and width, all of one group
CONVOLUTIONS = {
    "grey": (1, 2, 4, 2, 1, (16, 16)),
    "rgb": (3, 2, 4, 2, 1, (16, 16)),
    "small": (4, 3, 4, 2, 1, (8, 8)),
    "edge": (4, 2, 4, 2, 1, (32, 32)),  # at batch 1 exactly MAX_UNFOLD_NUMEL
    "large": (5, 2, 4, 2, 1, (32, 32)),
    "large rgb": (3, 2, 4, 2, 1, (64, 64)),
    "oblong": (2, 3, (3, 4), (1, 2), (0, 1), (5, 8)),
    "to a vector": (6, 8, 4, 1, 0, (4, 4)),
    "to a number": (6, 1, 4, 1, 0, (4, 4)),
    "large to a vector": (1030, 2, 4, 1, 0, (4, 4)),
    "padded to a vector": (2, 3, 4, 1, 1, (2, 2)),
    "1x1": (4, 3, 1, 1, 0, (3, 3)),
}
TRANSPOSED = {
    "grey": (2, 1, 4, 2, 1, (8, 8)),
    "rgb": (2, 3, 4, 2, 1, (8, 8)),
    "small": (3, 4, 4, 2, 1, (4, 4)),
    "edge": (2, 4, 4, 2, 1, (16, 16)),
    "large": (2, 5, 4, 2, 1, (16, 16)),
    "large rgb": (2, 3, 4, 2, 1, (32, 32)),
    "oblong": (2, 3, (3, 4), (1, 2), (0, 1), (5, 8)),
    "from a vector": (8, 6, 4, 1, 0, (1, 1)),
    "from a number": (1, 6, 4, 1, 0, (1, 1)),
    "large from a vector": (2, 1030, 4, 1, 0, (1, 1)),
    "padded from a vector": (3, 2, 4, 1, 1, (1, 1)),
    "1x1": (3, 4, 1, 1, 0, (3, 3)),
}
CASES = [("Conv2d", name) for name in CONVOLUTIONS] + [("ConvTranspose2d", name) for name in TRANSPOSED]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_pair(kind, case, groups=1, bias=False):
    """The fast layer and torch's with the same weights, in training mode."""
    before, after, kernel, stride, padding, _ = (CONVOLUTIONS if kind == "Conv2d" else TRANSPOSED)[case]
    fast, plain = (
        getattr(module, kind)(groups * before, groups * after, kernel, stride, padding, groups=groups, bias=bias)
        for module in (layers, nn)
    )
    return with_same_weights(fast, plain)


def with_same_weights(fast, plain):
    for seed, parameter in enumerate(plain.double().parameters()):
        parameter.data = noise(*parameter.shape, seed=seed + 5)
    fast.double().load_state_dict(plain.state_dict())
    return fast.train(), plain.train()


def make_images(kind, case, batch, groups=1):
    before, _, _, _, _, sides = (CONVOLUTIONS if kind == "Conv2d" else TRANSPOSED)[case]
    return noise(batch, groups * before, *sides)


def derivatives(layer, images):
    """Output, gradients by input and weights, and the gradients of those gradients' square."""
    inputs = [images.clone().requires_grad_(), *layer.parameters()]
    output = layer(inputs[0])
    weights = noise(*output.shape, seed=9)
    first = torch.autograd.grad((output.tanh() * weights).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)
    return output.detach(), [gradient.detach() for gradient in first], list(second)


class Watch(TorchDispatchMode):
    """The names of the operators that run, backward passes too."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators(layer, images):
    with Watch() as watch:
        layer(images).sum().backward()
    return watch.seen


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_convolution_is_torchs(kind, case, groups, batch):
    fast, plain = make_pair(kind, case, groups)
    images = make_images(kind, case, batch, groups)
    torch.testing.assert_close(derivatives(fast, images), derivatives(plain, images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("kind", "case"), [case for case in CASES if "large" not in case[1]])
def test_a_bias_is_torchs(kind, case, groups):
    fast, plain = make_pair(kind, case, groups, bias=True)
    assert fast.bias is not None
    images = make_images(kind, case, 2, groups)
    torch.testing.assert_close(derivatives(fast, images), derivatives(plain, images), rtol=1e-9, atol=1e-9)


def test_a_kernel_that_fits_once_into_a_larger_image_is_torchs():
    fast, plain = with_same_weights(layers.Conv2d(2, 3, 4, stride=2), nn.Conv2d(2, 3, 4, stride=2))
    images = noise(2, 2, 5, 5)  # the last row and column are not looked at
    torch.testing.assert_close(derivatives(fast, images), derivatives(plain, images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", [torch.channels_last, "sliced"], ids=str)
@pytest.mark.parametrize(("kind", "case"), [case for case in CASES if "large" not in case[1]])
def test_images_may_have_any_memory_layout(kind, case, layout):
    fast, plain = make_pair(kind, case)
    images = make_images(kind, case, 2)
    if layout == "sliced":
        images = torch.stack([images, -images], 4)[..., 0]
        assert not images.is_contiguous()
    else:
        images = images.to(memory_format=layout)
    torch.testing.assert_close(fast(images), plain(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_large_ones_of_many_channels_are_torchs_operator_and_others_products(kind, case, groups, batch):
    fast, _ = make_pair(kind, case, groups)
    is_large = (case == "large") or (case == "edge" and batch > 1)
    seen = operators(fast, make_images(kind, case, batch, groups))
    assert ("convolution" in seen) == is_large
    assert ("bmm" in seen) != is_large


@pytest.mark.parametrize("is_cuda", [True, False])
@pytest.mark.parametrize(("channels", "positions"), [(1, 1), (256, 1), (1, 256), (64, 256)])
def test_on_a_gpu_only_maps_to_and_from_vectors_are_products(channels, positions, is_cuda):
    layer = SimpleNamespace(groups=1, kernel_size=(4, 4), weight=SimpleNamespace(is_cuda=is_cuda))
    expected = positions == 1 or (channels == 1 and not is_cuda)
    assert layers._should_use_im2col(layer, 16, channels, positions) == expected


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_outside_fast_layers_a_convolution_is_torchs_operator(kind, case):
    _, plain = make_pair(kind, case)
    images = make_images(kind, case, 1)
    network = nn.Sequential(plain.eval())
    expected = plain(images)
    with layers.fast_layers(network):
        torch.testing.assert_close(network(images), expected, rtol=1e-9, atol=1e-9)
    seen = operators(network, images)
    assert "convolution" in seen
    assert not seen & {"im2col", "col2im", "bmm", "mm"}
    assert torch.equal(network(images), expected)


def test_the_cases_lie_on_both_sides_of_the_limits():
    channels, _, kernel, _, _, (side, _) = CONVOLUTIONS["edge"]
    assert channels * kernel**2 * (side // 2) ** 2 == layers.MAX_UNFOLD_NUMEL
    assert CONVOLUTIONS["large rgb"][0] == layers.MAX_NARROW_CHANNELS < channels


# The norm


def make_norms(channels):
    return with_same_weights(layers.InstanceNorm2d(channels, affine=True), nn.InstanceNorm2d(channels, affine=True))


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(("channels", "side"), [(1, 4), (6, 8), (12, 3)])
def test_the_norm_is_torchs(channels, side, batch):
    fast, plain = make_norms(channels)
    images = 3 * noise(batch, channels, side, side) + 1
    torch.testing.assert_close(derivatives(fast, images), derivatives(plain, images), rtol=1e-8, atol=1e-9)


def test_the_norm_of_a_flat_image_is_torchs():
    fast, plain = make_norms(2)
    images = torch.full((3, 2, 4, 4), 0.5, dtype=torch.float64)
    images[1, 1, 2, 2] += 1e-3  # near the ε under the root
    torch.testing.assert_close(derivatives(fast, images), derivatives(plain, images), rtol=1e-6, atol=1e-9)


def test_outside_fast_layers_the_norm_is_torchs_operator():
    _, plain = make_norms(2)
    images, network = noise(3, 2, 4, 4), nn.Sequential(plain.eval())
    with layers.fast_layers(network):
        assert "native_group_norm" in operators(network, images)
        torch.testing.assert_close(network(images), plain(images), rtol=1e-9, atol=1e-9)
    assert "native_group_norm" not in operators(network, images)
