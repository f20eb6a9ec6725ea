"""Export: a trained generator as one ONNX detector that does everything from pixels to verdict."""

from kdgan_compress.export.detector_file import ExportReport, write_detector
from kdgan_compress.export.gate import Agreement, Judges, ThresholdRule
from kdgan_compress.export.graph import Interface
from kdgan_compress.export.rewrites import REWRITES
from kdgan_compress.export.settings import ExportSettings, Precision

__all__ = [
    "REWRITES",
    "Agreement",
    "ExportReport",
    "ExportSettings",
    "Interface",
    "Judges",
    "Precision",
    "ThresholdRule",
    "write_detector",
]
