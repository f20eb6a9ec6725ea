"""The families of imported GANomaly networks: shapes, normalisation, taps and what is shared with ``ede``."""

import pytest
import torch

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build
from kdgan_compress.gans.ganomaly import set_normalization

FAMILIES = ["ganomaly", "ganomaly-anomalib"]


def small(family, **changes):
    return Architecture(family=family, channels=(2, 4, 8), latent_size=5, norm="batch", image_channels=3, **changes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_taps_have_the_shapes_of_code_and_image(family, size):
    channels = tuple(2 << block for block in range(size.bit_length() - 3))
    gan = build(Architecture(family=family, channels=channels, image_size=size, latent_size=5, norm="batch"))
    images = torch.rand(2, 1, size, size) * 2 - 1
    with FeatureHooks(gan.generator.eval(), gan.taps) as hooks, torch.no_grad():
        taps = hooks(images)
        score = gan.generator.anomaly_score(images)
        z1, z2 = gan.generator.latents(images)
    assert {name: tuple(tap.shape) for name, tap in taps.items()} == {
        "z1": (2, 5),
        "x_hat": (2, 1, size, size),
        "z2": (2, 5),
    }
    assert torch.equal(taps["z1"], z1)
    assert torch.allclose(score, ((z1 - z2) ** 2).sum(1) / 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_sees_normalised_images_and_x_hat_is_in_the_units_of_the_images(family):
    gan = build(small(family), seed=1)
    generator = gan.generator.eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    set_normalization(gan, mean.tolist(), std.tolist())
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    normalized = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        z1, x_hat, _ = generator(images)
        decoded = generator.decoder(z1)
        assert torch.allclose(generator.normalizer(images), normalized, atol=1e-6)
        assert torch.allclose(z1, generator.encoder1(normalized), atol=1e-6)
        assert torch.allclose((x_hat + 1) / 2, decoded * std[:, None, None] + mean[:, None, None], atol=1e-6)
        features, logit = gan.discriminator.eval()(images)
    assert features.shape == (2, 8, 4, 4)
    assert logit.shape == (2,)


def test_the_normalisation_is_stored_with_the_weights():
    gan, other = build(small("ganomaly")), build(small("ganomaly"), seed=1)
    set_normalization(gan, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    other.generator.load_state_dict(gan.generator.state_dict())
    assert torch.equal(other.generator.denormalizer.scale, gan.generator.normalizer.scale)
    assert not torch.equal(other.generator.normalizer.offset, torch.zeros(1, 3, 1, 1))


def test_both_families_have_the_same_tensors_but_other_first_layers():
    public, anomalib = (build(small(family, extra_layers=2)).generator for family in FAMILIES)
    assert [t.shape for t in public.state_dict().values()] == [t.shape for t in anomalib.state_dict().values()]
    assert public.encoder1.features[0].padding == (1, 1)
    assert anomalib.encoder1.features[0].padding == (4, 4)


def test_other_families_have_no_extra_layers():
    with pytest.raises(KdganError, match="no extra layers"):
        build(Architecture(extra_layers=1))
    with pytest.raises(KdganError, match="below 1"):
        Architecture(family="ganomaly", extra_layers=0)


def test_images_that_are_too_small_for_anomalibs_padding_are_refused():
    with pytest.raises(KdganError, match="at least 32 pixels"):
        build(Architecture(family="ganomaly-anomalib", channels=(2, 4), image_size=16))
