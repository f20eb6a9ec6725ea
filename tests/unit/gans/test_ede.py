import itertools

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d, correlate2d
from scipy.stats import kstest
from torch import nn

from kdgan_compress.gans import Architecture, Gan, Scorer, anomaly_score, build, channels_from_width, normalize_images

FAMILIES = ("ed", "ed_ehat", "ede")


def small(family="ede", **changes):
    return Architecture(**{"family": family, "channels": (2, 4, 8), "latent_size": 16} | changes)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_every_output_has_its_shape(side, image_channels):
    channels = channels_from_width(2, side)
    gan = build(small(channels=channels, image_size=side, image_channels=image_channels))
    images = noise(3, image_channels, side, side)
    z1, x_hat, z2 = gan.generator(images)
    features, logit = gan.discriminator(images)
    assert z1.shape == z2.shape == (3, 16)
    assert x_hat.shape == images.shape
    assert features.shape == (3, channels[-1], 4, 4)
    assert logit.shape == gan.generator.anomaly_score(images).shape == (3,)


# Table II once more, a plain loop over channels with SciPy.


def convolved(x, weight, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    planes = [sum(correlate2d(plane, k, "valid") for plane, k in zip(x, kernel, strict=True)) for kernel in weight]
    return np.stack(planes)[:, ::stride, ::stride]


def transposed(x, weight, stride, padding):
    side = (x.shape[1] - 1) * stride + 1
    spread = np.zeros((len(x), side, side))
    spread[:, ::stride, ::stride] = x
    planes = [
        sum(convolve2d(plane, k, "full") for plane, k in zip(spread, weight[:, out], strict=True))
        for out in range(weight.shape[1])
    ]
    return np.stack(planes)[:, padding : side + 3 - padding, padding : side + 3 - padding]


def normalised(x, weight, bias):
    planes = [(p - p.mean()) / np.sqrt(p.var() + 1e-5) * w + b for p, w, b in zip(x, weight, bias, strict=True)]
    return np.stack(planes)


def encoded(weights, name, x, num_blocks):
    for block in range(num_blocks):
        x = convolved(x, weights[f"{name}.features.{3 * block}.weight"], 2, 1)
        norm = f"{name}.features.{3 * block + 1}"
        x = normalised(x, weights[f"{norm}.weight"], weights[f"{norm}.bias"])
        x = np.where(x > 0, x, 0.2 * x)
    return convolved(x, weights[f"{name}.head.weight"], 1, 0).ravel()


def decoded(weights, z, num_blocks):
    x = z[:, None, None]
    for block in range(num_blocks):
        stride, padding = (1, 0) if block == 0 else (2, 1)
        x = transposed(x, weights[f"decoder.features.{3 * block}.weight"], stride, padding)
        norm = f"decoder.features.{3 * block + 1}"
        x = np.maximum(normalised(x, weights[f"{norm}.weight"], weights[f"{norm}.bias"]), 0)
    return np.tanh(transposed(x, weights["decoder.head.weight"], 2, 1))


def test_the_networks_are_table_2():
    gan = build(small(channels=(2, 3), image_size=16, image_channels=3), seed=1)
    for parameter in itertools.chain(gan.generator.parameters(), gan.discriminator.parameters()):
        parameter.data = noise(*parameter.shape, seed=parameter.numel()).double()  # 0.02 would leave all near 0
    images = noise(2, 3, 16, 16).double()
    with torch.no_grad():
        outputs = gan.generator(images)
        features, logit = gan.discriminator(images)

    weights = {name: value.numpy() for name, value in gan.generator.state_dict().items()}
    of_discriminator = {name: value.numpy() for name, value in gan.discriminator.state_dict().items()}
    for i, x in enumerate(images.numpy()):
        z1 = encoded(weights, "encoder", x, 2)
        x_hat = decoded(weights, z1, 2)
        z2 = encoded(weights, "encoder2", x_hat, 2)
        for output, expected in zip(outputs, (z1, x_hat, z2), strict=True):
            np.testing.assert_allclose(output[i].numpy(), expected, rtol=0, atol=1e-8)
        np.testing.assert_allclose(logit[i].numpy(), encoded(of_discriminator, "encoder", x, 2)[0], rtol=0, atol=1e-8)
        f_x = convolved(features[i].numpy(), of_discriminator["encoder.head.weight"], 1, 0)
        np.testing.assert_allclose(logit[i].numpy(), f_x.item(), rtol=0, atol=1e-8)


def test_reconstructions_lie_between_minus_1_and_1():
    generator = build(small()).generator
    nn.init.normal_(generator.decoder.head.weight, 0, 10)
    x_hat = generator(noise(4, 1, 32, 32))[1]
    assert x_hat.abs().max() <= 1
    assert x_hat.std() > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_instance_norm_is_batch_norm_in_training_on_a_batch_of_one(family):
    instance, batch = (build(small(family, norm=norm)).generator for norm in ("instance", "batch"))
    batch.load_state_dict(instance.state_dict(), strict=False)
    for image in noise(3, 1, 1, 32, 32):
        for output, expected in zip(instance.eval()(image), batch.train()(image), strict=True):
            if family == "ed" and output is None:
                assert expected is None
                continue
            torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_scores_do_not_depend_on_the_batch(family, training):
    generator = build(small(family)).generator.train(training)
    images = noise(5, 1, 32, 32)
    images[2] *= 0.1
    with torch.no_grad():
        together = anomaly_score(generator, images)
        one_by_one = torch.cat([anomaly_score(generator, image[None]) for image in images])
    torch.testing.assert_close(together, one_by_one)
    assert together.std() > 1e-4


def test_batch_norm_scores_depend_on_the_batch_in_training_only():
    generator = build(small(norm="batch")).generator
    images = noise(4, 1, 32, 32)
    images[1:] *= 0.1
    with torch.no_grad():
        in_training = anomaly_score(generator, images)[:1], anomaly_score(generator, images[:2])[:1]
        generator.eval()
        in_evaluation = anomaly_score(generator, images)[:1], anomaly_score(generator, images[:2])[:1]
    assert not torch.allclose(*in_training)
    torch.testing.assert_close(*in_evaluation)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_distances_of_figure_4(family):
    generator = build(small(family, image_channels=3), seed=2).generator
    images = noise(4, 3, 32, 32)
    with torch.no_grad():
        z1, x_hat, z2 = generator(images)
        scores = anomaly_score(generator, images).numpy()
    for i, score in enumerate(scores):
        if family == "ede":
            expected = np.sqrt(np.square(z1[i].numpy() - z2[i].numpy()).sum())
        else:
            expected = np.abs(images[i].numpy() - x_hat[i].numpy()).sum()
        np.testing.assert_allclose(score, expected, rtol=1e-5)
    torch.testing.assert_close(Scorer(generator)(images), anomaly_score(generator, images))


def test_ed_has_no_second_encoder():
    gan = build(small("ed"))
    assert gan.generator(noise(1, 1, 32, 32))[2] is None
    assert set(gan.taps) == {"z1", "x_hat"}
    assert not [name for name, _ in gan.generator.named_parameters() if "encoder2" in name]


def test_the_score_of_ed_ehat_does_not_touch_its_second_encoder():
    generator = build(small("ed_ehat")).generator
    images = noise(2, 1, 32, 32)
    before = anomaly_score(generator, images)
    calls = []
    generator.encoder2.register_forward_hook(lambda *_: calls.append(1))
    for parameter in generator.encoder2.parameters():
        parameter.data.fill_(torch.nan)
    assert torch.equal(anomaly_score(generator, images), before)
    assert not calls
    assert generator(images)[2].isnan().all()  # in training it is there


def test_the_second_encoder_has_its_own_weights():
    generator = build(small()).generator
    first, second = generator.encoder.state_dict(), generator.encoder2.state_dict()
    assert {name: w.shape for name, w in first.items()} == {name: w.shape for name, w in second.items()}
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert first["head.weight"].data_ptr() != second["head.weight"].data_ptr()


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_initial_weights_have_the_papers_distributions(norm):
    gan = build(Architecture(norm=norm))
    standard = []
    for module in itertools.chain(gan.generator.modules(), gan.discriminator.modules()):
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        is_norm = isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d)
        assert (not is_norm and module.bias is None) or torch.equal(module.bias, torch.zeros_like(module.bias))
        drawn = ((weight.detach() - (1 if is_norm else 0)) / 0.02).flatten().numpy()
        assert abs(drawn.mean()) < 4 / drawn.size**0.5
        assert abs(drawn.std() - 1) < 4 / (2 * drawn.size) ** 0.5
        standard.append(drawn[:1000])
    assert len(standard) == 4 + 4 + 4 + 4 + 3 * 4  # E, D, Ê, discriminator; their norms
    assert kstest(np.concatenate(standard), "norm").pvalue > 0.01


def test_build_is_seeded_and_leaves_the_random_state_unchanged():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build(small(), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = build(small(), seed=3), build(small(), seed=4)
    for name, network in first.networks().items():
        for key, weight in network.state_dict().items():
            assert torch.equal(weight, again.networks()[name].state_dict()[key])
            if weight.unique().numel() > 1:
                assert not torch.equal(weight, other.networks()[name].state_dict()[key])


def test_a_gan_names_the_networks_it_has():
    generator, discriminator = nn.Identity(), nn.Identity()
    assert Gan(generator, {}).networks() == {"generator": generator}
    both = Gan(generator, {}, discriminator).networks()
    assert both == {"generator": generator, "discriminator": discriminator}
    assert list(both) == ["generator", "discriminator"]


def test_pixels_are_scaled_to_minus_1_and_1():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    scaled = normalize_images(pixels)
    assert scaled.dtype == torch.float32
    assert scaled.min() == -1
    assert scaled.max() == 1
    expected = np.arange(256).reshape(4, 1, 8, 8) / 255 * 2 - 1
    np.testing.assert_allclose(scaled.numpy(), expected, rtol=0, atol=2e-7)
    assert torch.equal(pixels.flatten(), torch.arange(256, dtype=torch.uint8))
