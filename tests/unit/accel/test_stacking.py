"""A stack against its members run one by one, batch norm with padding against torch's, and what cannot be stacked."""

import dataclasses

import pytest
import torch
from torch import nn

from kdgan_compress.accel.fleet import stack_gan
from kdgan_compress.accel.stacking import (
    PerSample,
    StackedBatchNorm2d,
    can_be_stacked,
    check_stack,
    stack_networks,
    to_grouped,
    to_samples,
    unstack_weights,
)
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build

pytestmark = pytest.mark.usefixtures("double")


def tiny(seed=0, **changes):
    return build(Architecture(**{"channels": (1, 2), "image_size": 16, "latent_size": 8} | changes), seed)


def spread_weights(networks):
    """Weights far from 0.02, where all outputs would be near 0; statistics that are not 0 and 1."""
    for seed, network in enumerate(networks):
        for i, (name, tensor) in enumerate(network.state_dict().items()):
            if tensor.is_floating_point():
                values = noise(*tensor.shape, seed=100 * seed + i) * 0.5
                tensor.copy_(values.abs() + 0.1 if name.endswith("running_var") else values)
    return networks


def members(number=3, **changes):
    gans = [tiny(seed, **changes) for seed in range(number)]
    for name in ("generator", "discriminator"):
        spread_weights([gan.networks()[name] for gan in gans])
    return gans


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snapshot(gan):
    return {
        name: {key: weight.clone() for key, weight in net.state_dict().items()} for name, net in gan.networks().items()
    }


def assert_near(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("family", ["ed", "ed_ehat", "ede"])
def test_a_stack_computes_what_its_members_do(family, image_channels, batch, training, norm):
    gans = members(family=family, image_channels=image_channels, norm=norm)
    stacked = stack_gan(gans)
    images = [noise(batch, image_channels, 16, 16, seed=seed).tanh() for seed in range(3)]
    together = torch.cat(images, 1)
    for networks in (stacked, *(gan.networks() for gan in gans)):
        for network in networks.values():
            network.train(training)
    outputs = stacked["generator"](together)
    features, logits = stacked["discriminator"](together)
    alone = [gan.generator(batch) for gan, batch in zip(gans, images, strict=True)]
    of_discriminators = [gan.discriminator(batch) for gan, batch in zip(gans, images, strict=True)]

    for output, expected in zip(outputs, zip(*alone, strict=True), strict=True):
        assert (output is None) == (family == "ed" and expected[0] is None)
        if output is not None:
            assert_near(output, torch.cat(expected, 1))
    assert_near(features, torch.cat([expected for expected, _ in of_discriminators], 1))
    assert_near(logits, torch.stack([expected for _, expected in of_discriminators], 1).flatten())
    for name, network in stacked.items():  # buffers have changed alike
        before = [snapshot(gan)[name] for gan in gans]
        unstack_weights(network, [gan.networks()[name] for gan in gans])
        assert_near([snapshot(gan)[name] for gan in gans], before)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_no_member_affects_another(norm):
    stacked = stack_gan(members(norm=norm))
    images = noise(2, 3, 16, 16).tanh().requires_grad_()
    z1, x_hat, z2 = stacked["generator"](images)
    _, logits = stacked["discriminator"](images)
    logits = logits.view(2, 3)
    assert (z1.shape, x_hat.shape, z2.shape) == ((2, 24), (2, 3, 16, 16), (2, 24))
    for output in (z1[:, 8:16], x_hat[:, 1:2], z2[:, 8:16], logits[:, 1:2]):
        parameters = [parameter for network in stacked.values() for parameter in network.parameters()]
        of_images, *others = torch.autograd.grad(
            output.square().sum(), [images, *parameters], retain_graph=True, allow_unused=True
        )
        assert of_images[:, 1].any()
        assert not of_images[:, ::2].any()
        for gradient in (gradient for gradient in others if gradient is not None):
            first, second, third = gradient.chunk(3)
            assert second.any()
            assert not first.any()
            assert not third.any()


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("family", ["ed", "ed_ehat", "ede"])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_unstacking_gives_back_exactly_what_was_stacked(number, family, norm):
    gans = members(number, family=family, image_channels=3, norm=norm)
    expected = [snapshot(gan) for gan in gans]
    stacked = stack_gan(gans)
    for gan in gans:
        for tensor in (tensor for net in gan.networks().values() for tensor in net.state_dict().values()):
            tensor.fill_(7)
    for name, network in stacked.items():
        unstack_weights(network, [gan.networks()[name] for gan in gans])
    for gan, before in zip(gans, expected, strict=True):
        torch.testing.assert_close(snapshot(gan), before, rtol=0, atol=0)


def test_unstacking_skips_none_and_keeps_every_parameter_where_it_is():
    gans = members()
    stacked = stack_networks([gan.generator for gan in gans])
    before = [snapshot(gan) for gan in gans]
    pointers = [p.data_ptr() for gan in gans for p in gan.generator.parameters()]
    for parameter in stacked.parameters():
        parameter.data.add_(1)
    unstack_weights(stacked, [gans[0].generator, None, gans[2].generator])
    assert [p.data_ptr() for gan in gans for p in gan.generator.parameters()] == pointers
    for number, gan in enumerate(gans):
        for name, weight in gan.generator.state_dict().items():
            start = before[number]["generator"][name]
            assert torch.equal(weight, start if number == 1 else start + 1)


def test_a_stack_is_a_copy_with_the_members_mode_and_trainable_parameters():
    gans = [tiny(0), tiny(1)]
    gans[0].generator.eval()
    stacked = stack_networks([gan.generator for gan in gans])
    assert not any(module.training for module in stacked.modules())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.is_leaf for p in stacked.parameters())
    before = snapshot(gans[0])
    for parameter in stacked.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(snapshot(gans[0]), before, rtol=0, atol=0)
    assert {name for name, _ in stacked.named_parameters()} == {n for n, _ in gans[0].generator.named_parameters()}


def test_stacking_leaves_the_random_state_unchanged():
    gans = [tiny(0), tiny(1)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stack_gan(gans)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_of_all_members_in_turn_are_grouped_by_channels_and_back():
    images = [noise(4, 2, 3, 3, seed=seed) for seed in range(3)]
    samples = torch.stack(images, 1).flatten(0, 1)  # sample b of member k in row b · 3 + k
    grouped = to_grouped(samples, 3)
    assert torch.equal(grouped, torch.cat(images, 1))
    assert torch.equal(to_samples(grouped, 3), samples)
    assert torch.equal(to_samples(noise(12), 3), noise(12))
    per_sample = PerSample(nn.Sequential(nn.Conv2d(6, 6, 1, groups=3), nn.Flatten()), 3)
    weight, bias = per_sample.stacked[0].weight, per_sample.stacked[0].bias
    outputs = per_sample(samples)
    for member, batch in enumerate(images):
        part = slice(2 * member, 2 * member + 2)
        expected = nn.functional.conv2d(batch, weight[part], bias[part]).flatten(1)
        assert_near(outputs[member::3], expected)


# Batch norm


@pytest.mark.parametrize("momentum", [0.1, 0.7])
@pytest.mark.parametrize("sizes", [(3, 3), (1, 4, 2), (2, 2, 2, 1), (5,), (4, 1)], ids=str)
def test_padded_batch_norm_is_torchs_on_each_members_real_samples(sizes, momentum):
    singles = spread_weights([nn.BatchNorm2d(3, momentum=momentum) for _ in sizes])
    stacked = stack_networks(singles).train()
    assert isinstance(stacked, StackedBatchNorm2d)
    batch, num_members = max(sizes), len(sizes)
    stacked.sample_weights = torch.tensor([[(row < size) / size for size in sizes] for row in range(batch)])
    for step in range(3):
        images = (3 * noise(batch, num_members * 3, 4, 5, seed=step) + 1).requires_grad_()
        weights = noise(batch, num_members * 3, 4, 5, seed=10 + step)
        output = stacked(images)
        real = stacked.sample_weights.repeat_interleave(3, 1)[:, :, None, None] > 0
        (output.tanh() * weights * real).sum().backward()
        for member, (single, size) in enumerate(zip(singles, sizes, strict=True)):
            channels = slice(3 * member, 3 * member + 3)
            alone = images.detach()[:size, channels].clone().requires_grad_()
            parameters = [p.detach().clone().requires_grad_() for p in (single.weight, single.bias)]
            expected = nn.functional.batch_norm(
                alone, single.running_mean, single.running_var, *parameters, training=True, momentum=momentum
            )
            (expected.tanh() * weights[:size, channels]).sum().backward()
            assert_near(output[:size, channels], expected)
            assert_near(images.grad[:size, channels], alone.grad)
            assert not images.grad[size:, channels].any()
            assert_near(stacked.weight.grad[channels], parameters[0].grad)
            assert_near(stacked.bias.grad[channels], parameters[1].grad)
            assert_near(stacked.running_mean[channels], single.running_mean)
            assert_near(stacked.running_var[channels], single.running_var)
        assert stacked.num_batches_tracked.tolist() == [step + 1] * num_members
        stacked.zero_grad()


def test_padding_changes_nothing_whatever_it_holds():
    stacked = stack_networks(spread_weights([nn.BatchNorm2d(2) for _ in range(2)])).train()
    stacked.sample_weights = torch.tensor([[1.0, 1 / 3], [0, 1 / 3], [0, 1 / 3]])
    images, other = noise(3, 4, 4, 4), noise(3, 4, 4, 4)
    other[1:, :2] = 1e3 * noise(2, 2, 4, 4, seed=1)
    outputs = [stacked(batch) for batch in (images, other)]
    assert torch.equal(outputs[0][:1], outputs[1][:1])
    assert torch.equal(outputs[0][:, 2:], outputs[1][:, 2:])


@pytest.mark.parametrize("sample_weights", [None, torch.tensor([[0.5, 1.0], [0.5, 0.0]])], ids=["even", "padded"])
def test_in_evaluation_batch_norm_uses_its_running_statistics(sample_weights):
    singles = spread_weights([nn.BatchNorm2d(2) for _ in range(2)])
    stacked = stack_networks(singles).eval()
    stacked.sample_weights = sample_weights
    images = noise(2, 4, 4, 4)
    before = {name: tensor.clone() for name, tensor in stacked.state_dict().items()}
    expected = torch.cat([single.eval()(part) for single, part in zip(singles, images.chunk(2, 1), strict=True)], 1)
    assert_near(stacked(images), expected)
    torch.testing.assert_close(stacked.state_dict(), before, rtol=0, atol=0)


# Networks of a user


class UsersGenerator(nn.Module):
    """Known layers in the user's order, with a skip connection and layers of torch's that treat channels alike."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            norm(4),
            nn.LeakyReLU(0.1),
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.MaxPool2d(2),
            nn.SiLU(),
        )
        self.code = nn.Sequential(nn.Conv2d(4, 5, 4), nn.Flatten())
        self.decoder = nn.ModuleDict({"up": nn.Upsample(scale_factor=2), "out": nn.ConvTranspose2d(4, 1, 4, 2, 1)})

    def forward(self, images):
        features = self.encoder(images)
        features = features + torch.tanh(features)
        return self.code(features), torch.tanh(self.decoder["out"](self.decoder["up"](features)))


class MixesChannels(UsersGenerator):
    def forward(self, images):
        code, x_hat = super().forward(images)
        return code - code.mean(1, keepdim=True), x_hat


def per_member(stacked, networks, batch=3):
    """A stack's outputs by member, and each network's."""
    images = [noise(batch, 1, 16, 16, seed=seed).tanh() for seed in range(len(networks))]
    outputs = PerSample(stacked, len(networks))(torch.stack(images, 1).flatten(0, 1))
    by_member = [[output[member :: len(networks)] for output in outputs] for member in range(len(networks))]
    return by_member, [list(network(batch)) for network, batch in zip(networks, images, strict=True)]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, nn.Identity], ids=lambda norm: norm.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_a_users_network_of_known_layers_can_be_stacked(training, norm):
    networks = spread_weights([UsersGenerator(norm) for _ in range(3)])
    stacked = stack_networks(networks)
    assert type(stacked) is UsersGenerator
    assert can_be_stacked(networks[0])
    for network in (stacked, *networks):
        network.train(training)
    assert_near(*per_member(stacked, networks))
    for network in (stacked, *networks):
        network.eval()
    check_stack(stacked, networks, torch.cat([noise(1, 1, 16, 16, seed=seed) for seed in range(3)]))


def test_a_network_that_mixes_channels_in_its_forward_is_refused_by_the_check():
    networks = spread_weights([MixesChannels() for _ in range(3)])
    stacked = stack_networks(networks)
    for network in (stacked, *networks):
        network.eval()
    with pytest.raises(KdganError, match=r"stacked network computes something else.*--fleet 1"):
        check_stack(stacked, networks, torch.cat([noise(1, 1, 16, 16, seed=seed) for seed in range(3)]))


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(1, 1, 3), nn.Parameter(torch.ones(1))


UNKNOWN = {
    "Linear": lambda: nn.Linear(3, 3),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "PixelShuffle": lambda: nn.PixelShuffle(2),
    "Softmax": lambda: nn.Softmax(1),
    "PReLU": nn.PReLU,
    "OwnParameter": OwnParameter,
    "Conv2d": lambda: nn.Conv2d(2, 2, 3, dilation=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(2, 2, 3, stride=2, output_padding=1),
    "BatchNorm2d": lambda: nn.BatchNorm2d(2, affine=False),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(2, track_running_stats=True),
}


@pytest.mark.parametrize(("name", "make"), UNKNOWN.items(), ids=UNKNOWN)
def test_a_layer_without_a_stacked_form_is_refused(name, make):
    networks = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(make())) for _ in range(2)]
    assert not can_be_stacked(networks[0])
    with pytest.raises(KdganError, match=rf"every layer has a stacked form; found {name}\. .*--fleet 1"):
        stack_networks(networks)


# What members must agree in


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"channels": (2, 4)}, r"encoder\.features\.0\.weight is \(1, 1, 4, 4\) in member 0 and \(2, 1, 4, 4\)"),
        ({"channels": (1, 3)}, r"encoder\.features\.3\.weight is \(2, 1, 4, 4\) in member 0 and \(3, 1, 4, 4\)"),
        ({"latent_size": 9}, r"encoder\.head\.weight is \(8, 2, 4, 4\) in member 0 and \(9, 2, 4, 4\)"),
        ({"image_channels": 3}, r"encoder\.features\.0\.weight is \(1, 1, 4, 4\) in member 0 and \(1, 3, 4, 4\)"),
        ({"image_size": 32, "channels": (1, 2, 4)}, r"encoder\.head\.weight is .* in member 0 and "),
        ({"family": "ed"}, r"encoder2\.\S+ is \(1, 1, 4, 4\) in member 0 and missing in member 2"),
        ({"norm": "batch"}, r"running_mean is missing in member 0 and \(1,\) in member 2"),
        ({"family": "cvgad", "num_clusters": 2}, r" is missing in member 0 and | in member 0 and missing in member 2"),
    ],
    ids=str,
)
def test_members_of_different_shapes_are_named_by_the_tensor(changes, named):
    with pytest.raises(KdganError, match=rf"differ in shape; .*{named}.*\. Give them one family"):
        stack_gan([tiny(0), tiny(1), tiny(2, **changes)])


def test_cvgad_cannot_be_stacked():
    with pytest.raises(KdganError, match=r"every layer has a stacked form; found .*--fleet 1"):
        stack_gan([tiny(family="cvgad", num_clusters=2), tiny(1, family="cvgad", num_clusters=2)])


@pytest.mark.parametrize("without", [[0], [1], [0, 1]], ids=str)
def test_either_all_members_have_a_discriminator_or_none(without):
    gans = [tiny(0), tiny(1)]
    for member in without:
        gans[member] = dataclasses.replace(gans[member], discriminator=None)
    if len(without) == 2:
        assert list(stack_gan(gans)) == ["generator"]
        return
    with pytest.raises(KdganError, match="differ in their networks"):
        stack_gan(gans)
