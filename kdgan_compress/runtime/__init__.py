"""What the device runs: an exported detector, with numpy, Pillow and onnxruntime alone."""

from kdgan_compress.runtime.detector import Detector, Scores

__all__ = ["Detector", "Scores"]
