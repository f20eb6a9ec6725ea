import numpy as np
import pytest
import torch

from kdgan_compress.evaluation import scores as module
from kdgan_compress.evaluation.scores import reconstruct, score_images
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


@pytest.mark.parametrize("family", ["ede", "ed", "ed_ehat"])
@pytest.mark.parametrize("norm", ["per_image", "batch"])
def test_scores_are_those_of_single_images(monkeypatch, family, norm):
    monkeypatch.setattr(module, "BATCH", 4)
    generator = gan(family, norm).generator
    scores = score_images(generator, images(10))
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, one_by_one(generator, images(10)), rtol=1e-5)
    assert scores.std() > 0


@pytest.mark.parametrize("norm", ["per_image", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_the_rest_of_the_batch_never_leaks(norm, training):
    generator = gan("ede", norm).generator.train(training)
    alone = score_images(generator, images(1))
    beside_others = score_images(generator, torch.cat([images(1), images(5, seed=99).clamp(max=20)]))
    assert beside_others[0] == pytest.approx(alone[0], rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_network_is_left_as_it_was(training):
    generator = gan("ede", "batch").generator.train(training)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    score_images(generator, images(3))
    assert {part.training for part in generator.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_part_in_evaluation_mode_stays_so():
    """Batch norm of a frozen part must not move its statistics in the training that goes on."""
    generator = gan("ede", "batch").generator.train()
    generator.encoder.eval()
    score_images(generator, images(3))
    assert generator.training
    assert generator.decoder.training
    assert not any(part.training for part in generator.encoder.modules())


def test_training_mode_comes_back_after_an_error():
    generator = gan("ede", "batch").generator.train()
    with pytest.raises(RuntimeError):
        score_images(generator, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert generator.training


def test_no_images():
    scores = score_images(gan("ede", "per_image").generator, images(0))
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
