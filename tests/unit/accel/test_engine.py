"""The fast engine for one model against the plain one."""

import functools
from contextlib import ExitStack

import pytest
import torch
from torch import nn

from kdgan_compress.accel import layers
from kdgan_compress.accel.engine import FleetEngine, fast_engine
from kdgan_compress.accel.optimizers import FusedAdam
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import Engine, train_schedulers
from kdgan_compress.gans import FAMILIES, Architecture, build

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.randint(0, 256, (11, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TORCH_ADAM, TORCH_FUSED_ADAM = torch.optim.Adam, functools.partial(torch.optim.Adam, fused=True)


def make_state(channels, seed, latent=8, norm="instance", family="ede", make_optimizer=TORCH_ADAM):
    architecture = Architecture(family=family, channels=channels, image_size=16, latent_size=latent, norm=norm)
    return TrainState(build(architecture, seed), objective=FAMILIES[family].objective(), make_optimizer=make_optimizer)


def make_scheduler(chain, make_optimizer=TORCH_ADAM, **student):
    stages = [Stage(str(name), STRUCTURES.get(name, FROM_SCRATCH), 4, 2e-3, 5e-4) for name in chain]
    states = (
        make_state((1, 2), 1, make_optimizer=make_optimizer, **student),
        make_state((2, 4), 2, make_optimizer=make_optimizer),
    )
    k_l = DistillationLoss(re_encode=True)
    return ProgressiveScheduler(stages, states[0], IMAGES, states[1], k_l, TrainingSettings(4))


def trained(scheduler, engine):
    """Losses, networks and moments; random numbers start from one seed."""
    torch.manual_seed(0)
    losses = [record.losses for _, record in train_schedulers([scheduler], engine)]
    states = [state.state_dict() for state in (scheduler.student, scheduler.teacher)]
    moments = [[optimizer["state"] for optimizer in state["optimizers"].values()] for state in states]
    return losses, [state["networks"] for state in states], moments


def assert_near(fast, plain):
    # Fused optimisers count steps in float32.
    torch.testing.assert_close(fast, plain, rtol=1e-6, atol=1e-9, check_dtype=False)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("make_optimizer", [TORCH_ADAM, TORCH_FUSED_ADAM], ids=["Adam", "Adam, fused"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("chain", [(1,), (2,), (3,), (4,), ("from-scratch",), (2, 3)], ids=str)
def test_one_model_by_the_fast_engine_equals_the_plain_one_with_torchs_adam(chain, norm, make_optimizer):
    fast = trained(make_scheduler(chain, FusedAdam, norm=norm), fast_engine)
    plain = trained(make_scheduler(chain, make_optimizer, norm=norm), Engine)
    assert_near(fast, plain)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("student", [{"family": "cvgad"}, {"family": "ed"}, {"latent": 5}], ids=str)
def test_other_families_and_connectors_are_the_same_too(student):
    fast = trained(make_scheduler((2,), FusedAdam, **student), fast_engine)
    assert_near(fast, trained(make_scheduler((2,), **student), Engine))


def layer_types(state):
    return [type(module) for network in state.gan.networks().values() for module in network.modules()]


@pytest.mark.parametrize("how", ["finished", "interrupted"])
def test_fast_layers_are_used_in_a_stage_and_swapped_back_after_it(how):
    scheduler = make_scheduler((2, 3))
    states = scheduler.student, scheduler.teacher
    before = [layer_types(state) for state in states]
    running = train_schedulers([scheduler], fast_engine)
    next(running)
    for state, types in zip(states, before, strict=True):
        assert {layers.Conv2d, layers.ConvTranspose2d, layers.InstanceNorm2d} <= set(layer_types(state))
        assert layer_types(state) == [layers.FAST_LAYERS.get(kind, kind) for kind in types]
    if how == "finished":
        list(running)
    else:
        running.close()
    assert [layer_types(state) for state in states] == before
    assert {type(module) for module in scheduler.student.ema_generator.modules()}.isdisjoint(
        layers.FAST_LAYERS.values()
    )


def test_one_model_on_a_cpu_has_the_plain_engine_and_several_have_a_fleet():
    schedulers = [make_scheduler(("from-scratch",)) for _ in range(2)]
    runs = [scheduler.begin_stage() for scheduler in schedulers]
    with ExitStack() as stack:
        assert type(fast_engine(runs[:1], stack)) is Engine
    with ExitStack() as stack:
        assert type(fast_engine(runs, stack)) is FleetEngine


@pytest.mark.parametrize("make_optimizer", [TORCH_ADAM, FusedAdam])
def test_the_optimiser_of_one_model_is_torchs(make_optimizer):
    scheduler = make_scheduler((4,), make_optimizer)
    list(train_schedulers([scheduler], fast_engine))
    for state in (scheduler.student, scheduler.teacher):
        assert set(state.optimizers) == {"generator", "discriminator"}
        for name, optimizer in state.optimizers.items():
            assert isinstance(optimizer, torch.optim.Optimizer)
            assert optimizer.param_groups[0]["params"] == list(state.gan.networks()[name].parameters())
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)  # as torch's tools take it
            optimizer.step()
            schedule.step()
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * optimizer.param_groups[0]["initial_lr"])


@pytest.mark.usefixtures("double")
def test_layers_without_a_fast_form_are_trained_as_they_are():
    results = []
    for make_optimizer, engine in ((FusedAdam, fast_engine), (TORCH_ADAM, Engine)):
        scheduler = make_scheduler((1,), make_optimizer)
        features = scheduler.student.gan.generator.encoder.features
        torch.manual_seed(4)
        features[0] = nn.Conv2d(1, 1, 4, 2, 1, bias=False, padding_mode="reflect")
        results.append(trained(scheduler, engine))
        assert type(features[0]) is nn.Conv2d
    assert_near(*results)
