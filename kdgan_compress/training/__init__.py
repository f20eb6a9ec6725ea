"""Training: a learner is a GAN on its way, the engine runs one stage."""

from kdgan_compress.training.engine import DivergedError, Record, TrainingSettings, begin_stage, run_stage
from kdgan_compress.training.learner import Learner

__all__ = ["DivergedError", "Learner", "Record", "TrainingSettings", "begin_stage", "run_stage"]
