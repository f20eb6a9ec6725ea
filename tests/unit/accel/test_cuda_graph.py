"""A captured step on a CPU, where a capture is a function that calls: its inputs and outputs, and trainings by it."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from kdgan_compress.accel.cuda_graph import NUM_WARMUP_CALLS, CUDAGraphStep
from kdgan_compress.accel.engine import FleetEngine, supports_cuda_graph
from kdgan_compress.accel.fleet import FleetState
from kdgan_compress.accel.teacher_cache import TeacherCache
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.step import train_step
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import Engine, train_schedulers
from kdgan_compress.gans import Architecture, build
from kdgan_compress.gans.cvgad import CvgadObjective

pytestmark = pytest.mark.usefixtures("one_thread")


def make_capture(made):
    """Like a CUDA graph, a capture reads and writes the same tensors at every replay."""

    def capture(function):
        made.append(function)
        outputs = {}

        def replay():
            for name, output in function().items():
                outputs.setdefault(name, torch.empty_like(output)).copy_(output.detach())

        return outputs, replay

    return capture


def test_a_step_is_captured_once_and_returns_what_it_would_return():
    seen, made = [], []
    models = SimpleNamespace(total=torch.zeros(2, dtype=torch.int64))

    def function(models, indices, step):
        seen.append(indices.data_ptr())
        models.total.add_(indices)
        return {"double": 2 * indices, "total": models.total}

    step = CUDAGraphStep(function, make_capture(made))
    inputs = [torch.full((2,), i) for i in range(8)]
    outputs = [step(models, indices, i) for i, indices in enumerate(inputs)]
    for i, indices in enumerate(inputs):
        assert torch.equal(outputs[i]["double"], 2 * indices)  # no later call overwrites what an earlier one returned
        assert indices[0] == i
    assert torch.equal(models.total, torch.full((2,), sum(range(8))))
    assert [int(output["total"][0]) for output in outputs[NUM_WARMUP_CALLS:]] == [6, 10, 15, 21, 28]
    assert len(made) == 1
    assert len(set(seen[NUM_WARMUP_CALLS:])) == 1  # always the same tensor, which is not one of the inputs
    assert seen[NUM_WARMUP_CALLS] not in [indices.data_ptr() for indices in inputs]


def test_the_losses_of_a_step_keep_no_autograd_graph():
    """A graph that outlives its call would have the next call accumulate gradients on another stream."""
    weight = torch.ones(2, requires_grad=True)
    step = CUDAGraphStep(lambda models, indices, number: {"loss": (weight * indices).sum()}, make_capture([]))
    outputs = [step(SimpleNamespace(), torch.ones(2), number) for number in range(NUM_WARMUP_CALLS + 2)]
    assert not any(output["loss"].requires_grad for output in outputs)


def make_state(channels, seed, norm="instance", **state):
    return TrainState(build(Architecture(channels=channels, image_size=16, latent_size=8, norm=norm), seed), **state)


def make_schedulers(structure, members, norms=("instance", "instance"), cached=False, sizes=(11, 7, 10)):
    for member in range(members):
        images = torch.randint(
            0, 256, (sizes[member], 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(member)
        )
        rows = torch.rand(sizes[member], 272, generator=torch.Generator().manual_seed(member), dtype=torch.float32)
        scheduler = ProgressiveScheduler(
            [Stage("x", STRUCTURES.get(structure, FROM_SCRATCH), 3 + member, 1e-3 * (1 + member), 2e-4)],
            make_state((1, 2), member, norms[0]),
            images,
            None if structure == "from-scratch" else make_state((2, 4), 10 + member, norms[1]),
            DistillationLoss(w1=10.0 + member),
            TrainingSettings(3 if member < 2 else 4, seed=member),
        )
        if cached:
            scheduler.use_targets(TeacherCache(rows, {"z1": (8,), "x_hat": (1, 16, 16), "z2": (8,)}))
        yield scheduler


def capturing(made):
    """An engine that captures on a CPU what would be captured on a GPU."""

    class CapturingEngine(FleetEngine):
        def __init__(self, runs, stack):
            super().__init__(runs, stack)
            states = [state for state in (self._student, self._teacher) if state is not None]
            self._is_captured = all(map(supports_cuda_graph, runs)) and all(s.steps_synchronized for s in states)
            if self._is_captured:
                self.train_step = CUDAGraphStep(train_step, make_capture(made))

    return CapturingEngine


def trained(schedulers, *engine):
    """Losses, networks and moments of all models, trained together by an engine or one by one by the plain one."""
    schedulers = list(schedulers)
    groups = [schedulers] if engine else [[scheduler] for scheduler in schedulers]
    records = [[] for _ in schedulers]
    for offset, group in enumerate(groups):
        for member, record in train_schedulers(group, *(engine or (Engine,))):
            records[offset + member].append((record.num_images, record.losses))
    states = [s.state_dict() for each in schedulers for s in (each.student, each.teacher) if s is not None]
    tensors = [(s["networks"], [optimizer["state"] for optimizer in s["optimizers"].values()]) for s in states]
    return records, tensors


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("structure", "members", "cached"),
    [
        ("from-scratch", 1, False),
        (1, 1, True),
        (2, 1, False),
        (4, 1, False),
        (3, 2, False),
        (4, 3, False),
        (2, 3, True),
    ],
)
def test_captured_or_not_a_training_is_the_same(structure, members, cached):
    made = []
    captured = trained(make_schedulers(structure, members, cached=cached), capturing(made))
    assert made
    expected = trained(make_schedulers(structure, members, cached=cached))
    torch.testing.assert_close(captured, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("norms", "structure", "is_captured"),
    [
        (("batch", "instance"), "from-scratch", False),
        (("batch", "batch"), 1, False),
        (("batch", "batch"), 4, False),
        (("instance", "batch"), 1, True),  # frozen, in evaluation mode
        (("instance", "batch"), 2, True),
        (("instance", "batch"), 3, False),
    ],
    ids=str,
)
def test_padding_of_a_captured_batch_never_reaches_batch_norm(norms, structure, is_captured):
    made = []
    captured = trained(make_schedulers(structure, 1, norms), capturing(made))  # 11 images in batches of 3
    assert bool(made) == is_captured
    torch.testing.assert_close(captured, trained(make_schedulers(structure, 1, norms)), rtol=1e-7, atol=1e-10)


def begun(structure=2, student=None):
    (scheduler,) = make_schedulers(structure, 1)
    scheduler.student = student or scheduler.student
    run = scheduler.stage_run(0)
    run.begin()
    return run


def test_a_step_that_reads_on_the_host_or_has_connectors_is_not_captured():
    assert supports_cuda_graph(begun())
    assert not supports_cuda_graph(begun(student=make_state((1, 2), 0, objective=CvgadObjective())))
    assert not supports_cuda_graph(begun(student=make_state((1, 2), 0, objective=object())))
    assert not supports_cuda_graph(begun(student=make_state((1, 2), 0, "batch")))
    narrow = build(Architecture(channels=(1, 2), image_size=16, latent_size=5))
    assert not supports_cuda_graph(begun(student=TrainState(narrow)))


def test_a_trained_teacher_counts_and_a_frozen_one_does_not():
    for structure, expected in ((2, True), (4, False)):
        run = begun(structure)
        run.teacher.objective = CvgadObjective()
        assert supports_cuda_graph(run) is expected


def test_networks_that_cannot_be_stacked_are_not_captured():
    cvgad = build(Architecture(family="cvgad", channels=(2, 4), image_size=16, latent_size=8, num_clusters=2))
    users = make_state((1, 2), 0)
    users.gan.discriminator.encoder.features[2] = torch.nn.PReLU()
    assert not supports_cuda_graph(begun(student=users))
    run = begun()
    assert not supports_cuda_graph(dataclasses.replace(run, teacher=TrainState(cvgad)))
    cache = TeacherCache(torch.zeros(11, 272), {"z1": (8,), "x_hat": (1, 16, 16), "z2": (8,)})
    assert supports_cuda_graph(dataclasses.replace(run, teacher=TrainState(cvgad), targets=cache))
    assert not supports_cuda_graph(dataclasses.replace(run, targets=lambda images, indices: cache(images, indices)))


def test_members_with_different_step_counts_are_not_captured():
    states = [make_state((1, 2), seed) for seed in range(2)]
    for steps, state in enumerate(states):
        state.begin_stage(("generator",))
        for _ in range(steps):
            state.update("generator", state.gan.generator(torch.zeros(1, 1, 16, 16))[1].sum())
    assert all(FleetState([state]).steps_synchronized for state in states)
    assert not FleetState(states).steps_synchronized
