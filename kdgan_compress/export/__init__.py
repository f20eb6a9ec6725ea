"""Export: write a trained generator as one ONNX file that maps pixels to a score and a decision.

Names are imported on first use: ``precisions`` is read by the command line's ``--help`` and must not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdgan_compress.export.detector_file import ExportReport as ExportReport
    from kdgan_compress.export.detector_file import write_detector as write_detector
    from kdgan_compress.export.graph.assemble import IOSpec as IOSpec
    from kdgan_compress.export.graph.passes import REWRITES as REWRITES
    from kdgan_compress.export.precisions import PRECISIONS as PRECISIONS
    from kdgan_compress.export.precisions import Precision as Precision
    from kdgan_compress.export.settings import ExportSettings as ExportSettings
    from kdgan_compress.export.validation.gate import Agreement as Agreement
    from kdgan_compress.export.validation.gate import ThresholdRule as ThresholdRule
    from kdgan_compress.export.validation.gate import ValidationData as ValidationData

_MODULES = {
    "Agreement": "validation.gate",
    "ExportReport": "detector_file",
    "ExportSettings": "settings",
    "IOSpec": "graph.assemble",
    "PRECISIONS": "precisions",
    "Precision": "precisions",
    "REWRITES": "graph.passes",
    "ThresholdRule": "validation.gate",
    "ValidationData": "validation.gate",
    "write_detector": "detector_file",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
