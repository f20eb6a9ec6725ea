"""Each mistake in a user's GAN has its own message, and GANs without one pass."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kdgan_compress.errors import KdganError
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.gans import FAMILIES, Architecture, Gan, ImageFormat, build, check_gan, check_score
from kdgan_compress.gans.checks import check_discriminator

pytestmark = pytest.mark.usefixtures("one_thread")

FORMAT = ImageFormat(16, 1)
TAPS = {"z1": "encode", "x_hat": "decode"}


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
        self.decode = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))

    def forward(self, x):
        return self.decode(self.encode(x))

    def errors(self, x):
        return (x - self(x)).abs().flatten(1).mean(1)

    def anomaly_score(self, x):
        return self.errors(x)


def generator_with(method, name="anomaly_score"):
    generator = Generator()
    setattr(generator, name, lambda x: method(generator, x))
    return generator


def scaled_by_range(generator, x):
    low, high = generator.errors(x).aminmax()
    return (generator.errors(x) - low) / (high - low)


def branching(generator, x):
    scores = generator.errors(x)
    if scores.max() > 100:
        scores = scores / 100
    return scores


def random_by_numpy(generator, x):
    return generator.errors(x) + torch.from_numpy(np.random.default_rng().random(len(x), dtype=np.float32))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (scaled_by_range, "needs to be finite; got nan for 1 image"),
        (
            lambda g, x: g.errors(x) / g.errors(x).max(),
            "depends on the other images.* 1 together and 1, 1, 1 one by one",
        ),
        (lambda g, x: g.errors(x) - g.errors(x).mean(), "depends on the other images"),
        (lambda g, x: g.errors(x).mean(), r"one number per image; got shape \(\) for 3 images"),
        (lambda g, x: g.errors(x)[:, None], r"one number per image; got shape \(3, 1\)"),
        (lambda g, x: g(x).reshape(64, -1).mean(1), r"one number per image; got shape \(64,\) for 3 images"),
        (lambda g, x: g.errors(x).double(), r"of type float32; got float64\. Return score\.float\(\)"),
        (lambda g, x: g.errors(x) * torch.nan, "needs to be finite; got nan, nan, nan for 3 images"),
        (lambda g, x: g.errors(x).log() * 0 / 0, "needs to be finite"),
        (lambda g, x: g.errors(x) + torch.rand(len(x)), "is random"),
        (random_by_numpy, "is random"),
        (lambda g, x: nn.functional.dropout(g.errors(x)), "is random"),
        (lambda g, x: [1.0] * len(x), "needs to be a tensor; got list"),
        (branching, r"branches on values of a tensor; it does in .*test_checks\.py, line \d+\. .*torch\.where"),
        (lambda g, x: torch.stack([v * float(v) for v in g.errors(x)]), "can't be exported"),
        (lambda g, x: g.no_such(x), r"anomaly_score failed; AttributeError: .*no_such.*test_checks\.py, line \d+"),
    ],
)
def test_a_wrong_score_is_refused_in_one_line(score, message, capfd):
    with pytest.raises(KdganError, match=message) as caught:
        check_score(generator_with(score), FORMAT)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_export_refuses_a_wrong_score_and_writes_nothing(tmp_path):
    with pytest.raises(KdganError, match="depends on the other images"):
        write_detector(
            tmp_path / "d.onnx", generator_with(lambda g, x: g.errors(x) / g.errors(x).max()), FORMAT, 1, "x"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_score_for_one_number_of_images_only_is_refused():
    def two_or_alone(generator, x):
        return x.reshape(2, -1).mean(1) if len(x) == 2 else x.flatten(1).mean(1)

    with pytest.raises(KdganError, match=r"one number of images only.*len\(images\) or -1"):
        check_score(generator_with(two_or_alone), FORMAT)


def test_batch_norm_without_running_statistics_is_refused_and_instance_norm_is_not():
    generator = Generator()
    generator.encode.append(nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(KdganError, match=r"Batch norm without running statistics.*found it in encode\.2"):
        check_score(generator, FORMAT)
    generator.encode[2] = nn.BatchNorm1d(4)
    check_score(generator, FORMAT)
    generator.decode.append(nn.InstanceNorm2d(1, affine=True))
    check_score(generator, FORMAT)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (lambda g, x: g.encode(x), r"return z1 and z2, \(N, D\) each; got one tensor \(3, 4\)"),
        (lambda g, x: (g.encode(x), g.encode(x)[:, :2]), r"got \(one tensor \(3, 4\), one tensor \(3, 2\)\)"),
        (lambda g, x: (g.encode(x), g.encode(x) - g.encode(x).mean(0)), "alone and in a batch"),
        (lambda g, x: (g.encode(x), g.encode(x) * torch.nan), "alone and in a batch; they differ, or are not finite"),
        (lambda g, x: 1 / 0, r"The method latents failed; ZeroDivisionError.*test_checks\.py"),
    ],
)
def test_wrong_latents_are_refused(latents, message):
    with pytest.raises(KdganError, match=message):
        check_score(generator_with(latents, "latents"), FORMAT)


def test_right_latents_pass():
    check_score(generator_with(lambda g, x: (g.encode(x), g.encode(g(x))), "latents"), FORMAT)


class WithoutScore(Generator):
    anomaly_score = None


class ListOfLayers(nn.Module):
    """Its layers are in a plain list, so torch doesn't know them."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4)]


@pytest.mark.parametrize(
    ("gan", "message"),
    [
        (Generator(), r"A family needs to build a Gan; got Generator"),
        (Gan(WithoutScore(), TAPS), "needs an anomaly score; WithoutScore has none"),
        (Gan(nn.DataParallel(Generator()), TAPS), r"wrapped in DataParallel\. Give its attribute \.module"),
        (Gan(Generator(), TAPS, nn.DataParallel(nn.Linear(2, 2))), "The discriminator needs to be the network itself"),
        (Gan(torch.compile(Generator()), TAPS), r"OptimizedModule\. Give its attribute \._orig_mod"),
        (Gan(Generator(), {"z1": "module.encode", "x_hat": "decode"}), r"got 'module\.encode', .* Write 'encode'"),
        (
            Gan(Generator(), {"z1": "encode", "x_hat": "decodr"}),
            r"'x_hat' does not name .*encode, decode\. Write 'decode'",
        ),
        (Gan(Generator(), {"z1": "encode"}), r"taps need to name z1 and x_hat; got \{'z1': 'encode'\}"),
        (Gan(Generator(), ["encode"]), "taps need to name z1 and x_hat; got list"),
        (Gan(ListOfLayers(), TAPS), r"needs weights; ListOfLayers has no parameters.*ModuleList"),
        (Gan(lambda x: x, TAPS), "The generator needs to be a torch.nn.Module; it is of type function"),
    ],
)
def test_a_wrong_gan_is_refused(gan, message):
    with pytest.raises(KdganError, match=message):
        check_gan(gan, FORMAT)


class Pair(nn.Linear):
    def __init__(self, output):
        super().__init__(256, 2)
        self.output = output

    def forward(self, x):
        return self.output(super().forward(x.flatten(1)))


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (lambda y: y, r"got one tensor \(3, 2\) for 3 images"),
        (lambda y: (y, y), r"got \(one tensor \(3, 2\), one tensor \(3, 2\)\)"),
        (lambda y: (y.mean(), y[:, 0]), r"one tensor \(\)"),
        (lambda y: {"logit": y}, "got dict"),
    ],
)
def test_a_discriminator_that_ganomalys_losses_cannot_read_is_refused(output, found):
    with pytest.raises(KdganError, match=f"features .* and a logit .*{found}"):
        check_discriminator(Gan(Generator(), TAPS, Pair(output)), FORMAT)
    check_discriminator(Gan(Generator(), TAPS, Pair(lambda y: (y, y[:, 0]))), FORMAT)
    check_discriminator(Gan(Generator(), TAPS), FORMAT)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_families_of_the_package_pass(family, norm):
    clusters = 2 if FAMILIES[family].has_clusters else None
    architecture = Architecture(family=family, channels=(2, 4, 8), norm=norm, num_clusters=clusters)
    check_gan(build(architecture), architecture)


def test_a_check_changes_nothing():
    gan = Gan(Generator().train(), TAPS)
    gan.generator.encode.append(nn.BatchNorm1d(4).eval())
    before, modes = copy.deepcopy(gan.generator.state_dict()), [m.training for m in gan.generator.modules()]
    state = torch.get_rng_state()
    check_gan(gan, FORMAT)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in gan.generator.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in gan.generator.state_dict().items())
    assert not any(m._forward_hooks for m in gan.generator.modules())
