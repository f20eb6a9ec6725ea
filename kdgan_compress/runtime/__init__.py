"""What the device runs: an exported detector, with numpy, Pillow and onnxruntime only."""

from kdgan_compress.runtime.batch_scoring import FileScore, score_files
from kdgan_compress.runtime.detector import Detector
from kdgan_compress.runtime.scores import Scores

__all__ = ["Detector", "FileScore", "Scores", "score_files"]
