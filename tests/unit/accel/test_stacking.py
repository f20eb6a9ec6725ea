"""A fleet against its members run one by one, and what can't be one."""

import dataclasses

import pytest
import torch

from kdgan_compress.accel.stacking import stack_gans, unstack_weights
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, Gan, build

pytestmark = pytest.mark.usefixtures("double")


def tiny(seed=0, **changes):
    return build(Architecture(**{"channels": (1, 2), "image_size": 16, "latent_size": 8} | changes), seed)


def members(number=3, **changes):
    """GANs whose weights are far from 0.02, where all would be near grey."""
    gans = [tiny(seed, **changes) for seed in range(number)]
    for seed, gan in enumerate(gans):
        for network in gan.networks().values():
            for i, parameter in enumerate(network.parameters()):
                parameter.data = noise(*parameter.shape, seed=100 * seed + i) * 0.5
    return gans


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snapshot(gan):
    return {
        name: {key: weight.clone() for key, weight in net.state_dict().items()} for name, net in gan.networks().items()
    }


def assert_near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("family", ["ed", "ed_ehat", "ede"])
def test_a_fleet_does_what_its_members_do(family, image_channels, batch, training):
    gans = members(family=family, image_channels=image_channels)
    fleet = stack_gans(gans)
    images = [noise(batch, image_channels, 16, 16, seed=seed).tanh() for seed in range(3)]
    together = torch.cat(images, 1)
    for network in (net for gan in (fleet, *gans) for net in gan.networks().values()):
        network.train(training)
    outputs = fleet.generator(together)
    features, logits = fleet.discriminator(together)
    alone = [gan.generator(own) for gan, own in zip(gans, images, strict=True)]
    judged = [gan.discriminator(own) for gan, own in zip(gans, images, strict=True)]

    for output, own in zip(outputs, zip(*alone, strict=True), strict=True):
        assert (output is None) == (family == "ed" and own[0] is None)
        if output is not None:
            assert_near(output, torch.cat(own, 1))
    assert_near(features, torch.cat([own for own, _ in judged], 1))
    assert_near(logits, torch.stack([own for _, own in judged], 1))


def test_no_member_touches_another():
    gans = members()
    fleet = stack_gans(gans)
    images = noise(2, 3, 16, 16).tanh().requires_grad_()
    z1, x_hat, z2 = fleet.generator(images)
    _, logits = fleet.discriminator(images)
    assert (z1.shape, x_hat.shape, z2.shape, logits.shape) == ((2, 24), (2, 3, 16, 16), (2, 24), (2, 3))
    for output in (z1[:, 8:16], x_hat[:, 1:2], z2[:, 8:16], logits[:, 1:2]):
        parameters = [*fleet.generator.parameters(), *fleet.discriminator.parameters()]
        of_images, *others = torch.autograd.grad(
            output.square().sum(), [images, *parameters], retain_graph=True, allow_unused=True
        )
        assert of_images[:, 1].any()
        assert not of_images[:, ::2].any()
        for gradient in (own for own in others if own is not None):
            first, second, third = gradient.chunk(3)
            assert second.any()
            assert not first.any()
            assert not third.any()


@pytest.mark.parametrize("family", ["ed", "ed_ehat", "ede"])
@pytest.mark.parametrize("number", [2, 5])
def test_split_gives_back_exactly_what_was_stacked(number, family):
    gans = members(number, family=family, image_channels=3)
    expected = [snapshot(gan) for gan in gans]
    fleet = stack_gans(gans)
    for gan in gans:
        for parameter in (p for net in gan.networks().values() for p in net.parameters()):
            parameter.data.fill_(7)
    for name, network in fleet.networks().items():
        unstack_weights(network, [gan.networks()[name] for gan in gans])
    for gan, before in zip(gans, expected, strict=True):
        torch.testing.assert_close(snapshot(gan), before, rtol=0, atol=0)


def test_split_passes_none_over_and_keeps_every_parameter_where_it_is():
    gans = members()
    fleet = stack_gans(gans)
    before = [snapshot(gan) for gan in gans]
    places = [p.data_ptr() for gan in gans for p in gan.generator.parameters()]
    for parameter in fleet.generator.parameters():
        parameter.data.add_(1)
    unstack_weights(fleet.generator, [gans[0].generator, None, gans[2].generator])
    assert [p.data_ptr() for gan in gans for p in gan.generator.parameters()] == places
    for number, gan in enumerate(gans):
        for name, weight in gan.generator.state_dict().items():
            start = before[number]["generator"][name]
            assert torch.equal(weight, start if number == 1 else start + 1)


def test_a_fleet_is_a_copy_and_one_gan_is_itself():
    gan, other = tiny(0), tiny(1)
    assert stack_gans([gan]) is gan
    fleet = stack_gans([gan, other])
    before = snapshot(gan)
    for parameter in fleet.generator.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(snapshot(gan), before, rtol=0, atol=0)
    assert (fleet.num_members, gan.num_members) == (2, 1)
    assert fleet.is_batch_independent
    assert fleet.taps == gan.taps


def test_stacking_leaves_the_random_state_alone():
    gans = [tiny(0), tiny(1)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    stack_gans(gans)
    assert torch.equal(torch.get_rng_state(), before)


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
def test_members_of_unlike_shape_are_told_by_the_tensor(changes, named):
    with pytest.raises(KdganError, match=rf"must be of one shape; .*{named}.*\. Give them one family"):
        stack_gans([tiny(0), tiny(1), tiny(2, **changes)])


def users():
    """A GAN of the user's own making."""
    gan = tiny()
    return Gan(gan.generator, gan.taps, gan.discriminator)


@pytest.mark.parametrize(
    "make",
    [lambda: tiny(norm="batch"), lambda: tiny(family="cvgad", num_clusters=2), users],
    ids=["batch norm", "cvgad", "user's"],
)
def test_what_has_no_fleet_form_is_told(make):
    with pytest.raises(
        KdganError, match=r"must be of a family that has one, with norm per_image; got .* \(--fleet 1\)"
    ):
        stack_gans([make(), make()])
    gan = make()
    assert stack_gans([gan]) is gan


@pytest.mark.parametrize("places", [[0], [1], [0, 1]], ids=str)
def test_a_gan_without_discriminator_has_no_fleet_form(places):
    gans = [tiny(0), tiny(1)]
    for place in places:
        gans[place] = dataclasses.replace(gans[place], discriminator=None)
    with pytest.raises(KdganError, match="fleet must"):
        stack_gans(gans)
