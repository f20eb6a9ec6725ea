"""What the device runs: an exported detector, with numpy, Pillow and onnxruntime alone."""

from kdgan_compress.runtime.detector import Detector, Scores
from kdgan_compress.runtime.folders import FileScore, score_files

__all__ = ["Detector", "FileScore", "Scores", "score_files"]
