"""A generator as an ONNX graph: images (N, C, S, S) in [−1, 1] to scores (N,), and its reconstructions if asked."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.export.nodes import SHAPE_ONLY, array, replace
from kdgan_compress.gans import ImageFormat, Scorer

OPSET = 18
IMAGES, SCORE, X_HAT = "images", "score", "x_hat"
"""Names of the core's input and outputs."""


def trace(generator: nn.Module, image_format: ImageFormat, x_hat: str | None = None, opset: int = OPSET) -> ir.Model:
    """Let torch export a generator's score, as it stands: no rewrite is made, batch norms stay batch norms.

    Args:
        generator: With ``anomaly_score``; traced in evaluation mode.
        image_format: Side and channels of its images.
        x_hat: Dotted path of the submodule whose output is the reconstruction, to be the second output.
        opset: Asked of torch, which may not honour it.

    Returns:
        The graph, batch dynamic, without any path, source line or unused part.
    """
    from onnxscript.optimizer import fold_constants

    example = torch.zeros(2, image_format.image_channels, image_format.image_size, image_format.image_size)
    scorer = Scorer(generator) if x_hat is None else _ScorerAndReconstructor(generator, x_hat)
    with quiet():
        program = torch.onnx.export(
            scorer.eval(),
            (example,),
            input_names=[IMAGES],
            output_names=[SCORE] if x_hat is None else [SCORE, X_HAT],
            dynamo=True,
            opset_version=opset,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            verbose=False,
            optimize=False,
        )
    assert program is not None
    model = program.model
    fold_constants(model)
    for clean in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        clean(model)
    _drop_zero_biases(model.graph)
    _drop_whole_slices(model.graph)
    _flatten(model.graph)
    _drop_round_trips(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user what exporters and quantisers warn and log of their own deprecated parts."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    silent = logging.NullHandler()
    loggers[0].addHandler(silent)  # else the first line logged gives the root a handler for good
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        loggers[0].removeHandler(silent)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _ScorerAndReconstructor(nn.Module):
    def __init__(self, generator: nn.Module, x_hat: str) -> None:
        super().__init__()
        self.scorer = Scorer(generator)
        self.taps = FeatureHooks(self.scorer, {SCORE: "", X_HAT: f"generator.{x_hat}"})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.taps as taps:
            outputs = taps(images)
        return outputs[SCORE], outputs[X_HAT]


def _drop_zero_biases(graph: ir.Graph) -> None:
    """The zeros that torch writes for a convolution that has no bias."""
    for node in graph:
        if node.op_type == "Conv" and len(node.inputs) > 2 and not np.any(array(node.inputs[2])):
            replace(graph, [node], ir.node("Conv", node.inputs[:2], node.attributes))


def _drop_whole_slices(graph: ir.Graph) -> None:
    """A Slice that leaves the shape as it is (what ``z[:, :, None]`` is traced as) takes all there is."""
    for node in graph:
        if node.op_type != "Slice" or node.outputs[0].is_graph_output():
            continue
        before, after = node.inputs[0], node.outputs[0]
        steps = array(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
        goes_forward = steps is not None and bool((steps > 0).all())  # a mirror image has its size too
        if before is not None and goes_forward and _is_same_shape(before, after):
            after.replace_all_uses_with(before)


def _flatten(graph: ir.Graph) -> None:
    """Reshapes to (N, numbers) become Flatten, which knows no batch size and no count that a rewrite could change."""
    for node in graph:
        before, after = node.inputs[0], node.outputs[0]
        if node.op_type != "Reshape" or before is None or before.shape is None or after.shape is None:
            continue
        keeps_batch = len(after.shape) == 2 and _is_same_length(before.shape[0], after.shape[0])
        if len(before.shape) > 2 and keeps_batch:
            replace(graph, [node], ir.node("Flatten", [before], {"axis": 1}))


def _drop_round_trips(graph: ir.Graph) -> None:
    """Changes of shape that end where they began, as a code's that becomes a vector and a 1×1 image again."""
    for node in graph:
        value, source = node.outputs[0], node
        while source.op_type in SHAPE_ONLY and (before := source.inputs[0]) is not None:
            if _is_same_shape(before, value) and not value.is_graph_output():
                value.replace_all_uses_with(before)
            producer = before.producer()
            if producer is None:
                break
            source = producer


def _is_same_shape(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values are known to be of one shape; torch leaves that of some unsaid."""
    if one.shape is None or other.shape is None or len(one.shape) != len(other.shape):
        return False
    return all(_is_same_length(*pair) for pair in zip(one.shape, other.shape, strict=True))


def _is_same_length(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    return one == other and not (isinstance(one, ir.SymbolicDim) and one.value is None)
