"""kdgan-compress: distil GAN anomaly detectors into students small enough for the device.

The names in ``__all__`` are the Python API. Each is imported when it is first used, so that importing the package loads
neither torch nor ONNX Runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdgan_compress.api.calibrate import calibrate as calibrate
    from kdgan_compress.api.distill import distill as distill
    from kdgan_compress.api.evaluate import evaluate as evaluate
    from kdgan_compress.api.export import export_detector as export_detector
    from kdgan_compress.api.import_checkpoint import import_checkpoint as import_checkpoint
    from kdgan_compress.api.pictures import pictures as pictures
    from kdgan_compress.api.profile import profile as profile
    from kdgan_compress.api.report import report as report
    from kdgan_compress.api.resume import resume as resume
    from kdgan_compress.api.search import search as search
    from kdgan_compress.api.search_limits import Limits as Limits
    from kdgan_compress.api.sweep import sweep as sweep
    from kdgan_compress.api.train import train as train
    from kdgan_compress.api.trials import trials as trials
    from kdgan_compress.api.verify import verify as verify
    from kdgan_compress.data import DataSettings as DataSettings
    from kdgan_compress.data import load_split as load_split
    from kdgan_compress.distillation.hooks import FeatureHooks as FeatureHooks
    from kdgan_compress.distillation.loss import DistillationLoss as DistillationLoss
    from kdgan_compress.distillation.policies import FROM_SCRATCH as FROM_SCRATCH
    from kdgan_compress.distillation.policies import STRUCTURES as STRUCTURES
    from kdgan_compress.distillation.policies import LossSet as LossSet
    from kdgan_compress.distillation.policies import Stage as Stage
    from kdgan_compress.distillation.scheduler import ProgressiveScheduler as ProgressiveScheduler
    from kdgan_compress.distillation.stage_run import TrainingSettings as TrainingSettings
    from kdgan_compress.distillation.terms import Term as Term
    from kdgan_compress.distillation.train_state import TrainState as TrainState
    from kdgan_compress.distillation.trainer import train_schedulers as train_schedulers
    from kdgan_compress.errors import KdganError as KdganError
    from kdgan_compress.evaluation import detection_metrics as detection_metrics
    from kdgan_compress.evaluation import quantile_threshold as quantile_threshold
    from kdgan_compress.evaluation import score_images as score_images
    from kdgan_compress.experiment.recipe import Recipe as Recipe
    from kdgan_compress.experiment.recipe import load_recipe as load_recipe
    from kdgan_compress.export.detector_file import write_detector as write_detector
    from kdgan_compress.export.settings import ExportSettings as ExportSettings
    from kdgan_compress.gans import Architecture as Architecture
    from kdgan_compress.gans import Family as Family
    from kdgan_compress.gans import Gan as Gan
    from kdgan_compress.gans import ImageFormat as ImageFormat
    from kdgan_compress.gans import check_gan as check_gan
    from kdgan_compress.gans import load_family as load_family
    from kdgan_compress.runtime import Detector as Detector

_MODULES = {
    "api.calibrate": ("calibrate",),
    "api.distill": ("distill",),
    "api.evaluate": ("evaluate",),
    "api.export": ("export_detector",),
    "api.import_checkpoint": ("import_checkpoint",),
    "api.pictures": ("pictures",),
    "api.profile": ("profile",),
    "api.report": ("report",),
    "api.resume": ("resume",),
    "api.search": ("search",),
    "api.search_limits": ("Limits",),
    "api.sweep": ("sweep",),
    "api.train": ("train",),
    "api.trials": ("trials",),
    "api.verify": ("verify",),
    "data": ("DataSettings", "load_split"),
    "distillation.hooks": ("FeatureHooks",),
    "distillation.loss": ("DistillationLoss",),
    "distillation.policies": ("FROM_SCRATCH", "STRUCTURES", "LossSet", "Stage"),
    "distillation.scheduler": ("ProgressiveScheduler",),
    "distillation.stage_run": ("TrainingSettings",),
    "distillation.terms": ("Term",),
    "distillation.train_state": ("TrainState",),
    "distillation.trainer": ("train_schedulers",),
    "errors": ("KdganError",),
    "evaluation": ("detection_metrics", "quantile_threshold", "score_images"),
    "experiment.recipe": ("Recipe", "load_recipe"),
    "export.detector_file": ("write_detector",),
    "export.settings": ("ExportSettings",),
    "gans": ("Architecture", "Family", "Gan", "ImageFormat", "check_gan", "load_family"),
    "runtime": ("Detector",),
}
_HOMES = {name: f"kdgan_compress.{module}" for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kdgan-compress")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
