"""What only a CUDA GPU can show: the step captured as a graph is the step made call by call, and the CPU's."""

import dataclasses

import pytest
import torch

from kdgan_compress.accel import engine
from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.accel.optimizers import FusedAdam
from kdgan_compress.accel.teacher_cache import TeacherCache, cache_shapes, teacher_rows
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.terms import Term
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import Engine, train_schedulers
from kdgan_compress.gans import Architecture, build, to_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.usefixtures("one_thread"),
]

STUDENT = Architecture(channels=(2, 4), image_size=16, latent_size=8)
TEACHER = dataclasses.replace(STUDENT, channels=(4, 8))
SIZES = (21, 13, 30)
CHAINS = [("from-scratch",), (1,), (2,), (3,), (4,), (2, 3)]


def make_scheduler(chain, member, device, precision="float32", norm="instance", make_optimizer=FusedAdam, terms=()):
    """Batch size 8, so that every epoch ends with a smaller batch."""
    losses = [FROM_SCRATCH if structure == "from-scratch" else STRUCTURES[structure] for structure in chain]
    stages = [Stage(str(name), each, 3, 1e-3 * (1 + member), 2e-4) for name, each in zip(chain, losses, strict=True)]
    images = torch.randint(0, 256, (SIZES[member], 1, 16, 16), generator=torch.Generator().manual_seed(member))
    student = to_device(build(dataclasses.replace(STUDENT, norm=norm), member), device)
    return ProgressiveScheduler(
        stages,
        TrainState(student, make_optimizer=make_optimizer),
        images.to(torch.uint8).to(device),
        TrainState(to_device(build(TEACHER, 10 + member), device), make_optimizer=make_optimizer),
        DistillationLoss(terms=terms),
        TrainingSettings(8, seed=member, precision=precision),
    )


def run(chain, members, device, make_engine=fast_engine, **settings):
    schedulers = [make_scheduler(chain, member, device, **settings) for member in range(members)]
    records = [record for _, record in train_schedulers(schedulers, make_engine)]
    weights = [
        parameter.detach().cpu()
        for scheduler in schedulers
        for state in (scheduler.student, scheduler.teacher)
        for network in (*state.gan.networks().values(), state.ema_generator)
        for parameter in network.parameters()
    ]
    return weights, [record.losses for record in records]


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_captured_step_is_the_step_call_by_call(chain, members, monkeypatch):
    captured = run(chain, members, "cuda")
    monkeypatch.setattr(engine, "supports_cuda_graph", lambda run: False)
    torch.testing.assert_close(captured, run(chain, members, "cuda"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_gpu_trains_what_a_cpu_trains(chain, members):
    torch.testing.assert_close(run(chain, members, "cuda"), run(chain, members, "cpu"), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("loss", ["attention", "rkd_distance", "rkd_angle", "sp"])
def test_losses_between_images_are_captured_too(loss, members, monkeypatch):
    terms = (Term("encoder.features", 10.0, loss),)
    captured = run((2,), members, "cuda", terms=terms)
    torch.testing.assert_close(captured, run((2,), members, "cpu", terms=terms), rtol=1e-2, atol=1e-3)
    monkeypatch.setattr(engine, "supports_cuda_graph", lambda run: False)
    torch.testing.assert_close(captured, run((2,), members, "cuda", terms=terms), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("chain", [(2,), (4,)])
def test_batch_norm_students_train_on_a_gpu_as_on_a_cpu(chain, members):
    gpu, cpu = (run(chain, members, device, norm="batch") for device in ("cuda", "cpu"))
    torch.testing.assert_close(gpu, cpu, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("chain", [(1,), (4,)])
def test_the_plain_engine_with_torchs_adam_trains_the_same_on_a_gpu(chain):
    plain = run(chain, 1, "cuda", Engine, make_optimizer=torch.optim.Adam)
    torch.testing.assert_close(run(chain, 1, "cuda"), plain, rtol=1e-2, atol=1e-3)


def wide_teacher_and_images(device):
    images = torch.randint(0, 256, (150, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    teacher = build(dataclasses.replace(TEACHER, channels=(64, 128), latent_size=64), 0)
    return to_device(teacher, device), images.to(device)


def test_a_teachers_features_can_be_cached_and_are_the_cpus():
    """TF32, which torch allows in convolutions by default, would make an image's features depend on its batch."""
    rows = []
    for device in ("cuda", "cpu"):
        teacher, images = wide_teacher_and_images(device)
        assert cache_shapes(teacher, images, DistillationLoss()) == {"z1": (64,), "x_hat": (1, 16, 16), "z2": (64,)}
        rows.append(torch.cat(list(teacher_rows(teacher, images, DistillationLoss(), "float32"))))
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("members", [1, 3])
def test_a_captured_step_reads_a_cache(members):
    results = []
    for device in ("cuda", "cpu"):
        schedulers = [make_scheduler((2,), member, device) for member in range(members)]
        for scheduler in schedulers:
            gan = scheduler.teacher.gan
            shapes = cache_shapes(gan, scheduler.images, scheduler.k_l)
            rows = torch.cat(list(teacher_rows(gan, scheduler.images, scheduler.k_l, "float32")))
            scheduler.use_targets(TeacherCache(rows.to(device), shapes))
        results.append([record.losses for _, record in train_schedulers(schedulers, fast_engine)])
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-3)


def test_scores_are_the_cpus():
    pytest.importorskip("sklearn")
    from kdgan_compress.evaluation import score_images

    scores = []
    for device in ("cuda", "cpu"):
        teacher, images = wide_teacher_and_images(device)
        scores.append(torch.from_numpy(score_images(teacher.generator, images.cpu())))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_lower_precision_still_trains(precision):
    weights, losses = run((2,), 3, "cuda", precision=precision)
    assert all(weight.isfinite().all() for weight in weights)
    assert losses[-1]["k1"] < 10
