"""A rehearsal takes one step of each stage on copies and changes nothing."""

import copy

import pytest
import torch

from kdgan_compress.distillation.policies import STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.rehearsal import rehearse
from kdgan_compress.gans import Architecture, Gan, build
from kdgan_compress.gans.ede import GanomalyObjective

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.randint(0, 256, (12, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SETTINGS = TrainingSettings(batch_size=4)


class Counting(GanomalyObjective):
    """Counts its steps and the images in them, in the student and the teacher."""

    calls: list[int]

    def train_step(self, state, images, *args, **kwargs):
        self.calls.append(len(images))
        return super().train_step(state, images, *args, **kwargs)


def counting():
    objective = Counting()
    object.__setattr__(objective, "calls", [])
    return objective


def make_gan(seed, latent_size=4):
    return build(Architecture(channels=(1, 2), image_size=16, latent_size=latent_size), seed)


def make_scheduler(student, teacher, structures=(2, 3), objective=None):
    stages = [Stage(str(number), STRUCTURES[number], 3, 1e-3) for number in structures]
    states = [TrainState(gan, objective=objective) for gan in (student, teacher)]
    return ProgressiveScheduler(stages, states[0], IMAGES, states[1], settings=SETTINGS)


def test_it_takes_one_step_of_each_stage_and_changes_nothing():
    student, teacher, objective = make_gan(0), make_gan(1, latent_size=6), counting()
    before = [copy.deepcopy(network.state_dict()) for gan in (student, teacher) for network in gan.networks().values()]
    scheduler, random_state = make_scheduler(student, teacher, objective=objective), torch.get_rng_state()
    rehearse(scheduler, SETTINGS, "mine:build")
    assert objective.calls == [4, 4, 4]  # the student in 2, teacher and student in 3
    after = [network.state_dict() for gan in (student, teacher) for network in gan.networks().values()]
    for first, second in zip(before, after, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert scheduler.position == (0, 0)
    assert scheduler.student.connectors is None
    assert scheduler.student.optimizers == {}
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_exception_of_the_users_code_becomes_one_line():
    student = make_gan(0)
    student.discriminator.register_forward_hook(lambda *_: {}["features"])
    with pytest.raises(
        KdganError, match=r"step of mine:build failed; KeyError: 'features' \(.*test_rehearsal\.py, line"
    ):
        rehearse(make_scheduler(student, make_gan(1)), SETTINGS, "mine:build")


def test_a_tap_that_fires_twice_is_refused():
    gan = make_gan(0)
    gan.generator.register_forward_hook(lambda module, inputs, _: module.encoder(*inputs))
    with pytest.raises(KdganError, match="did not fire exactly once"):
        rehearse(make_scheduler(gan, make_gan(1)), SETTINGS, "mine:build")


@pytest.mark.parametrize("structure", [2, 4])
def test_a_student_without_a_discriminator_learns_by_structures_1_and_3_only(structure):
    student = Gan(make_gan(0).generator, make_gan(0).taps)
    rehearse(make_scheduler(student, make_gan(1), (structure - 1,)), SETTINGS, "mine:build")
    with pytest.raises(KdganError, match=r"needs a discriminator; found none.*structure 1"):
        rehearse(make_scheduler(student, make_gan(1), (structure,)), SETTINGS, "mine:build")


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_frozen_parameters_are_refused_where_they_would_be_trained(network):
    student, teacher = make_gan(0), make_gan(1)
    next(teacher.networks()[network].parameters()).requires_grad_(False)
    rehearse(make_scheduler(student, teacher, (2,)), SETTINGS, "mine:build")
    with pytest.raises(KdganError, match=f"a {network} that is trained needs .*1 do not, such as encoder"):
        rehearse(make_scheduler(student, teacher, (3,)), SETTINGS, "mine:build")
