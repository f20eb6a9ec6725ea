"""Teacher of 32×32 images, student of 16×16: who sees which images, and what K_l compares."""

import pytest
import torch
from torch.nn.functional import interpolate

from kdgan_compress.distillation.hooks import Connectors, FeatureHooks
from kdgan_compress.distillation.policies import STRUCTURES, Stage
from kdgan_compress.distillation.resizing import ResizedObjective, accept_larger_images, resize_batch
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import train_schedulers
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Architecture, build, normalize_images
from kdgan_compress.gans.ede import GanomalyObjective

pytestmark = pytest.mark.usefixtures("one_thread")


def pair():
    teacher = build(Architecture(channels=(2, 4, 8), latent_size=8))
    student = build(Architecture(channels=(2, 4), image_size=16, latent_size=8), seed=1)
    accept_larger_images(student, 16)
    return teacher, student


def pixels(number):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (number, 1, 32, 32), dtype=torch.uint8, generator=generator)


def test_images_are_resized_as_in_the_detector_and_others_stay():
    images = torch.rand(2, 1, 32, 32)
    expected = interpolate(images, (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(resize_batch(images, 16), expected)
    assert resize_batch(images, 32) is images


def test_the_student_sees_the_resized_image():
    _, student = pair()
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    resized = interpolate(images, (16, 16), mode="bilinear", antialias=True)
    with FeatureHooks(student.generator, student.taps) as hooks, torch.no_grad():
        large, small = hooks(images), hooks(resized)
    assert large["x_hat"].shape == (2, 1, 16, 16)
    assert all(torch.equal(large[name], small[name]) for name in large)


def test_only_the_reconstruction_is_enlarged():
    student = {"x_hat": torch.rand(2, 1, 16, 16), "z1": torch.rand(2, 8)}
    connectors = Connectors(student, {"x_hat": torch.rand(2, 1, 32, 32), "z1": torch.rand(2, 8)})
    assert not list(connectors.parameters())
    expected = interpolate(student["x_hat"], (32, 32), mode="bilinear")
    assert torch.equal(connectors(student)["x_hat"], expected)
    with pytest.raises(KdganError, match="more than the channels"):
        Connectors({"f": torch.rand(2, 1, 16, 16)}, {"f": torch.rand(2, 1, 32, 32)})


@pytest.mark.parametrize("structure", [1, 2, 3, 4])
def test_a_step_computes_the_losses_at_their_sizes(structure):
    """The first step's losses, before any weight changes, against the networks called by hand."""
    (teacher, student), images = pair(), pixels(4)
    large = normalize_images(images)
    small = interpolate(large, (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        _, teacher_x, _ = teacher.generator(large)
        _, student_x, _ = student.generator(small)
    enlarged = interpolate(student_x, (32, 32), mode="bilinear")
    scheduler = ProgressiveScheduler(
        stages=[Stage("s", STRUCTURES[structure], epochs=1, learning_rate=0.0, teacher_learning_rate=0.0)],
        student=TrainState(student, objective=ResizedObjective(GanomalyObjective(), 16)),
        images=images,
        teacher=TrainState(teacher),
        settings=TrainingSettings(batch_size=4),
    )
    ((_, record),) = list(train_schedulers([scheduler]))
    assert record.losses["kx"] == pytest.approx(float((teacher_x - enlarged).abs().mean()), rel=1e-5)
    if structure in (2, 4):
        assert record.losses["s_con"] == pytest.approx(float((small - student_x).abs().mean()), rel=1e-5)
    if structure in (3, 4):
        assert record.losses["teacher_s_con"] == pytest.approx(float((large - teacher_x).abs().mean()), rel=1e-5)
