"""A new family is one file and one line: here a dense autoencoder, which trains, distils and scores like the others."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import train_schedulers
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import FAMILIES, Architecture, Family, Gan, Scorer, anomaly_score, build
from kdgan_compress.gans.objective import check_weights, is_nonzero
from kdgan_compress.losses import l1

pytestmark = pytest.mark.usefixtures("one_thread")

# The file of the new family


class ToyGenerator(nn.Module):
    def __init__(self, architecture):
        super().__init__()
        size = architecture.image_channels * architecture.image_size**2
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, architecture.latent_size), nn.Tanh())
        shape = architecture.image_channels, architecture.image_size, architecture.image_size
        self.decoder = nn.Sequential(nn.Linear(architecture.latent_size, size), nn.Tanh(), nn.Unflatten(1, shape))

    def forward(self, images):
        return self.decoder(self.encoder(images))

    def anomaly_score(self, images):
        return (images - self(images)).abs().amax((1, 2, 3))


@dataclass(frozen=True)
class ToyObjective:
    """A weighted L1 distance, then the discriminator on the difference of its logits."""

    w_l1: float = 3.0

    def __post_init__(self):
        check_weights(w_l1=self.w_l1)

    def train_step(self, state, images, weight_g, weight_d, step=0, k_l=None):
        outputs = state.forward(images)
        losses, loss_g = {}, 0.0
        if is_nonzero(weight_g):
            losses["toy_l1"] = state.reduce(l1(images, outputs["x_hat"]))
            loss_g = weight_g * self.w_l1 * losses["toy_l1"]
        if k_l is not None:
            loss_g = loss_g + k_l(outputs)
        if is_nonzero(weight_g) or k_l is not None:
            state.update("generator", loss_g)
        if is_nonzero(weight_d):
            real, fake = (state.gan.discriminator(side) for side in (images, outputs["x_hat"].detach()))
            losses["toy_d"] = state.reduce((softplus(-real) + softplus(fake)).squeeze(1))
            state.update("discriminator", weight_d * losses["toy_d"])
        return losses


def build_toy(architecture):
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(architecture.image_channels * architecture.image_size**2, 1))
    return Gan(ToyGenerator(architecture), {"z1": "encoder", "x_hat": "decoder"}, discriminator)


FAMILY = Family(build_toy, ToyObjective)

# And the line


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", FAMILY)


IMAGES = torch.randint(0, 256, (12, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_state(seed, latent_size=8, family="toy"):
    architecture = Architecture(family=family, channels=(1, 2), image_size=16, latent_size=latent_size)
    return TrainState(build(architecture, seed), objective=FAMILIES[family].objective())


def make_scheduler(structure, teacher="toy", epochs=6, seed=0):
    return ProgressiveScheduler(
        [Stage("x", STRUCTURES.get(structure, FROM_SCRATCH), epochs, 5e-3)],
        make_state(seed, latent_size=5),
        IMAGES,
        None if structure is None else make_state(10, family=teacher),
        settings=TrainingSettings(4, "constant"),
    )


def losses_per_epoch(scheduler, *engine):
    torch.manual_seed(0)  # connectors are drawn
    return [record.losses for _, record in train_schedulers([scheduler], *engine)]


def test_a_new_family_trains_by_its_own_losses():
    scheduler = make_scheduler(None)
    start = copy.deepcopy(scheduler.student.gan.discriminator.state_dict())
    losses = losses_per_epoch(scheduler)
    assert losses[-1].keys() == {"toy_l1", "toy_d"}
    assert losses[-1]["toy_l1"] < 0.97 * losses[0]["toy_l1"]
    after = scheduler.student.gan.discriminator.state_dict()
    assert not any(torch.equal(start[name], weight) for name, weight in after.items())


@pytest.mark.parametrize("teacher", ["toy", "ede"])
@pytest.mark.parametrize("structure", [1, 2, 3, 4])
def test_a_new_family_is_distilled_and_distils(structure, teacher):
    scheduler = make_scheduler(structure, teacher)
    losses = losses_per_epoch(scheduler)
    assert {"k1", "kx"} <= losses[-1].keys()
    assert ("toy_l1" in losses[-1]) == (structure in (2, 4))
    assert ("teacher_toy_l1" in losses[-1]) == (structure in (3, 4) and teacher == "toy")
    assert 50 * losses[-1]["k1"] + 10 * losses[-1]["kx"] < 50 * losses[0]["k1"] + 10 * losses[0]["kx"]
    assert list(scheduler.student.connectors.maps) == ["z1"]  # of 5 and 8 components


@pytest.mark.usefixtures("double")
def test_the_fast_engine_trains_a_new_family_too():
    fast, plain = (losses_per_epoch(make_scheduler(2), *engine) for engine in ((fast_engine,), ()))
    assert fast == [pytest.approx(losses) for losses in plain]


def test_a_new_family_that_cannot_be_stacked_is_refused_as_a_fleet():
    schedulers = [make_scheduler(None, seed=seed) for seed in range(2)]
    with pytest.raises(KdganError, match=r"every layer has a stacked form; found Linear.*--fleet 1"):
        list(train_schedulers(schedulers, fast_engine))


def test_a_new_family_is_scored():
    generator = make_state(0).gan.generator
    images = IMAGES / 127.5 - 1
    with torch.no_grad():
        expected = [float((image - generator(image[None])[0]).abs().max()) for image in images]
    assert anomaly_score(generator, images).tolist() == pytest.approx(expected)
    assert Scorer(generator)(images).tolist() == pytest.approx(expected)


def test_every_family_has_an_objective_with_default_weights():
    for name, family in FAMILIES.items():
        assert callable(family.objective().train_step), name


def test_an_unregistered_family_is_refused(monkeypatch):
    monkeypatch.delitem(FAMILIES, "toy")
    with pytest.raises(KdganError, match="family does not exist; got 'toy'"):
        build(Architecture(family="toy"))
