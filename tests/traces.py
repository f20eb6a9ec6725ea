"""Traces of generators, each taken once: torch's exporter takes seconds for every one."""

from typing import Any

import onnx_ir as ir
from torch import nn

from kdgan_compress.evaluation import weights_sha256
from kdgan_compress.export.graph.trace import trace
from kdgan_compress.gans import ImageFormat

_TRACES: dict[Any, ir.Model] = {}


def trace_once(generator: nn.Module, image_format: ImageFormat, x_hat: str | None = None, opset: int = 18) -> ir.Model:
    """In place of ``kdgan_compress.export.detector_file.trace``."""
    key = (type(generator), weights_sha256(generator), image_format, x_hat, opset)
    if key not in _TRACES:
        _TRACES[key] = trace(generator, image_format, x_hat, opset)
    return _TRACES[key].clone()
