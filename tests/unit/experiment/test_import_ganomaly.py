"""Imported networks score as the projects' do; what is missing, unknown or another project's is named."""

import sys
from pathlib import Path

import pytest
import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.import_ganomaly import import_ganomaly
from kdgan_compress.gans import normalize_images
from kdgan_compress.gans.ganomaly import set_normalization

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))
from ganomaly_networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AnomalibGenerator,
    PublicNetD,
    PublicNetG,
    random_weights,
    with_discriminator,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(channels, size, number=3):
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (number, channels, size, size), dtype=torch.uint8, generator=generator)


def scores(gan, images):
    with torch.no_grad():
        return gan.generator.eval().anomaly_score(normalize_images(images))


@pytest.mark.parametrize("size", [32, 64, 256])
@pytest.mark.parametrize("extra_layers", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_the_public_code_scores_equally(size, extra_layers, channels):
    network = random_weights(PublicNetG(size, nz=7, nc=channels, ngf=4, extralayers=extra_layers))
    imported = import_ganomaly(network.state_dict())
    architecture = imported.architecture
    assert (architecture.image_size, architecture.image_channels, architecture.latent_size) == (size, channels, 7)
    assert (architecture.channels[0], architecture.extra_layers or 0) == (4, extra_layers)
    assert "public code" in imported.project
    assert not imported.has_discriminator
    images = pixels(channels, size)
    torch.testing.assert_close(scores(imported.gan, images), network.score(images), rtol=1e-5, atol=0)


def test_another_normalisation_is_that_of_torchvision():
    network = random_weights(PublicNetG(32, nz=7, nc=1, ngf=4))
    imported = import_ganomaly(network.state_dict())
    set_normalization(imported.gan, [0.1307], [0.3081])
    images = pixels(1, 32)
    expected = network.score(images, (0.1307,), (0.3081,))
    torch.testing.assert_close(scores(imported.gan, images), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("extra_layers", [0, 1])
def test_a_network_of_anomalib_scores_equally(size, extra_layers):
    network = random_weights(AnomalibGenerator(size, nz=7, width=4, extra_layers=extra_layers))
    discriminator = random_weights(PublicNetD(size, 3, 4, extra_layers), seed=1)
    checkpoint = with_discriminator(network, discriminator)
    checkpoint |= {name: torch.tensor(0.5) for name in ("image_threshold.value", "post_processor._image_threshold")}
    imported = import_ganomaly(checkpoint)
    assert "anomalib" in imported.project
    assert imported.has_discriminator
    set_normalization(imported.gan, IMAGENET_MEAN, IMAGENET_STD)
    images = pixels(3, size)
    torch.testing.assert_close(scores(imported.gan, images), network.score(images), rtol=1e-5, atol=0)


def test_the_discriminator_of_the_public_code_is_converted():
    original = random_weights(PublicNetD(32, 1, 4, 1)).eval()
    network = PublicNetG(32, nz=7, nc=1, ngf=4, extralayers=1)
    imported = import_ganomaly(network.state_dict(), original.state_dict())
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        features, logit = imported.gan.discriminator.eval()(images)
        expected_logit, expected = original(images)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(torch.sigmoid(logit), expected_logit)


@pytest.mark.parametrize("prefix", ["module.", "module.netg."])
def test_prefixes_of_wrappers_are_removed(prefix):
    network = PublicNetG(32, nz=7, nc=1, ngf=4)
    imported = import_ganomaly({prefix + name: tensor for name, tensor in network.state_dict().items()})
    assert torch.equal(imported.gan.generator.encoder1.head.weight, network.encoder1.main[-1].weight)


def test_old_files_without_the_number_of_batches_are_taken():
    tensors = PublicNetG(32, nz=7, nc=1, ngf=4).state_dict()
    import_ganomaly({name: tensor for name, tensor in tensors.items() if "num_batches" not in name})


def changed(change):
    tensors = PublicNetG(32, nz=7, nc=1, ngf=4).state_dict()
    change(tensors)
    return tensors


NORM = "decoder.main.pyramid-8-batchnorm"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{NORM}.bias"), ["public code", "1 missing", f"{NORM}.bias"]),
        (lambda t: t.update({"encoder1.main.new.weight": torch.ones(1)}), ["1 unknown", "encoder1.main.new.weight"]),
        (lambda t: t.update({"other.weight": torch.ones(1)}), ["1 unknown", "other.weight"]),
        (lambda t: t.update({f"{NORM}.bias": torch.ones(3)}), [f"{NORM}.bias has shape \\(3,\\) instead of \\(8,\\)"]),
        (lambda t: t.update({f"{NORM}.bias": torch.ones(8).half()}), ["is float16 instead of float32"]),
        (lambda t: t.update({f"{NORM}.bias": torch.full((8,), torch.nan)}), ["not finite"]),
        (lambda t: t.update({f"{NORM}.running_var": -torch.ones(8)}), ["negative variance"]),
        (lambda t: t.pop("encoder1.main.initial-conv-1-4.weight"), ["first and the last convolution", "found 0 and 1"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, words):
    with pytest.raises(KdganError, match=".*".join(words)):
        import_ganomaly(changed(change))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model.model.0.weight", "model.model.1.model.3.bias"], "skip-GANomaly.*no z1"),
        (["module.features.0.weight", "module.classifier.0.weight"], r"netD\.pth"),
        (["model.feature_extractor.a.weight", "model.memory_bank"], r"none of encoder1.*model\.feature_extractor"),
    ],
)
def test_other_networks_are_named(names, words):
    with pytest.raises(KdganError, match=words):
        import_ganomaly({name: torch.ones(1) for name in names})


def test_a_discriminator_of_another_network_is_refused():
    network = PublicNetG(32, nz=7, nc=1, ngf=4)
    with pytest.raises(KdganError, match=r"the discriminator of GANomaly's public code.*has shape"):
        import_ganomaly(network.state_dict(), PublicNetD(32, 1, 8).state_dict())


@pytest.mark.parametrize("size", [16, 2048])
def test_sizes_that_anomalib_can_not_score_are_refused(size):
    tensors = {"encoder1.input_layers.initial-conv-1-1.weight": torch.ones(1, 1, 4, 4)}
    blocks = size.bit_length() - 4
    for block in range(blocks):
        tensors[f"encoder1.pyramid_features.pyramid-{1 << block}-{2 << block}-conv.weight"] = torch.ones(1, 1, 4, 4)
    tensors["encoder1.final_conv_layer.weight"] = torch.ones(1, 1, 4, 4)
    with pytest.raises(KdganError, match="images of 32 to 1024 pixels"):
        import_ganomaly(tensors)
