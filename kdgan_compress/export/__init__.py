"""Export: a trained generator as one ONNX detector that does everything from pixels to verdict."""

from kdgan_compress.export.detector_file import ExportReport, ExportSettings, Precision, write_detector
from kdgan_compress.export.gate import Agreement, Judges, ThresholdRule
from kdgan_compress.export.graph import Interface
from kdgan_compress.export.rewrites import REWRITES

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
