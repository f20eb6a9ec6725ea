"""A captured step on a CPU, where a recording is a function that calls: its inputs and outputs, and trainings by it."""

import pytest
import torch
from kdgan_compress.gans.cvgad_objective import CvgadObjective

from kdgan_compress.accel import cuda_graph as capture
from kdgan_compress.accel.cuda_graph import WARM_UP, CapturedStep
from kdgan_compress.accel.teacher_cache import TeacherCache
from kdgan_compress.distillation import trainer as engine
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import Schedule, run_together
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import TrainingSettings
from kdgan_compress.gans import Architecture, build

pytestmark = pytest.mark.usefixtures("one_thread")


def make_recorder(made):
    """Like a CUDA graph, a recording reads and writes the same tensors at every call."""

    def record(function):
        made.append(function)
        outputs = {}

        def replay():
            for name, output in function().items():
                outputs.setdefault(name, torch.empty_like(output)).copy_(output.detach())

        return outputs, replay

    return record


def test_a_captured_function_is_recorded_once_and_gives_what_it_would_give():
    seen, made, total = [], [], torch.zeros(2)

    def function(a, b):
        seen.append((a.data_ptr(), b.data_ptr()))
        total.add_(a)
        return {"sum": a + b, "total": total}

    step = CapturedStep(function, make_recorder(made))
    inputs = [(torch.full((2,), float(i)), torch.full((2,), 10.0 * i)) for i in range(8)]
    outputs = [step(*own) for own in inputs]
    for i, (a, b) in enumerate(inputs):
        assert torch.equal(outputs[i]["sum"], a + b)  # no later call writes over what an earlier one gave
        assert (a[0], b[0]) == (i, 10 * i)
    assert torch.equal(total, torch.full((2,), float(sum(range(8)))))
    assert [float(own["total"][0]) for own in outputs[WARM_UP:]] == [6, 10, 15, 21, 28]
    assert len(made) == 1
    assert len(set(seen[WARM_UP:])) == 1  # its own tensors, always the same
    assert seen[WARM_UP] not in [(a.data_ptr(), b.data_ptr()) for a, b in inputs]


def make_learner(channels, seed, norm="instance", **learner):
    return TrainState(build(Architecture(channels=channels, image_size=16, latent_size=8, norm=norm), seed), **learner)


def make_schedules(structure, members, norm="instance", cached=False, sizes=(11, 7, 10)):
    for member in range(members):
        images = torch.randint(
            0, 256, (sizes[member], 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(member)
        )
        rows = torch.rand(sizes[member], 272, generator=torch.Generator().manual_seed(member), dtype=torch.float32)
        yield Schedule(
            [Stage("x", STRUCTURES.get(structure, FROM_SCRATCH), 3 + member, 1e-3 * (1 + member), 2e-4)],
            make_learner((1, 2), member, norm),
            images,
            None if structure == "alone" else make_learner((2, 4), 10 + member, norm),
            Distillation(w1=10.0 + member),
            TrainingSettings(3 if member < 2 else 4, seed=member),
            TeacherCache(rows, {"z1": (8,), "x_hat": (1, 16, 16), "z2": (8,)}) if cached else None,
        )


def trained(schedules):
    schedules = list(schedules)
    losses = [(member, record.num_images, record.losses) for member, record in run_together(schedules)]
    states = [each.student.state_dict() for each in schedules]
    return losses, states, [each.teacher and each.teacher.state_dict() for each in schedules]


@pytest.fixture
def capturing(monkeypatch):
    """Captures on a CPU what would be captured on a GPU; the recordings made."""
    made, original = [], engine.can_be_captured
    monkeypatch.setattr(capture, "record_cuda_graph", make_recorder(made))

    def switch(on):
        cuda = torch.device("cuda" if on else "cpu")
        monkeypatch.setattr(engine, "can_be_captured", lambda _, *others: original(cuda, *others))
        return made

    return switch


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("structure", "members", "cached"),
    [("alone", 1, False), (1, 1, True), (2, 1, False), (4, 1, False), (3, 2, False), (4, 3, False), (2, 3, True)],
)
def test_captured_or_not_a_training_is_the_same(capturing, structure, members, cached):
    capturing(False)
    expected = trained(make_schedules(structure, members, cached=cached))
    made = capturing(True)
    ours = trained(make_schedules(structure, members, cached=cached))
    assert made
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("structure", ["alone", 1, 4])
def test_batch_norm_sees_no_image_that_only_fills_a_captured_batch_up(capturing, structure):
    capturing(False)
    expected = trained(make_schedules(structure, 1, "batch"))
    capturing(True)
    torch.testing.assert_close(
        trained(make_schedules(structure, 1, "batch")), expected, rtol=1e-7, atol=1e-10
    )  # 11 images in batches of 3


def test_what_reads_on_the_host_is_not_captured():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    capturable, cvgad, users = (
        make_learner((1, 2), 0, objective=objective) for objective in (None, CvgadObjective(), object())
    )
    assert engine.can_be_captured(cuda, [capturable])
    assert not engine.can_be_captured(cpu, [capturable])
    assert not engine.can_be_captured(cuda, [capturable, cvgad])
    assert not engine.can_be_captured(cuda, [users])


def test_members_that_are_out_of_step_are_not_captured():
    learners = [make_learner((1, 2), seed) for seed in range(2)]
    for steps, learner in enumerate(learners):
        learner.begin_stage(("generator",))
        for _ in range(steps):
            learner.step("generator", learner.gan.generator(torch.zeros(1, 1, 16, 16))[1].sum(), 1e-3)
    assert all(engine.can_be_captured(torch.device("cuda"), [learner]) for learner in learners)
    assert not engine.can_be_captured(torch.device("cuda"), [TrainState.stack(learners)])
