import itertools
import re

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import logsumexp
from scipy.stats import kstest, rankdata
from sklearn.preprocessing import MinMaxScaler
from torch import nn

from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, Scorer, anomaly_score, build, channels_from_width, has_score_terms
from kdgan_compress.losses import discriminator_cross_entropy, ssim
from kdgan_compress.profiling.counts import count

UNSCORED = ("encoder.log_var", "classifier", "means", "feature_discriminator")


def small(**changes):
    return Architecture(
        **{"family": "cvgad", "channels": (2, 4), "image_size": 16, "latent_size": 8, "num_clusters": 3} | changes
    )


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("image_channels", [1, 3])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_every_output_has_its_shape(side, image_channels, norm):
    channels = channels_from_width(2, side)
    gan = build(small(channels=channels, image_size=side, image_channels=image_channels, norm=norm))
    generator, images = gan.generator, noise(3, image_channels, side, side)
    mu, x_hat = generator(images)
    features = generator.encoder.features(images)
    assert [tuple(output.shape) for output in generator.encoder(images)] == [(3, 8)] * 2
    assert mu.shape == (3, 8)
    assert x_hat.shape == images.shape
    assert x_hat.abs().max() <= 1
    assert features.shape == (3, channels[-1], 4, 4)
    assert generator.classifier(mu).shape == (3, 3)
    assert generator.means.shape == (3, 8)
    assert generator.feature_discriminator(features, mu).shape == (3, 1, 4, 4)
    assert generator.score_terms(images).shape == (3, 2)
    assert gan.discriminator(images).shape == anomaly_score(generator, images).shape == (3,)
    assert set(gan.taps) == {"z1", "x_hat"}


@pytest.mark.parametrize("num_clusters", [None, 1])
def test_by_default_there_is_one_cluster(num_clusters):
    assert build(small(num_clusters=num_clusters)).generator.means.shape == (1, 8)


def by_hand(architecture):
    """Parameters of encoder to μ and decoder; of the rest of the generator; of the critic; MACs of a score."""
    side, image_channels, d = architecture.image_size, architecture.image_channels, architecture.latent_size
    plan, last, k = (image_channels, *architecture.channels), architecture.channels[-1], architecture.num_clusters
    scored = macs = critic = 0
    for outer, inner in itertools.pairwise(plan):
        side //= 2
        scored += 2 * (16 * outer * inner + 2 * inner)  # a convolution and a norm on the way down and up
        macs += 2 * 16 * outer * inner * side**2
        critic += 16 * outer * inner + inner
    head = 16 * last * d
    rest = head + (d * last + last) + (last * k + k) + k * d  # log σ², the classifier's layers, means
    rest += ((last + d) * last + last) + (last * last + last) + (last + 1)  # FD
    return scored + 2 * head, rest, critic + 16 * last + 1, macs + 2 * head


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_channels": 3, "num_clusters": 5, "norm": "batch"},
        {"channels": (2, 3, 5), "image_size": 32},
        {"channels": (2, 4, 3, 5), "image_size": 64, "latent_size": 11},
    ],
    ids=str,
)
def test_parameters_and_macs_are_the_hand_count(changes):
    architecture = small(**changes)
    gan = build(architecture)
    scored, rest, critic, macs = by_hand(architecture)
    counts = count(gan.generator, architecture)
    assert (counts.num_params, counts.conv_macs) == (scored, macs)
    assert sum(parameter.numel() for parameter in gan.generator.parameters()) == scored + rest
    assert sum(parameter.numel() for parameter in gan.discriminator.parameters()) == critic


def test_the_score_runs_encoder_and_decoder_alone():
    generator = build(small()).generator
    images = noise(2, 1, 16, 16)
    before = anomaly_score(generator, images)
    calls = []
    for name in UNSCORED:
        part = getattr(generator.encoder if "." in name else generator, name.split(".")[-1])
        if isinstance(part, nn.Module):
            part.register_forward_hook(lambda *_: calls.append(1))
        for parameter in part.parameters() if isinstance(part, nn.Module) else [part]:
            parameter.data.fill_(torch.nan)
    assert torch.equal(anomaly_score(generator, images), before)
    assert not calls
    assert before.isfinite().all()


def test_the_scores_terms_are_those_of_the_deterministic_reconstruction():
    generator = build(small(image_channels=3), seed=2).generator
    images = noise(4, 3, 16, 16)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with torch.no_grad():
        mu, x_hat = generator(images)
        terms, scores = generator.score_terms(images), anomaly_score(generator, images)
        torch.testing.assert_close(Scorer(generator)(images), scores, rtol=0, atol=0)
        torch.testing.assert_close(mu, generator.encoder(images)[0], rtol=0, atol=0)
        torch.testing.assert_close(x_hat, generator.decoder(mu), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)  # no noise is drawn
    similarity = np.maximum(ssim(images, x_hat).numpy(), 1e-3)
    difference = np.abs(images.numpy() - x_hat.numpy()).mean((1, 2, 3))
    np.testing.assert_allclose(terms.numpy(), np.stack([-np.log(similarity), difference], axis=1), rtol=1e-5)
    np.testing.assert_allclose(scores.numpy(), -np.log(similarity) + difference, rtol=1e-5)  # scales of 1 at first


def test_a_fitted_score_ranges_over_1_in_both_terms_and_ranks_as_min_max_scaling():
    generator = build(small()).generator
    normals, others = noise(20, 1, 16, 16), noise(20, 1, 16, 16, seed=1)
    normals *= torch.linspace(0.1, 1, 20).view(-1, 1, 1, 1)
    others = (others * torch.linspace(1, 0.05, 20).view(-1, 1, 1, 1) + 0.3).clamp(-1, 1)
    with torch.no_grad():
        terms = generator.score_terms(normals)
        generator.fit_score_scale(terms)
        scaled = terms / generator.score_scale
        scores = anomaly_score(generator, others).numpy()
    torch.testing.assert_close(scaled.amax(0) - scaled.amin(0), torch.ones(2))
    min_max = MinMaxScaler().fit(terms.numpy())
    expected = min_max.transform(generator.score_terms(others).detach().numpy()).sum(1)
    np.testing.assert_array_equal(rankdata(scores), rankdata(expected))
    offset = (min_max.data_min_ / min_max.data_range_).sum()
    np.testing.assert_allclose(scores, expected + offset, rtol=1e-4)
    assert has_score_terms(generator)


def test_a_fitted_score_is_saved_with_the_weights():
    fitted, fresh = build(small()).generator, build(small(), seed=1).generator
    fitted.fit_score_scale(torch.tensor([[1.0, 0.2], [4.0, 0.7], [2.0, 0.1]]))
    fresh.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(fresh.score_scale, torch.tensor([3.0, 0.6]))
    images = noise(2, 1, 16, 16)
    assert torch.equal(anomaly_score(fresh, images), anomaly_score(fitted, images))


def test_normals_that_are_all_alike_leave_the_score_finite():
    generator = build(small()).generator
    generator.fit_score_scale(generator.score_terms(noise(1, 1, 16, 16)).detach())
    assert anomaly_score(generator, noise(2, 1, 16, 16, seed=1)).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_scores_do_not_depend_on_the_batch(training):
    generator = build(small()).generator.train(training).double()  # −log SSIM blows up float32's roundings
    images = noise(5, 1, 16, 16).double() * torch.tensor([1, 0.5, 0.1, 1, 1]).view(-1, 1, 1, 1)
    with torch.no_grad():
        together = anomaly_score(generator, images)
        one_by_one = torch.cat([anomaly_score(generator, image[None]) for image in images])
    torch.testing.assert_close(together, one_by_one)
    assert together.std() > 1e-3


def test_log_var_is_bounded_and_nearly_its_head_where_that_is_small():
    encoder = build(small(), seed=1).generator.encoder
    images = noise(4, 1, 16, 16)
    head = encoder.log_var(encoder.features(images)).detach().numpy()
    np.testing.assert_allclose(encoder(images)[1].detach().numpy(), 5 * np.tanh(head / 5), rtol=1e-5)
    encoder.log_var[0].weight.data *= 1e4
    log_var = encoder(images)[1]
    assert 4 < log_var.abs().max() <= 5
    assert log_var.exp().isfinite().all()


# The rest of the networks once more, in NumPy.


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def test_the_feature_discriminator_is_one_small_network_at_every_position():
    discriminator = build(small(), seed=1).generator.feature_discriminator.double()
    features, z = noise(2, 4, 4, 4).double(), noise(2, 8, seed=1).double()
    with torch.no_grad():
        logits = discriminator(features, z).numpy()
    weights = {name: value.numpy().reshape(len(value), -1) for name, value in discriminator.state_dict().items()}
    for i, row, column in itertools.product(range(2), range(4), range(4)):
        x = np.concatenate([features[i, :, row, column].numpy(), z[i].numpy()])
        for layer in (0, 2):
            x = leaky(weights[f"layers.{layer}.weight"] @ x + weights[f"layers.{layer}.bias"][:, 0])
        expected = weights["layers.4.weight"] @ x + weights["layers.4.bias"][:, 0]
        np.testing.assert_allclose(logits[i, :, row, column], expected, atol=1e-12)


def test_the_classifier_has_one_hidden_layer():
    generator = build(small(), seed=1).generator.double()
    z = noise(5, 8).double()
    first, _, last = generator.classifier
    w1, b1, w2, b2 = (p.detach().numpy() for p in (first.weight, first.bias, last.weight, last.bias))
    logits = leaky(z.numpy() @ w1.T + b1) @ w2.T + b2
    log_p = generator.classifier(z).log_softmax(1).detach().numpy()
    np.testing.assert_allclose(log_p, logits - logsumexp(logits, axis=1, keepdims=True), atol=1e-12)


def test_the_critic_is_strided_convolutions_without_norm():
    critic = build(small(image_channels=3), seed=1).discriminator.double()
    assert {type(module) for module in critic.features} == {nn.Conv2d, nn.LeakyReLU}
    images = noise(2, 3, 16, 16).double()
    weights = {name: value.numpy() for name, value in critic.state_dict().items()}
    for image, value in zip(images.numpy(), critic(images).tolist(), strict=True):
        x = image
        for layer in (0, 2):
            x = np.pad(x, ((0, 0), (1, 1), (1, 1)))
            kernels, biases = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
            x = leaky(
                np.stack(
                    [
                        sum(correlate2d(plane, k, "valid") for plane, k in zip(x, kernel, strict=True))[::2, ::2] + bias
                        for kernel, bias in zip(kernels, biases, strict=True)
                    ]
                )
            )
        assert value == pytest.approx((weights["head.weight"][0] @ x.ravel() + weights["head.bias"]).item(), abs=1e-9)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_no_value_of_the_critic_depends_on_another_image(norm):
    critic = build(small(norm=norm)).discriminator
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in critic.modules())
    images = noise(4, 1, 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(images)[1], images)
    assert (gradient.abs().amax((1, 2, 3)) > 0).tolist() == [False, True, False, False]


def test_a_feature_discriminator_learns_which_code_belongs_to_which_features():
    discriminator = build(small(), seed=1).generator.feature_discriminator
    torch.manual_seed(0)
    features = torch.randn(16, 4, 1, 1).expand(-1, -1, 4, 4)
    z = torch.cat([features[:, :, 0, 0]] * 2, dim=1)
    optimizer = torch.optim.Adam(discriminator.parameters(), 0.01)
    losses = []
    for _ in range(200):
        loss = discriminator_cross_entropy(discriminator(features, z), discriminator(features, z.roll(1, 0))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 < 0.6 < losses[0]


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 32, 32), (2, 1, 16, 8)])
def test_images_of_another_kind_are_refused(shape):
    gan = build(small())
    for network in (gan.generator, gan.discriminator, gan.generator.anomaly_score):
        with pytest.raises(KdganError, match=rf"takes images of \(1, 16, 16\) .* got {re.escape(str(shape[1:]))}"):
            network(torch.zeros(shape))


def test_initial_weights_have_their_distributions():
    gan = build(small(channels=(16, 32), latent_size=64, num_clusters=20))
    for part in (gan.generator.encoder, gan.generator.decoder):
        for module in part.modules():
            if getattr(module, "weight", None) is not None:
                is_norm = isinstance(module, nn.InstanceNorm2d)
                drawn = ((module.weight.detach() - (1 if is_norm else 0)) / 0.02).flatten().numpy()
                assert kstest(drawn[:2000], "norm").pvalue > 1e-3
    assert kstest(gan.generator.means.detach().flatten().numpy(), "norm").pvalue > 0.01


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
