import contextlib
import itertools

import numpy as np
import pytest
import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import scoring as module
from kdgan_compress.evaluation.scoring import encode, paper_scores, recalibrate, reconstruct, score_images
from kdgan_compress.gans import Architecture, Gan, build


def gan(family: str, norm: str) -> Gan:
    """Tiny, with convolutions that matter and, for batch norm, running statistics of some training passes."""
    built = build(Architecture(family=family, channels=(1, 2, 4), latent_size=16, norm=norm), seed=1)
    with torch.no_grad():
        for module in built.generator.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.mul_(10)
        if norm == "batch":
            for seed in range(3):
                built.generator(images(8, seed).float() / 127.5 - 1)
    return built


def images(count: int, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8, generator=generator)


def one_by_one(generator: torch.nn.Module, pixels: torch.Tensor) -> list[float]:
    generator.eval()
    with torch.no_grad():
        return [generator.anomaly_score(pixels[i : i + 1].float() / 127.5 - 1).item() for i in range(len(pixels))]


@pytest.mark.parametrize("family", ["ede", "ed", "ed_ehat", "cvgad"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_scores_are_those_of_single_images(monkeypatch, family, norm):
    monkeypatch.setattr(module, "EVAL_BATCH_SIZE", 4)
    generator = gan(family, norm).generator
    scores = score_images(generator, images(10))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, one_by_one(generator, images(10)), rtol=1e-5)
    assert scores.std() > 0


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_scores_do_not_depend_on_the_rest_of_the_batch(norm, training):
    generator = gan("ede", norm).generator.train(training)
    alone = score_images(generator, images(1))
    with_others = score_images(generator, torch.cat([images(1), images(5, seed=99).clamp(max=20)]))
    assert with_others[0] == pytest.approx(alone[0], rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_network_is_left_as_it_was(training):
    generator = gan("ede", "batch").generator.train(training)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    score_images(generator, images(3))
    assert {part.training for part in generator.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_part_in_evaluation_mode_stays_so():
    """Batch norm of a frozen part keeps its statistics when training continues."""
    generator = gan("ede", "batch").generator.train()
    generator.encoder.eval()
    score_images(generator, images(3))
    assert generator.training
    assert generator.decoder.training
    assert not any(part.training for part in generator.encoder.modules())


def test_training_mode_comes_back_after_an_error():
    generator = gan("ede", "batch").generator.train()
    with pytest.raises(KdganError, match=r"takes images of \(1, 32, 32\).*got \(3, 32, 32\)"):
        score_images(generator, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert generator.training


@pytest.mark.parametrize(
    ("family", "run"),
    [
        *itertools.product(("ede", "cvgad"), (score_images, reconstruct, encode)),
        *itertools.product(("cvgad",), (paper_scores, recalibrate)),
    ],
)
def test_images_of_another_kind_are_refused(family, run):
    built = gan(family, "batch")
    for shape in ((2, 3, 32, 32), (2, 1, 16, 16)):
        pixels = torch.zeros(shape, dtype=torch.uint8)
        with pytest.raises(KdganError, match=r"takes images of \(1, 32, 32\)"):
            run(built if run in (reconstruct, encode) else built.generator, pixels)


def test_no_images():
    scores = score_images(gan("ede", "instance").generator, images(0))
    assert scores.shape == (0,)
    assert scores.dtype == np.float64


@pytest.mark.parametrize("family", ["ede", "ed"])
def test_reconstruct_is_the_decoders_output(family):
    built = gan(family, "batch")
    built.generator.train()
    x_hat = reconstruct(built, images(4))
    assert built.generator.training
    built.generator.eval()
    with torch.no_grad():
        expected = built.generator.decoder(built.generator.encoder(images(4).float() / 127.5 - 1))
    torch.testing.assert_close(x_hat, expected)
    assert not x_hat.requires_grad


def terms_one_by_one(generator, pixels):
    """−log SSIM and L1 of each image, (N, 2)."""
    generator.eval()
    with torch.no_grad():
        return np.array([generator.score_terms(image[None].float() / 127.5 - 1)[0].tolist() for image in pixels])


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_paper_scores_scale_each_term_over_the_test_set(monkeypatch, norm):
    monkeypatch.setattr(module, "EVAL_BATCH_SIZE", 4)
    generator = gan("cvgad", norm).generator.train()
    scores = paper_scores(generator, images(10))
    assert generator.training
    expected = np.zeros(10)
    for term in terms_one_by_one(generator, images(10)).T:
        expected += [(value - min(term)) / (max(term) - min(term)) for value in term]
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert 0 <= scores.min() < 1 < scores.max() <= 2


def test_paper_scores_do_not_know_the_models_own_scale():
    generator = gan("cvgad", "batch").generator
    before = paper_scores(generator, images(6))
    generator.fit_score_scale(torch.tensor([[0.0, 0.0], [7.0, 0.01]]))
    np.testing.assert_array_equal(paper_scores(generator, images(6)), before)


@pytest.mark.parametrize("pixels", [images(1), images(1).repeat(4, 1, 1, 1)], ids=["one", "equal"])
def test_paper_scores_of_a_term_without_range_are_numbers(pixels):
    assert np.isfinite(paper_scores(gan("cvgad", "batch").generator, pixels)).all()


@pytest.mark.parametrize("family", ["ede", "ed", "ed_ehat"])
def test_paper_scores_of_a_score_without_terms(family):
    with pytest.raises(KdganError, match="paper's mode need a sum"):
        paper_scores(gan(family, "batch").generator, images(3))


def test_recalibrate_scales_by_the_normals_ranges(monkeypatch):
    monkeypatch.setattr(module, "EVAL_BATCH_SIZE", 4)
    generator = gan("cvgad", "instance").generator
    unscaled = terms_one_by_one(generator, images(10))
    recalibrate(generator.train(), images(10))
    assert generator.training
    np.testing.assert_allclose(generator.score_scale, unscaled.max(0) - unscaled.min(0), rtol=1e-4)
    others = terms_one_by_one(generator, images(5, seed=9))
    expected = others[:, 0] / np.ptp(unscaled[:, 0]) + others[:, 1] / np.ptp(unscaled[:, 1])
    np.testing.assert_allclose(score_images(generator, images(5, seed=9)), expected, rtol=1e-4)


def test_recalibrate_uses_an_evenly_spaced_subset(monkeypatch):
    chosen, all_of_them = gan("cvgad", "batch").generator, images(8)
    recalibrate(chosen, all_of_them[[0, 3, 6]])
    monkeypatch.setattr(module, "MAX_CALIBRATION_IMAGES", 3)
    generator = gan("cvgad", "batch").generator
    recalibrate(generator, all_of_them)
    torch.testing.assert_close(generator.score_scale, chosen.score_scale)
    monkeypatch.setattr(module, "MAX_CALIBRATION_IMAGES", 8)
    recalibrate(generator, all_of_them)
    assert not torch.allclose(generator.score_scale, chosen.score_scale)


@pytest.mark.parametrize("family", ["ede", "ed", "ed_ehat"])
def test_recalibrate_changes_nothing_with_instance_norm_and_a_score_without_terms(family):
    generator = gan(family, "instance").generator
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    recalibrate(generator, images(3))
    torch.testing.assert_close(dict(generator.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["cvgad", "ede"])
def test_encode_is_z1_and_reconstruct_is_decoded_from_it_without_noise(monkeypatch, family):
    monkeypatch.setattr(module, "EVAL_BATCH_SIZE", 3)
    built = gan(family, "batch")
    built.generator.train()
    z1, x_hat = encode(built, images(7)), reconstruct(built, images(7))
    built.generator.eval()
    with torch.no_grad():
        codes = built.generator.encoder(images(7).float() / 127.5 - 1)
        expected = codes[0] if family == "cvgad" else codes
        torch.testing.assert_close(z1, expected)
        torch.testing.assert_close(x_hat, built.generator.decoder(expected))
    assert z1.std() > 0


def test_recalibrate_re_estimates_batch_norm_statistics(monkeypatch):
    monkeypatch.setattr(module, "CALIBRATION_BATCH_SIZE", 4)
    generator = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2)
    ).train()
    generator[1].running_mean.fill_(7.0)
    weights = [parameter.clone() for parameter in generator.parameters()]
    normals = images(8)
    recalibrate(generator, normals)
    first, means, variances = generator[0], [], []
    with torch.no_grad():
        for batch in (normals[:4], normals[4:]):
            features = first(batch.float() / 127.5 - 1)
            means.append(features.mean((0, 2, 3)))
            variances.append(features.var((0, 2, 3)))
    torch.testing.assert_close(generator[1].running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(generator[1].running_var, torch.stack(variances).mean(0))
    assert generator[3].num_batches_tracked == 2
    assert all(module.training for module in generator.modules())
    assert [layer.momentum for layer in (generator[1], generator[3])] == [0.1, 0.1]
    assert all(torch.equal(a, b) for a, b in zip(weights, generator.parameters(), strict=True))


def test_recalibrate_takes_batch_norm_without_affine_parameters():
    generator = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3, affine=False))
    recalibrate(generator, images(8))
    assert generator[1].num_batches_tracked == 1


class Standardised(torch.nn.Conv2d):
    """A convolution that scales its weights."""

    def forward(self, images):
        return super().forward(images) / self.weight.std()


class Network(torch.nn.Module):
    """A score from a convolution, its norm and a pooling."""

    def __init__(self, conv, norm):
        super().__init__()
        self.layers = torch.nn.Sequential(conv, norm, torch.nn.LeakyReLU(0.2))

    def forward(self, images):
        return self.layers(images)

    def anomaly_score(self, images):
        return self(images).square().mean((1, 2, 3))


def spectral(conv):
    return torch.nn.utils.parametrizations.spectral_norm(conv).eval()


@pytest.mark.parametrize(
    "conv",
    [
        torch.nn.Conv2d(1, 3, 4),
        torch.nn.ConvTranspose2d(1, 3, 4, stride=2, bias=False),
        Standardised(1, 3, 4),
        spectral(torch.nn.Conv2d(1, 3, 4)),
    ],
    ids=str,
)
def test_scores_of_a_users_network_with_batch_norm(monkeypatch, conv):
    norm = torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    network = Network(conv, norm)
    layers = list(network.modules())
    monkeypatch.setattr(module, "EVAL_BATCH_SIZE", 2)
    scores = score_images(network, images(6))
    assert list(network.modules()) == layers
    np.testing.assert_allclose(scores, one_by_one(network, images(6)), rtol=1e-5)


class Doubled(torch.nn.InstanceNorm2d):
    """A norm that is not what torch's computes."""

    def forward(self, images):
        return 2 * super().forward(images)


def test_scores_and_statistics_are_computed_in_float32(monkeypatch):
    """On a GPU torch allows TF32 in convolutions, which the exported detector does not use."""
    entered = []
    monkeypatch.setattr(module, "precision_context", lambda *args: entered.append(args) or contextlib.nullcontext())
    generator = gan("ede", "batch").generator
    recalibrate(generator, images(4))
    score_images(generator, images(4))
    assert entered == [("float32", "cpu")] * 2


def test_fast_layers_score_as_torchs_and_are_swapped_out_again():
    norm = torch.nn.InstanceNorm2d(3, affine=True)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    for layer in (norm, torch.nn.InstanceNorm2d(3), Doubled(3)):  # a subclass computes something else and is kept
        network = Network(torch.nn.Conv2d(1, 3, 4), layer)
        kinds = [type(module) for module in network.modules()]
        scores = score_images(network, images(6))
        assert [type(module) for module in network.modules()] == kinds
        np.testing.assert_allclose(scores, one_by_one(network, images(6)), rtol=1e-5)
