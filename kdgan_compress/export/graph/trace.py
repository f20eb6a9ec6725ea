"""Trace a generator with torch's ONNX exporter.

The traced core maps images (N, C, S, S) in [−1, 1] to scores (N,) and, on request, reconstructions; or photos
(N, C, H, W) to scores and anomaly maps (N, H, W). Preprocessing and the decision are added later (``assemble.py``).
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as common_passes
from torch import Tensor, nn

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.export.graph.nodes import SHAPE_ONLY, add_constant, constant_input, replace
from kdgan_compress.gans import ImageFormat, Scorer
from kdgan_compress.scores import FittedScorer, input_size
from kdgan_compress.scores.scorer import photo_score

OPSET = 18
IMAGES, SCORE, X_HAT, MAP = "images", "score", "x_hat", "map"
"""Names of the core's input and outputs."""


def trace(generator: nn.Module, image_format: ImageFormat, x_hat: str | None = None, opset: int = OPSET) -> ir.Model:
    """Export a generator's score as an ONNX graph, without any optimisation: batch norms stay batch norms.

    Args:
        generator: Network with ``anomaly_score``, or a ``FittedScorer`` around one; traced in evaluation mode. With a
            grid of tiles, the second output is the anomaly map.
        image_format: Size and channels of the network's images.
        x_hat: Dotted path of the network's submodule whose output is the reconstruction, which becomes the second
            output; None with a grid of tiles.
        opset: ONNX opset requested from torch, which may choose another.

    Returns:
        The graph with a dynamic batch size, without file paths, source lines or unused nodes.
    """
    from onnxscript.optimizer import fold_constants

    example = torch.zeros(2, image_format.image_channels, *input_size(generator, image_format.image_size))
    scorer, outputs = _module_to_trace(generator, x_hat)
    with quiet():
        program = torch.onnx.export(
            scorer.eval(),
            (example,),
            input_names=[IMAGES],
            output_names=outputs,
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
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.CommonSubexpressionEliminationPass()(model)
    common_passes.RemoveUnusedNodesPass()(model)
    common_passes.ClearMetadataAndDocStringPass()(model)
    _remove_zero_biases(model.graph)
    _remove_identity_slices(model.graph)
    _reshape_to_flatten(model.graph)
    _fix_shapes(model.graph)
    _remove_shape_round_trips(model.graph)
    common_passes.RemoveUnusedNodesPass()(model)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress output, warnings and log messages of exporters and quantisers, mostly about their deprecated code."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    null_handler = logging.NullHandler()
    loggers[0].addHandler(null_handler)  # otherwise the first log call adds a permanent handler to the root logger
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        loggers[0].removeHandler(null_handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _module_to_trace(generator: nn.Module, x_hat: str | None) -> tuple[nn.Module, list[str]]:
    """The module whose outputs are the core's, and their names."""
    if isinstance(generator, FittedScorer):
        if generator.grid is not None:
            assert x_hat is None, "tiles have no reconstruction"
            return _TileScorer(generator), [SCORE, MAP]
        if x_hat is None:
            return _ImageScorer(generator), [SCORE]
        x_hat = f"generator.{x_hat}"
    if x_hat is None:
        return Scorer(generator), [SCORE]
    return _ScorerAndReconstructor(generator, x_hat), [SCORE, X_HAT]


class _TileScorer(nn.Module):
    """A photo's score and map from the same scores of its tiles."""

    def __init__(self, scorer: FittedScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        assert self.scorer.grid is not None
        tile_scores = self.scorer.tile_scores(photos)
        return photo_score(tile_scores, self.scorer.photo), self.scorer.grid.map(tile_scores)


class _ImageScorer(nn.Module):
    """Without tiles, the score of an image is that of its only tile."""

    def __init__(self, scorer: FittedScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, images: Tensor) -> Tensor:
        return self.scorer.tile_scores(images).squeeze(1)


class _ScorerAndReconstructor(nn.Module):
    def __init__(self, generator: nn.Module, x_hat: str) -> None:
        super().__init__()
        self.scorer = Scorer(generator)
        self.taps = FeatureHooks(self.scorer, {SCORE: "", X_HAT: f"generator.{x_hat}"})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with self.taps as taps:
            outputs = taps(images)
        return outputs[SCORE], outputs[X_HAT]


def _remove_zero_biases(graph: ir.Graph) -> None:
    """Remove the zeros that torch writes for a convolution without bias."""
    for node in graph:
        if node.op_type == "Conv" and len(node.inputs) > 2 and not np.any(constant_input(node, 2)):
            replace(graph, [node], ir.node("Conv", node.inputs[:2], node.attributes))


def _remove_identity_slices(graph: ir.Graph) -> None:
    """Remove slices that keep the shape, such as those traced from ``z[:, :, None]``: they select everything."""
    for node in graph:
        if node.op_type != "Slice" or node.outputs[0].is_graph_output():
            continue
        before, after = node.inputs[0], node.outputs[0]
        steps = constant_input(node, 4) if len(node.inputs) > 4 else np.ones(1)
        is_forward = steps is not None and bool((steps > 0).all())  # a mirrored image has the same shape too
        if before is not None and is_forward and _has_same_shape(before, after):
            after.replace_all_uses_with(before)


def _reshape_to_flatten(graph: ir.Graph) -> None:
    """Replace reshapes to (N, length) by Flatten, which stores neither the batch size nor a length that may change."""
    for node in graph:
        before, after = node.inputs[0], node.outputs[0]
        if node.op_type != "Reshape" or before is None or before.shape is None or after.shape is None:
            continue
        keeps_batch = len(after.shape) == 2 and _is_same_dim(before.shape[0], after.shape[0])
        if len(before.shape) > 2 and keeps_batch:
            replace(graph, [node], ir.node("Flatten", [before], {"axis": 1}))


def _fix_shapes(graph: ir.Graph) -> None:
    """Replace computed shapes, in which only the number of images is open, by constants; merge successive reshapes."""
    for node in list(graph):
        value, after = node.inputs[0] if node.inputs else None, node.outputs[0].shape
        if value is None or after is None:
            continue
        sizes = [size if isinstance(size, int) else -1 for size in after]
        if node.op_type == "Reshape" and sizes.count(-1) <= 1:
            source = value.producer()
            if source is not None and source.op_type == "Reshape" and source.inputs[0] is not None:
                value = source.inputs[0]
            replace(graph, [node], ir.node("Reshape", [value, add_constant(graph, sizes)]))
        elif (
            node.op_type == "Resize"
            and len(node.inputs) > 3
            and constant_input(node, 3) is None
            and -1 not in sizes[2:]
        ):
            node.replace_input_with(3, add_constant(graph, sizes[2:]))
            node.attributes["axes"] = ir.AttrInt64s("axes", list(range(2, len(sizes))))


def _remove_shape_round_trips(graph: ir.Graph) -> None:
    """Remove changes of shape that cancel out, such as 1×1 image → vector → 1×1 image."""
    for node in graph:
        value, source = node.outputs[0], node
        while source.op_type in SHAPE_ONLY and (before := source.inputs[0]) is not None:
            if _has_same_shape(before, value) and not value.is_graph_output():
                value.replace_all_uses_with(before)
            producer = before.producer()
            if producer is None:
                break
            source = producer


def _has_same_shape(first: ir.Value, second: ir.Value) -> bool:
    """Whether two values are known to have the same shape; torch leaves some shapes unknown."""
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return False
    return all(_is_same_dim(*pair) for pair in zip(first.shape, second.shape, strict=True))


def _is_same_dim(first: int | ir.SymbolicDim, second: int | ir.SymbolicDim) -> bool:
    return first == second and not (isinstance(first, ir.SymbolicDim) and first.value is None)
