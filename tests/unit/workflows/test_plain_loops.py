"""The bare loops that bench holds the engine against do the engine's work: the same weights after a cycle of steps."""

import copy

import pytest
import torch

from kdgan_compress.gans import Architecture, build
from kdgan_compress.objectives import OBJECTIVES, Distillation
from kdgan_compress.policies import ALONE, STRUCTURES, Stage
from kdgan_compress.training import Learner, StageRun, TrainingSettings, begin_stage, run_stage
from kdgan_compress.workflows import bench, plain_loops

IMAGES = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_gan(family, seed, channels):
    return build(Architecture(family=family, channels=channels, image_size=16, latent_size=8), seed)


def weights_of(gan):
    return {name: copy.deepcopy(network.state_dict()) for name, network in gan.modules().items()}


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
    losses = ALONE if structure == "alone" else STRUCTURES[int(structure)]
    stage = Stage(structure, losses, epochs=1, learning_rate=4e-3, teacher_learning_rate=1e-3)
    gans = {}
    for path in ("engine", "plain"):
        student, teacher = make_gan(family, 1, (1, 2)), make_gan(family, 2, (2, 4))
        before = weights_of(student)
        torch.manual_seed(3)
        if path == "plain":
            plain_loops.plain_loop(family, stage, student, teacher, 4)(IMAGES)
        else:
            learner, master = (Learner(gan, objective=OBJECTIVES[family]()) for gan in (student, teacher))
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
    step, move = Learner.step, plain_loops._Plain.move
    monkeypatch.setattr(Learner, "step", lambda *a: (steps["engine"].append(a[1]), step(*a)))
    names = ["generator", "discriminator"]
    monkeypatch.setattr(plain_loops._Plain, "move", lambda *a: (steps["plain"].append(names[a[1]]), move(*a)))
    stage = Stage("alone", ALONE, epochs=1, learning_rate=4e-3)
    engine = bench._engine("cvgad", stage, make_gan("cvgad", 1, (1, 2)), make_gan("cvgad", 2, (1, 2)), 4)
    bare = plain_loops.plain_loop("cvgad", stage, make_gan("cvgad", 1, (1, 2)), make_gan("cvgad", 2, (1, 2)), 4)
    for run in (engine, bare):
        torch.manual_seed(3)
        run(IMAGES)
    assert steps["engine"] == steps["plain"]
    assert steps["plain"].count("discriminator") == 5
    assert steps["plain"].count("generator") == 4 * 5 + 1  # negative training waits for nothing here


def test_bench_reports_both_paths_of_each_case(monkeypatch):
    cases = (("ede", "3", (1, 2, 4), 2), ("cvgad", "alone", (1, 2, 4), 2))
    monkeypatch.setattr(bench, "TEACHER", (1, 2, 4))
    monkeypatch.setattr(bench, "CASES", cases)
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "SECONDS_A_ROUND", 1e-3)
    threads, announced = torch.get_num_threads(), []
    report = bench.bench(announced.append)
    assert torch.get_num_threads() == threads
    assert report.rows == announced
    assert [(row.family, row.structure, row.path) for row in report.rows] == [
        ("ede", "3", "plain"), ("ede", "3", "engine"), ("cvgad", "alone", "plain"), ("cvgad", "alone", "engine"),
    ]  # fmt: skip
    for row in report.rows:
        assert 0 < row.us_per_image.min <= row.us_per_image.median <= row.us_per_image.max
        assert (row.work, row.channels, row.batch, row.fleet) == ("train", "1-2-4", 2, 1)
        assert (row.speedup == 1) == (row.path == "plain")
