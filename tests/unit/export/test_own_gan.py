"""Generators this project has never seen: layers that no rewrite knows, and some that one could take for another's."""

import numpy as np
import pytest
import torch
from tiny_graphs import photos, prepare, resized
from torch import nn
from torch.nn.functional import pad

from kdgan_compress.errors import KdganError
from kdgan_compress.export import detector_file
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.graph.passes import REWRITES
from kdgan_compress.export.graph.trace import trace
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ValidationData
from kdgan_compress.gans import ImageFormat
from kdgan_compress.runtime import Detector

FORMAT = ImageFormat(16, 1)


class Own(nn.Module):
    """A function of the generator's parts and an image as its score."""

    def __init__(self, score, **parts):
        super().__init__()
        self.score = score
        for name, part in parts.items():
            setattr(self, name, part)

    def anomaly_score(self, images):
        return self.score(self, images)


def mlp(*sizes):
    return nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.GELU(), nn.Linear(sizes[1], sizes[2]))


def off(images, others):
    return (images - others).abs().flatten(1).mean(1)


def through(*layers):
    return Own(lambda own, x: off(x, own.layers(x)), layers=nn.Sequential(*layers))


def bare(before, after, kernel=4, **options):
    return nn.Conv2d(before, after, kernel, bias=False, **options)


def opening(before, after, kernel=4, **options):
    return nn.ConvTranspose2d(before, after, kernel, bias=False, **options)


def encoder(latent=96, groups=1):
    return nn.Sequential(bare(1, 4, stride=4), nn.ReLU(), bare(4, latent, groups=groups))


def decoder(latent=96, groups=1):
    return nn.Sequential(opening(latent, 4, groups=groups), nn.ReLU(), opening(4, 1, stride=4))


def norm_of_images(own, images):
    first = own.encode(images)
    return torch.linalg.vector_norm(first - own.again(own.decode(first)), dim=(1, 2, 3))


def norm_of_parts(own, images):
    first = own.encode(images)
    second = own.again(own.decode(first))
    return torch.linalg.vector_norm(first.view(-1, 4, 24) - second.view(-1, 4, 24), dim=2).amax(1)


def padded_codes(own, images):
    short, long = own.short(images).flatten(1), own.long(images).flatten(1)
    return torch.linalg.vector_norm(pad(short, (0, 3), value=2.0) - long, dim=1)


OWN = {
    "linear, as in docs/own-gan.md": lambda: through(
        nn.Flatten(), mlp(256, 40, 8), mlp(8, 40, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16))
    ),
    "dropout and batch norm of vectors": lambda: through(
        nn.Flatten(), nn.Linear(256, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 256),
        nn.Unflatten(1, (1, 16, 16)),
    ),
    "group norm, upsampling, dropout of maps": lambda: through(
        nn.Conv2d(1, 4, 4, 2, 1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Dropout2d(), nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 1, 3, padding=1),
    ),
    "batch norm behind a grouped transposed convolution": lambda: through(
        nn.Conv2d(1, 4, 4, 2, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4), nn.BatchNorm2d(4),
        nn.Conv2d(4, 1, 3, padding=1),
    ),
    "attention": lambda: Own(
        lambda own, x: off(x[:, 0], own.layer(x[:, 0])), layer=nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    ),
    "a mirrored image": lambda: Own(lambda own, x: off(x, own.layer(x.flip(3))), layer=nn.Conv2d(1, 1, 3, padding=1)),
    "a code seen as maps": lambda: Own(
        lambda own, x: off(x, own.decode(own.encode(x).view(-1, 16, 2, 2))),
        encode=nn.Sequential(bare(1, 1, stride=4), nn.ReLU(), bare(1, 64)),
        decode=nn.Sequential(opening(16, 4, 2, stride=2), nn.ReLU(), opening(4, 1, stride=4)),
    ),
    "a code in groups": lambda: Own(
        lambda own, x: off(x, own.decode(own.encode(x))), encode=encoder(groups=2), decode=decoder(groups=2)
    ),
    "a norm of codes as images": lambda: Own(
        norm_of_images, encode=encoder(), decode=decoder(), again=encoder()
    ),
    "norms of parts of codes": lambda: Own(norm_of_parts, encode=encoder(), decode=decoder(), again=encoder()),
    "a code padded with twos": lambda: Own(padded_codes, short=nn.Conv2d(1, 5, 16), long=nn.Conv2d(1, 8, 16)),
    "codes of other lengths": lambda: Own(
        lambda own, x: torch.linalg.vector_norm(own.short(x).flatten(1) - own.long(x).flatten(1), dim=1),
        short=bare(1, 8, 16), long=bare(1, 1, 16),
    ),
    "a count of pixels": lambda: Own(
        lambda own, x: ((x - own.layer(x)).abs() > 0.1).sum((1, 2, 3)) + off(x, own.layer(x)),
        layer=nn.Conv2d(1, 1, 3, padding=1),
    ),
}  # fmt: skip
SETTINGS = {
    "fp32": ExportSettings(),
    "all rewrites": ExportSettings(rewrites=frozenset(REWRITES)),
    "fp16": ExportSettings("fp16"),
    "int8": ExportSettings("int8"),
}
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-2, "int8": 0.2}


@pytest.mark.parametrize("name", OWN)
def test_scores_are_torchs_in_evaluation(tmp_path, monkeypatch, name):
    torch.manual_seed(1)
    generator = prepare(OWN[name]()).train()
    core = trace(generator.eval(), FORMAT)
    monkeypatch.setattr(detector_file, "trace", lambda *_: core.clone())
    generator.train()
    images = photos(64, 16, 16, 1)
    validation = ValidationData(images, images, images, np.arange(64) % 2 == 1)
    for kind, settings in SETTINGS.items():
        path = tmp_path / f"{kind}.onnx"
        layers = [module for module in generator.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        if settings.precision == "int8" and all(layer.weight.numel() < 1000 for layer in layers):
            with pytest.raises(KdganError, match="convolution or linear layer of at least 1000 weights"):
                write_detector(path, generator, FORMAT, 1, "by hand", settings, validation=validation, gate=False)
            assert not path.exists()
            continue
        report = write_detector(path, generator, FORMAT, 1, "by hand", settings, validation=validation, gate=False)
        assert not any(module.training for module in generator.modules())
        with torch.no_grad():
            expected = generator.anomaly_score(resized(images, 16)).numpy()
        scores = Detector(tmp_path / f"{kind}.onnx").score(images).score
        rtol = TOLERANCE[settings.precision]
        np.testing.assert_allclose(scores, expected, rtol=rtol, atol=rtol * expected.mean())
        assert report.precision == settings.precision


def test_what_is_not_scored_is_left_alone(tmp_path):
    """Weights, gradients and hooks of all parts, whether the score needs them or not."""
    generator = Own(lambda own, x: off(x, own.layer(x)), layer=nn.Conv2d(1, 1, 3, padding=1), rest=nn.BatchNorm2d(3))
    generator.rest.requires_grad_(False)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.train()
    write_detector(tmp_path / "d.onnx", generator, FORMAT, 1, "by hand")
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert [parameter.requires_grad for parameter in generator.parameters()] == [True, True, False, False]
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert Detector(tmp_path / "d.onnx").metadata.get("family") is None
