"""A rehearsal of a training by a user's own code: mistakes appear before a run folder is made."""

import dataclasses

import torch

from kdgan_compress.accel.engine import fast_engine
from kdgan_compress.distillation.scheduler import ProgressiveScheduler
from kdgan_compress.distillation.stage_run import TrainingSettings
from kdgan_compress.distillation.trainer import train_schedulers
from kdgan_compress.gans.user_code import user_code


def rehearse(scheduler: ProgressiveScheduler, settings: TrainingSettings, family: str) -> None:
    """Train one step of each stage on copies of the GANs.

    Args:
        scheduler: Of a training that has not begun; unchanged.
        settings: Those of the training.
        family: The user's family, for the message.

    Raises:
        KdganError: The step raises an exception, a tap does not fire once, or shapes do not fit.
    """
    with user_code(f"The first training step of {family} failed"), torch.random.fork_rng(devices=[]):
        short = ProgressiveScheduler(
            [dataclasses.replace(stage, epochs=1) for stage in scheduler.stages],
            scheduler.student.fresh_copy(),
            scheduler.images[: settings.batch_size],
            None if scheduler.teacher is None else scheduler.teacher.fresh_copy(),
            scheduler.k_l,
            settings,
        )
        for _ in train_schedulers([short], fast_engine):
            pass
