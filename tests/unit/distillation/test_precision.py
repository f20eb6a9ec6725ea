"""The precision of the settings reaches every step; what it does to matrix products only a GPU shows."""

import contextlib

import pytest
import torch

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.distillation import precision
from kdgan_compress.distillation.policies import FROM_SCRATCH, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, TrainingSettings
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.distillation.trainer import Engine, train_schedulers
from kdgan_compress.gans import Architecture, build


@pytest.mark.parametrize(("engine", "members"), [(Engine, 1), (fast_engine, 1), (fast_engine, 2)])
@pytest.mark.parametrize("name", ["float32", "tf32"])
def test_every_step_is_made_in_the_precision_of_the_settings(engine, members, name, monkeypatch):
    entered = []
    monkeypatch.setattr(precision, "precision_context", lambda *args: entered.append(args) or contextlib.nullcontext())
    schedulers = [
        ProgressiveScheduler(
            [Stage("x", FROM_SCRATCH, 1, 1e-3, 1e-3)],
            TrainState(build(Architecture(channels=(1, 2), image_size=16, latent_size=4), seed)),
            torch.zeros(6, 1, 16, 16, dtype=torch.uint8),
            settings=TrainingSettings(2, precision=name),
        )
        for seed in range(members)
    ]
    list(train_schedulers(schedulers, engine))
    assert entered == [(name, "cpu")] * 3


@pytest.mark.parametrize("name", ["float32", "tf32"])
def test_the_flags_are_set_inside_and_back_outside(name):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with precision.precision_context(name, "cuda"):
        assert [flag.allow_tf32 for flag in flags] == [name == "tf32"] * 2
        assert not torch.is_autocast_enabled("cuda")
    assert [flag.allow_tf32 for flag in flags] == before


@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16"])
def test_a_cpu_computes_in_float32(name):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    with precision.precision_context(name, "cpu"):
        assert [flag.allow_tf32 for flag in flags] == before
        assert not torch.is_autocast_enabled("cpu")
