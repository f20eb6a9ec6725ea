"""kdgan-compress: distil GAN anomaly detectors into students small enough for the device.

The names below are the Python API; each is imported when it is first used, so that the package itself stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdgan_compress.api.distill import distill as distill
    from kdgan_compress.api.distill import distill_fleet as distill_fleet
    from kdgan_compress.api.evaluate import evaluate as evaluate
    from kdgan_compress.api.export import export_detector as export_detector
    from kdgan_compress.api.pictures import pictures as pictures
    from kdgan_compress.api.profile import profile as profile
    from kdgan_compress.api.train import train as train
    from kdgan_compress.api.train import train_fleet as train_fleet
    from kdgan_compress.api.trials import trials as trials
    from kdgan_compress.api.verify import verify as verify
    from kdgan_compress.data import DataSettings as DataSettings
    from kdgan_compress.errors import KdganError as KdganError
    from kdgan_compress.experiment.recipe import Recipe as Recipe
    from kdgan_compress.experiment.recipe import load_recipe as load_recipe
    from kdgan_compress.export import ExportSettings as ExportSettings
    from kdgan_compress.gans import Architecture as Architecture
    from kdgan_compress.gans import Gan as Gan
    from kdgan_compress.runtime import Detector as Detector

_HOMES = {
    "Architecture": "kdgan_compress.gans",
    "DataSettings": "kdgan_compress.data",
    "Detector": "kdgan_compress.runtime",
    "ExportSettings": "kdgan_compress.export",
    "Gan": "kdgan_compress.gans",
    "KdganError": "kdgan_compress.errors",
    "Recipe": "kdgan_compress.experiment.recipe",
    "distill": "kdgan_compress.api.distill",
    "distill_fleet": "kdgan_compress.api.distill",
    "evaluate": "kdgan_compress.api.evaluate",
    "export_detector": "kdgan_compress.api.export",
    "load_recipe": "kdgan_compress.experiment.recipe",
    "pictures": "kdgan_compress.api.pictures",
    "profile": "kdgan_compress.api.profile",
    "train": "kdgan_compress.api.train",
    "train_fleet": "kdgan_compress.api.train",
    "trials": "kdgan_compress.api.trials",
    "verify": "kdgan_compress.api.verify",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
