"""Which losses update which network in which order, a family a file, and the distillation loss K_l."""

from kdgan_compress.objectives.catalog import OBJECTIVES
from kdgan_compress.objectives.cvgad import CvgadObjective
from kdgan_compress.objectives.distillation import Distillation
from kdgan_compress.objectives.ganomaly import GanomalyObjective
from kdgan_compress.objectives.objective import (
    Batch,
    Objective,
    Outputs,
    Update,
    Weight,
    is_used,
    merge_settings,
    together,
)

__all__ = [
    "OBJECTIVES",
    "Batch",
    "CvgadObjective",
    "Distillation",
    "GanomalyObjective",
    "Objective",
    "Outputs",
    "Update",
    "Weight",
    "is_used",
    "merge_settings",
    "together",
]
