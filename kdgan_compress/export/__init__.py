"""Export: a trained generator as one ONNX detector that does everything from pixels to verdict."""

from kdgan_compress.export.detector_file import ExportReport, write_detector

__all__ = ["ExportReport", "write_detector"]
