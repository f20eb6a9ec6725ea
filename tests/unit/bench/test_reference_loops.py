"""The bare loops that bench holds the engine against do the engine's work: the same weights after a cycle of steps."""

import copy

import pytest
import torch
from kdgan_compress.gans.objectives import OBJECTIVES

from kdgan_compress.bench import reference_loops as plain_loops
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import StageRun, TrainingSettings, begin_stage, run_stage
from kdgan_compress.gans import Architecture, build

IMAGES = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_gan(family, seed, channels):
    return build(Architecture(family=family, channels=channels, image_size=16, latent_size=8), seed)


def weights_of(gan):
    return {name: copy.deepcopy(network.state_dict()) for name, network in gan.networks().items()}


@pytest.fixture
def _still(monkeypatch):
    """No noise around μ and images in their own order: the loops draw both more or less often than the engine."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randperm", lambda number, generator=None: torch.arange(number))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_still")
@pytest.mark.parametrize(
    ("family", "structure"),
    [("cvgad", "alone"), ("ede", "alone"), ("ede", "1"), ("ede", "2"), ("ede", "3"), ("ede", "4")],
)
def test_engine_and_bare_loop_make_the_same_weights(family, structure):
    losses = FROM_SCRATCH if structure == "alone" else STRUCTURES[int(structure)]
    stage = Stage(structure, losses, epochs=1, learning_rate=4e-3, teacher_learning_rate=1e-3)
    gans = {}
    for path in ("engine", "plain"):
        student, teacher = make_gan(family, 1, (1, 2)), make_gan(family, 2, (2, 4))
        before = weights_of(student)
        torch.manual_seed(3)
        if path == "plain":
            plain_loops.plain_loop(family, stage, student, teacher, 4)(IMAGES)
        else:
            learner, master = (TrainState(gan, objective=OBJECTIVES[family]()) for gan in (student, teacher))
            begin_stage(StageRun(stage, 0, learner, master, IMAGES, Distillation(), TrainingSettings()))
            list(run_stage(StageRun(stage, 0, learner, master, IMAGES, Distillation(), TrainingSettings(batch_size=4))))
        gans[path] = student, teacher
        assert (
            weights_of(student)["generator"]["decoder.head.weight"].ne(before["generator"]["decoder.head.weight"]).all()
        )
    for ours, theirs in zip(gans["engine"], gans["plain"], strict=True):
        torch.testing.assert_close(weights_of(ours), weights_of(theirs), rtol=1e-3, atol=2e-5)


@pytest.mark.usefixtures("_still")
def test_cvgads_bare_loop_makes_the_engines_steps(monkeypatch):
    """As many of each network in each count of the cycle, so that both do equal work but for shared forward passes."""
    steps = {"engine": [], "plain": []}
    step, move = TrainState.step, plain_loops._Plain.move
    monkeypatch.setattr(TrainState, "step", lambda *a: (steps["engine"].append(a[1]), step(*a)))
    names = ["generator", "discriminator"]
    monkeypatch.setattr(plain_loops._Plain, "move", lambda *a: (steps["plain"].append(names[a[1]]), move(*a)))
    stage = Stage("alone", FROM_SCRATCH, epochs=1, learning_rate=4e-3)
    bare = plain_loops.plain_loop("cvgad", stage, make_gan("cvgad", 1, (1, 2)), make_gan("cvgad", 2, (1, 2)), 4)
    learner = TrainState(make_gan("cvgad", 1, (1, 2)), objective=OBJECTIVES["cvgad"]())
    run = StageRun(stage, 0, learner, None, IMAGES, Distillation(), TrainingSettings(batch_size=4))
    begin_stage(run)
    torch.manual_seed(3)
    list(run_stage(run))
    torch.manual_seed(3)
    bare(IMAGES)
    assert steps["engine"] == steps["plain"]
    assert steps["plain"].count("discriminator") == 5
    assert steps["plain"].count("generator") == 4 * 5 + 1  # negative training waits for nothing here


def test_the_bare_loop_runs_on_torchs_own_layers():
    student, teacher = make_gan("ede", 1, (1, 2)), make_gan("ede", 2, (2, 4))
    plain_loops.plain_loop("ede", Stage("2", STRUCTURES[2], 1, 1e-3), student, teacher, 4)
    kinds = {type(module) for gan in (student, teacher) for net in gan.networks().values() for module in net.modules()}
    assert {torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.InstanceNorm2d} <= kinds
    assert not any(kind.__module__.endswith("gans.layers") for kind in kinds)


def test_the_bare_loop_calls_the_discriminator_four_times_a_step():
    student, teacher = make_gan("ede", 1, (1, 2)), make_gan("ede", 2, (2, 4))
    calls = []
    student.discriminator.register_forward_hook(lambda *_: calls.append(1))
    plain_loops.plain_loop("ede", Stage("alone", FROM_SCRATCH, 1, 1e-3), student, teacher, 4)(IMAGES)
    assert len(calls) == 4 * len(IMAGES) // 4
