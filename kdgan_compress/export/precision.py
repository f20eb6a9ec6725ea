"""Lower precisions of a core: fp16 throughout its layers, int8 in those that have weights worth it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from kdgan_compress.errors import KdganError
from kdgan_compress.export.core import IMAGES, quiet
from kdgan_compress.export.nodes import ELEMENTWISE, add_constant, array, only_consumer
from kdgan_compress.gans import normalize_images

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
QUANTISED = ("Conv", "Gemm")
FEWEST_WEIGHTS = 1000
"""A layer of fewer stays in float: in int8 it would save next to no bytes, and cost time and most of the accuracy."""

MOST_CALIBRATION_IMAGES = 512
FEWEST_CALIBRATION_IMAGES = 32
CALIBRATION_BATCH = 32


def to_fp16(model: ir.Model) -> None:
    """Weights and layers in half precision, in place; what follows the last layer, the score, stays in float32."""
    graph = model.graph
    nodes = list(graph)
    head = _upstream([node for node in nodes if node.op_type in LAYERS])
    known: dict[tuple[ir.Value, bool], ir.Value] = {}
    for node in nodes:
        in_half = node in head
        for index, value in enumerate(node.inputs):
            if value is not None and _must_convert(node, index, value, head):
                if (value, in_half) not in known:
                    known[value, in_half] = _converted(graph, node, value, in_half)
                node.replace_input_with(index, known[value, in_half])
        for output in node.outputs if in_half else ():
            if _is_float(output):
                output.type = ir.TensorType(ir.DataType.FLOAT16)
    for index, value in enumerate(graph.outputs):
        if (source := value.producer()) is not None and source in head:
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            cast.outputs[0].name, value.name = value.name, f"half_{value.name}"
            cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
            graph.append(cast)
            graph.outputs[index] = cast.outputs[0]
    passes.RemoveUnusedNodesPass()(model)


def to_int8(model: ir.Model, normals: NDArray[np.uint8]) -> ir.Model:
    """Static quantisation, weights by output channel, activations by their range on normal images (QDQ, signed).

    Args:
        model: With transposed convolutions split, since CPUs have no int8 ones.
        normals: uint8 (N, S, S, C), N ≥ 32; of more than 512 an even choice is taken.

    Raises:
        KdganError: Fewer images, or no layer that is worth it.
    """
    if len(normals) < FEWEST_CALIBRATION_IMAGES:
        raise KdganError(
            f"Calibration must have at least {FEWEST_CALIBRATION_IMAGES} normal images",
            f"got {len(normals)}",
            "Add normal images, or export fp32 or fp16",
        )
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    layers = [node for node in model.graph if node.op_type in QUANTISED and _num_weights(node) >= FEWEST_WEIGHTS]
    if not layers:
        raise KdganError(
            f"int8 must have a convolution or linear layer of at least {FEWEST_WEIGHTS} weights",
            "found none in this graph",
            "Export fp32 or fp16",
        )
    around = [node for layer in layers for node in _around(layer)]
    quantised = _quantised(model, layers + around, normals)
    passes.ClearMetadataAndDocStringPass()(quantised)
    passes.RemoveUnusedOpsetsPass()(quantised)
    return quantised


def _quantised(model: ir.Model, nodes: list[ir.Node], normals: NDArray[np.uint8]) -> ir.Model:
    """ONNX Runtime's static quantisation of some nodes."""
    with quiet():
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            chosen = normals[:: -(-len(normals) // MOST_CALIBRATION_IMAGES)]
            self._batches: Iterator[dict[str, Any]] = (
                {IMAGES: normalize_images(torch.from_numpy(batch).permute(0, 3, 1, 2)).numpy()}
                for batch in np.array_split(chosen, -(-len(chosen) // CALIBRATION_BATCH))
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    with quiet(), tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        ir.save(model, before)
        quantize_static(
            before,
            after,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({node.op_type for node in nodes}),
            nodes_to_quantize=[node.name for node in nodes],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        quantised = ir.load(after)
        for tensor in quantised.graph.initializers.values():
            assert tensor.const_value is not None
            tensor.const_value = ir.tensor(tensor.const_value.numpy().copy(), name=tensor.name)
    return quantised


def _upstream(nodes: list[ir.Node]) -> set[ir.Node]:
    """Nodes, and all that they are computed from."""
    found: set[ir.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [source for value in node.inputs if value is not None and (source := value.producer())]
    return found


def _is_float(value: ir.Value) -> bool:
    """Whether a value is of floats, as all are that nothing is said of."""
    return value.dtype is None or value.dtype.is_floating_point()


def _must_convert(node: ir.Node, index: int, value: ir.Value, head: set[ir.Node]) -> bool:
    """Whether a node has an input in the other of the two precisions."""
    if not _is_float(value) or (node.op_type == "Resize" and index > 0):
        return False  # a resize's scales are float32 at any precision
    if array(value) is not None:
        return node in head
    source = value.producer()
    return (source is not None and source in head) != (node in head)


def _converted(graph: ir.Graph, node: ir.Node, value: ir.Value, to_half: bool) -> ir.Value:
    """A weight in half precision, or a value cast to the precision of the node that reads it."""
    weight = array(value)
    if weight is not None:
        return add_constant(graph, weight.astype(np.float16))
    target = ir.DataType.FLOAT16 if to_half else ir.DataType.FLOAT
    cast = ir.node("Cast", [value], {"to": target})
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(target)
    graph.insert_before(node, cast)
    return cast.outputs[0]


def _num_weights(node: ir.Node) -> int:
    weight = array(node.inputs[1])
    return 0 if weight is None else weight.size


def _around(layer: ir.Node) -> list[ir.Node]:
    """The activation behind a layer and the Reshape before it, which runtimes fuse with it."""
    follower, source = only_consumer(layer.outputs[0]), layer.inputs[0].producer() if layer.inputs[0] else None
    found = [follower] if follower is not None and follower.op_type in ELEMENTWISE - {"Tanh", "Sigmoid"} else []
    return found + ([source] if source is not None and source.op_type == "Reshape" else [])
