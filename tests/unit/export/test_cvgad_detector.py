"""CVGAD's detector file by itself: SSIM, L1, scales and threshold are inside and checked against loops in NumPy."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.signal import correlate2d

from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.gans import Architecture, build
from kdgan_compress.runtime import Detector

SCALE = (0.7, 0.05)
C1, C2 = 0.01**2, 0.03**2


def architecture(image_channels=1, norm="batch", num_clusters=3):
    return Architecture(
        family="cvgad",
        channels=(2, 3),
        image_channels=image_channels,
        image_size=16,
        latent_size=8,
        norm=norm,
        num_clusters=num_clusters,
    )


def trained(described):
    """Weights that matter, statistics of some passes, and a scale."""
    generator = build(described, seed=2).generator
    pixels = torch.rand(8, described.image_channels, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.mul_(10)
        for _ in range(3):
            generator(pixels)
        generator.score_scale.copy_(torch.tensor(SCALE))
    return generator.eval()


@pytest.fixture(scope="module", params=[(1, "batch", 3), (3, "instance", 2), (1, "instance", None)], ids=str)
def written(request, tmp_path_factory):
    described = architecture(*request.param)
    path = tmp_path_factory.mktemp("cvgad") / "d.onnx"
    report = write_detector(path, trained(described), described, 2.5, "by hand")
    return described, trained(described), report


def ssim(a, b):
    """Equation 11 of one pair (C, S, S) in [−1, 1] by SciPy."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for e, f in zip((a + 1) / 2, (b + 1) / 2, strict=True):
        mu_e, mu_f, ee, ff, ef = (correlate2d(p, window, "valid") for p in (e, f, e * e, f * f, e * f))
        top = (2 * mu_e * mu_f + C1) * (2 * (ef - mu_e * mu_f) + C2)
        values.append(top / (mu_e**2 + mu_f**2 + C1) / (ee - mu_e**2 + ff - mu_f**2 + C2))
    return np.mean(values)


def photos(channels):
    """Images of the network's own size, which no resizing touches: smooth, half flat, noise."""
    generator = np.random.default_rng(5)
    ramp = np.linspace(20, 220, 16)[:, None, None] * np.ones((16, 16, channels))
    half = np.where(np.arange(16)[None, :, None] < 8, 30, ramp)
    noise = generator.uniform(0, 255, (16, 16, channels))
    return np.array([ramp, half, noise, ramp[::-1]]).astype(np.uint8)


def test_score_is_that_of_a_loop_in_numpy(written):
    described, generator, report = written
    images = photos(described.image_channels)
    scores = Detector(report.path).score(images).score
    pixels = images.transpose(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        _, x_hat = generator(torch.from_numpy(pixels).float())
    terms = [
        (-np.log(max(ssim(x, y), 1e-3)) / SCALE[0], np.abs(x - y).mean() / SCALE[1])
        for x, y in zip(pixels, x_hat.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(scores, [sum(pair) for pair in terms], rtol=1e-4)
    assert all(np.ptp([pair[number] for pair in terms]) > 0.5 for number in (0, 1))


def test_report_and_metadata(written):
    described, _, report = written
    metadata = Detector(report.path).metadata
    assert report.parity_max_rel <= 1e-4
    assert (metadata["family"], metadata["channels"], metadata["norm"]) == ("cvgad", "2-3", described.norm)
    assert metadata.get("num_clusters") == (str(described.num_clusters) if described.num_clusters else None)


def test_what_only_training_needs_stays_behind(written):
    _, generator, report = written
    content = Path(report.path).read_bytes()
    assert generator.encoder.mu[0].weight.detach().numpy().tobytes() in content
    for weight in (generator.encoder.log_var[0].weight, generator.means, generator.classifier[0].weight):
        assert weight.detach().numpy().tobytes() not in content


def test_onnxruntime_takes_it_at_every_level_of_optimisation(written):
    """Without optimisation nothing hides a node that does nothing."""
    described, _, report = written
    images = photos(described.image_channels)
    expected = Detector(report.path).score(images).score
    for level in onnxruntime.GraphOptimizationLevel.__members__.values():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(report.path, options, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(["score"], {"image": images})[0], expected, rtol=1e-5)
        session.run(None, {"image": images[:1, :13, :11]})
    assert "Squeeze" not in {node.op_type for node in onnx.load(report.path).graph.node}
