"""The reference loops of the benchmark do the same work as the engine: equal weights after a cycle of steps."""

import copy

import pytest
import torch

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.accel.optimizers import FusedAdam
from kdgan_compress.bench.reference_loops import ReferenceTrainer, reference_loop
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import StageRun, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import StageProgress, train_stage
from kdgan_compress.gans import FAMILIES, Architecture, build

IMAGES = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_gan(family, seed, channels):
    return build(Architecture(family=family, channels=channels, image_size=16, latent_size=8), seed)


def weights_of(gan):
    return {name: copy.deepcopy(network.state_dict()) for name, network in gan.networks().items()}


def run_engine(family, stage, student, teacher=None):
    """One stage with the engine that the benchmark measures."""
    student, teacher = (
        None if gan is None else TrainState(gan, objective=FAMILIES[family].objective(), make_optimizer=FusedAdam)
        for gan in (student, teacher)
    )
    run = StageRun(stage, 0, student, teacher, IMAGES, DistillationLoss(), TrainingSettings(batch_size=4))
    run.begin()
    list(train_stage([StageProgress(run)], fast_engine))


@pytest.fixture
def _no_randomness(monkeypatch):
    """No noise around μ and images in order, since the loops draw other random numbers than the engine."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randperm", lambda number, generator=None: torch.arange(number))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_no_randomness")
@pytest.mark.parametrize(
    ("family", "structure"),
    [("cvgad", "scratch"), ("ede", "scratch"), ("ede", "1"), ("ede", "2"), ("ede", "3"), ("ede", "4")],
)
def test_engine_and_reference_loop_give_the_same_weights(family, structure):
    losses = FROM_SCRATCH if structure == "scratch" else STRUCTURES[int(structure)]
    stage = Stage(structure, losses, epochs=1, learning_rate=4e-3, teacher_learning_rate=1e-3)
    gans = {}
    for path in ("engine", "plain"):
        student, teacher = make_gan(family, 1, (1, 2)), make_gan(family, 2, (2, 4))
        before = weights_of(student)
        torch.manual_seed(3)
        if path == "plain":
            reference_loop(family, stage, student, teacher, 4)(IMAGES)
        else:
            run_engine(family, stage, student, teacher)
        gans[path] = student, teacher
        assert (
            weights_of(student)["generator"]["decoder.head.weight"].ne(before["generator"]["decoder.head.weight"]).all()
        )
    for actual, expected in zip(gans["engine"], gans["plain"], strict=True):
        torch.testing.assert_close(weights_of(actual), weights_of(expected), rtol=1e-3, atol=2e-5)


@pytest.mark.usefixtures("_no_randomness")
def test_the_reference_loop_of_cvgad_makes_the_engines_steps(monkeypatch):
    """The same updates of the same networks, so that both do equal work except for shared forward passes."""
    steps = {"engine": [], "plain": []}
    update, reference_update = TrainState.update, ReferenceTrainer.update
    names = ["generator", "discriminator"]
    monkeypatch.setattr(TrainState, "update", lambda *a, **k: (steps["engine"].append(a[1]), update(*a, **k)))
    monkeypatch.setattr(
        ReferenceTrainer, "update", lambda *a: (steps["plain"].append(names[a[1]]), reference_update(*a))
    )
    stage = Stage("scratch", FROM_SCRATCH, epochs=1, learning_rate=4e-3)
    loop = reference_loop("cvgad", stage, make_gan("cvgad", 1, (1, 2)), make_gan("cvgad", 2, (1, 2)), 4)
    torch.manual_seed(3)
    run_engine("cvgad", stage, make_gan("cvgad", 1, (1, 2)))
    torch.manual_seed(3)
    loop(IMAGES)
    assert steps["engine"] == steps["plain"]
    assert steps["plain"].count("discriminator") == 5
    assert steps["plain"].count("generator") == 4 * 5 + 1  # negative training runs from the first step here


def test_the_reference_loop_runs_on_torchs_layers():
    student, teacher = make_gan("ede", 1, (1, 2)), make_gan("ede", 2, (2, 4))
    reference_loop("ede", Stage("2", STRUCTURES[2], 1, 1e-3), student, teacher, 4)(IMAGES)
    kinds = {type(module) for gan in (student, teacher) for net in gan.networks().values() for module in net.modules()}
    assert {torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.InstanceNorm2d} <= kinds
    assert not any(kind.__module__.endswith("accel.layers") for kind in kinds)


def test_the_reference_loop_calls_the_discriminator_four_times_per_step():
    student, teacher = make_gan("ede", 1, (1, 2)), make_gan("ede", 2, (2, 4))
    calls = []
    student.discriminator.register_forward_hook(lambda *_: calls.append(1))
    reference_loop("ede", Stage("scratch", FROM_SCRATCH, 1, 1e-3), student, teacher, 4)(IMAGES)
    assert len(calls) == 4 * len(IMAGES) // 4
