"""What only a CUDA GPU can show: the step recorded as a graph is the step made call by call, and the CPU's."""

import dataclasses

import pytest
import torch

from kdgan_compress.distillation import trainer as engine
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import Schedule, run_together
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import TrainingSettings
from kdgan_compress.gans import Architecture, build, to_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("one_thread"),
]

STUDENT = Architecture(channels=(2, 4), image_size=16, latent_size=8)
TEACHER = dataclasses.replace(STUDENT, channels=(4, 8))
SIZES = (21, 13, 30)
CHAINS = [("alone",), (1,), (2,), (3,), (4,), (2, 3)]


def make_schedule(chain, member, device, precision="float32"):
    """Eight images a step, so that every epoch ends with a smaller one."""
    losses = [FROM_SCRATCH if structure == "alone" else STRUCTURES[structure] for structure in chain]
    stages = [Stage(str(name), own, 3, 1e-3 * (1 + member), 2e-4) for name, own in zip(chain, losses, strict=True)]
    images = torch.randint(0, 256, (SIZES[member], 1, 16, 16), generator=torch.Generator().manual_seed(member))
    return Schedule(
        stages,
        TrainState(to_device(build(STUDENT, member), device)),
        images.to(torch.uint8).to(device),
        TrainState(to_device(build(TEACHER, 10 + member), device)),
        Distillation(),
        TrainingSettings(8, seed=member, precision=precision),
    )


def train(chain, members, device, **settings):
    schedules = [make_schedule(chain, member, device, **settings) for member in range(members)]
    records = [record for _, record in run_together(schedules)]
    weights = [
        parameter.detach().cpu()
        for schedule in schedules
        for learner in (schedule.student, schedule.teacher)
        for network in (*learner.gan.networks().values(), learner.ema_generator)
        for parameter in network.parameters()
    ]
    return weights, [record.losses for record in records]


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_recorded_step_is_the_step_call_by_call(chain, members, monkeypatch):
    recorded = train(chain, members, "cuda")
    monkeypatch.setattr(engine, "can_be_captured", lambda device, learners: False)
    torch.testing.assert_close(recorded, train(chain, members, "cuda"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_gpu_trains_what_a_cpu_trains(chain, members):
    torch.testing.assert_close(train(chain, members, "cuda"), train(chain, members, "cpu"), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_coarser_products_still_train(precision):
    weights, losses = train((2,), 3, "cuda", precision=precision)
    assert all(weight.isfinite().all() for weight in weights)
    assert losses[-1]["k1"] < 10
