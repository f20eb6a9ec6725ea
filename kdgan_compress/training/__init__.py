"""Training: a learner is a GAN on its way, the engine runs one stage for one student or a fleet, taught by a cache."""

from kdgan_compress.training.cache import (
    CacheDtype,
    TeacherCache,
    cache_key,
    cache_shapes,
    cache_size_bytes,
    cacheable_stages,
    teacher_rows,
)
from kdgan_compress.training.engine import StageRun, TrainingSettings, begin_stage, run_fleet, run_stage
from kdgan_compress.training.learner import Learner
from kdgan_compress.training.meter import DivergedError, Record
from kdgan_compress.training.precision import Precision

__all__ = [
    "CacheDtype",
    "DivergedError",
    "Learner",
    "Precision",
    "Record",
    "StageRun",
    "TeacherCache",
    "TrainingSettings",
    "begin_stage",
    "cache_key",
    "cache_shapes",
    "cache_size_bytes",
    "cacheable_stages",
    "run_fleet",
    "run_stage",
    "teacher_rows",
]
