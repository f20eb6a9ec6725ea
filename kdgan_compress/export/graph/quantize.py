"""Convert a core to a lower precision: fp16 in all layers, int8 in the layers with enough weights."""

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as common_passes

from kdgan_compress.errors import KdganError
from kdgan_compress.export.graph.nodes import (
    ELEMENTWISE,
    add_constant,
    constant_input,
    constant_value,
    only_consumer,
)
from kdgan_compress.export.graph.trace import IMAGES, quiet
from kdgan_compress.files import scratch_folder
from kdgan_compress.gans import normalize_images

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
INT8_LAYERS = ("Conv", "Gemm")
MIN_WEIGHTS_TO_QUANTIZE = 1000
"""Smaller layers stay in float: int8 would save almost no bytes and would cost time and most of the accuracy."""

MAX_CALIBRATION_IMAGES, MAX_CALIBRATION_PHOTOS = 512, 64
MIN_PHOTO_PIXELS = 128 * 128
"""Images with as many pixels count as photos, which are cut into many tiles."""

CALIBRATION_BATCH_PIXELS = 32 * 32 * 32


def to_fp16(model: ir.Model) -> None:
    """Convert all layers and their weights to float16, in place; the score after the last layer stays in float32."""
    graph = model.graph
    nodes = list(graph)
    half_nodes = _ancestors([node for node in nodes if node.op_type in LAYERS])
    converted: dict[tuple[ir.Value, bool], ir.Value] = {}
    for node in nodes:
        is_half = node in half_nodes
        for index, value in enumerate(node.inputs):
            if value is not None and _needs_conversion(node, index, value, half_nodes):
                if (value, is_half) not in converted:
                    converted[value, is_half] = _convert(graph, node, value, is_half)
                node.replace_input_with(index, converted[value, is_half])
        for output in node.outputs if is_half else ():
            if _is_float(output):
                output.type = ir.TensorType(ir.DataType.FLOAT16)
    for index, value in enumerate(graph.outputs):
        if (source := value.producer()) is not None and source in half_nodes:
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            cast.outputs[0].name, value.name = value.name, f"half_{value.name}"
            cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
            graph.append(cast)
            graph.outputs[index] = cast.outputs[0]
    common_passes.RemoveUnusedNodesPass()(model)


def to_int8(model: ir.Model, normals: NDArray[np.uint8]) -> ir.Model:
    """Quantise statically (QDQ, signed): weights per output channel, activations by their range on normal images.

    Args:
        model: Core whose transposed convolutions were replaced, because CPUs have no int8 kernel for them.
        normals: Calibration images, uint8 (N, S, S, C) or photos (N, H, W, C); of more than 512 images or 64 photos an
            evenly spaced subset is used.

    Raises:
        KdganError: No layer is large enough.
    """
    import kdgan_compress.runtime.session  # noqa: F401  imports onnxruntime without telemetry

    with quiet():
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    layers = [node for node in model.graph if node.op_type in INT8_LAYERS and _is_large(node)]
    if not layers:
        problem = f"int8 needs a convolution or linear layer of at least {MIN_WEIGHTS_TO_QUANTIZE} weights"
        raise KdganError(problem, "this graph has none", "Export fp32 or fp16")
    nodes = layers + [node for layer in layers for node in _fusable_neighbours(layer)]
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    with quiet(), scratch_folder() as folder:
        before, after = folder / "float.onnx", folder / "int8.onnx"
        ir.save(model, before)
        quantize_static(
            before,
            after,
            _CalibrationBatches(normals),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            nodes_to_quantize=[node.name for node in nodes],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        quantized = ir.load(after)
        for tensor in quantized.graph.initializers.values():  # read the weights before the file is deleted
            assert tensor.const_value is not None
            tensor.const_value = ir.tensor(tensor.const_value.numpy().copy(), name=tensor.name)
    common_passes.ClearMetadataAndDocStringPass()(quantized)
    common_passes.RemoveUnusedOpsetsPass()(quantized)
    return quantized


class _CalibrationBatches:
    """ONNX Runtime's interface of a CalibrationDataReader, over an evenly spaced subset of the images."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        num_pixels = images[0, :, :, 0].size
        most = MAX_CALIBRATION_IMAGES if num_pixels < MIN_PHOTO_PIXELS else MAX_CALIBRATION_PHOTOS
        subset = images[:: -(-len(images) // most)]
        batch_size = max(1, CALIBRATION_BATCH_PIXELS // num_pixels)
        self.batches = iter(np.array_split(subset, -(-len(subset) // batch_size)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        return {IMAGES: normalize_images(torch.from_numpy(batch).permute(0, 3, 1, 2)).numpy()}


def _ancestors(nodes: list[ir.Node]) -> set[ir.Node]:
    """The nodes and everything they are computed from."""
    visited: set[ir.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in visited:
            visited.add(node)
            stack += [source for value in node.inputs if value is not None and (source := value.producer())]
    return visited


def _is_float(value: ir.Value) -> bool:
    """Whether a value is a float tensor; values of unknown type are."""
    return value.dtype is None or value.dtype.is_floating_point()


def _needs_conversion(node: ir.Node, index: int, value: ir.Value, half_nodes: set[ir.Node]) -> bool:
    """Whether an input of a node has the other one of the two precisions."""
    if not _is_float(value) or (node.op_type == "Resize" and index > 0):
        return False  # the scales of a Resize are float32 in every precision
    if constant_value(value) is not None:
        return node in half_nodes
    source = value.producer()
    return (source is not None and source in half_nodes) != (node in half_nodes)


def _convert(graph: ir.Graph, node: ir.Node, value: ir.Value, to_half: bool) -> ir.Value:
    """A weight in float16, or a cast of the value to the precision of the node that reads it."""
    weight = constant_value(value)
    if weight is not None:
        return add_constant(graph, weight.astype(np.float16))
    target = ir.DataType.FLOAT16 if to_half else ir.DataType.FLOAT
    cast = ir.node("Cast", [value], {"to": target})
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(target)
    graph.insert_before(node, cast)
    return cast.outputs[0]


def _is_large(layer: ir.Node) -> bool:
    weight = constant_input(layer, 1)
    return weight is not None and weight.size >= MIN_WEIGHTS_TO_QUANTIZE


def _fusable_neighbours(layer: ir.Node) -> list[ir.Node]:
    """The activation after a layer and the Reshape before it, which runtimes fuse with the layer."""
    follower, source = only_consumer(layer.outputs[0]), layer.inputs[0].producer() if layer.inputs[0] else None
    nodes = [follower] if follower is not None and follower.op_type in ELEMENTWISE - {"Tanh", "Sigmoid"} else []
    return nodes + ([source] if source is not None and source.op_type == "Reshape" else [])
