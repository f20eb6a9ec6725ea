"""Fold linear operations into the weights of a neighbouring convolution: batch norm, and the scale of the pixels."""

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.graph.nodes import (
    SHAPE_ONLY,
    add_constant,
    constant_input,
    num_groups,
    only_consumer,
    replace,
)

MOVES = SHAPE_ONLY | {"Concat", "Slice", "Transpose"}
"""Operators that only move values."""


def fold_batch_norms(model: ir.Model) -> int:
    """Fold batch norm into the convolution before it: W′ = W·s and b′ = β + (b − μ)·s with s = γ/√(σ²+ε)."""
    graph, count = model.graph, 0
    for node in list(graph):
        layer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "BatchNormalization" or layer is None or layer.op_type not in ("Conv", "ConvTranspose"):
            continue
        is_transposed = layer.op_type == "ConvTranspose"
        parameters = [constant_input(node, index) for index in range(1, 5)]
        weight, bias = constant_input(layer, 1), constant_input(layer, 2)
        if weight is None or any(each is None for each in parameters) or only_consumer(layer.outputs[0]) is not node:
            continue
        if is_transposed and num_groups(layer) > 1:
            continue
        gamma, beta, mean, variance = (np.asarray(each, np.float64) for each in parameters)
        scale = gamma / np.sqrt(variance + node.attributes["epsilon"].as_float())
        output_axis = (1, -1) if is_transposed else (-1, 1)
        folded = weight * scale.reshape(*output_axis, *[1] * (weight.ndim - 2))
        shift = beta + ((0 if bias is None else bias) - mean) * scale
        inputs = [layer.inputs[0], add_constant(graph, folded), add_constant(graph, shift)]
        replace(graph, [layer, node], ir.node(layer.op_type, inputs, layer.attributes))
        count += 1
    return count


def fold_input_scale(model: ir.Model) -> int:
    """Replace x / h − 1 of the preprocessing by x − h if only a convolution reads it; its weights are divided by h.

    Cutting a photo into tiles in between does not matter.
    """
    graph, count = model.graph, 0
    for divide in [node for node in graph if node.op_type == "Div"]:
        subtract = only_consumer(divide.outputs[0])
        layer = _only_convolution(subtract.outputs[0]) if subtract is not None and subtract.op_type == "Sub" else None
        if subtract is None or layer is None:
            continue
        half, one, weight = constant_input(divide, 1), constant_input(subtract, 1), constant_input(layer, 1)
        if half is None or weight is None or one is None or half.size != 1 or not np.array_equal(one, np.ones(())):
            continue
        layer.replace_input_with(1, add_constant(graph, weight / half))
        replace(graph, [divide, subtract], ir.node("Sub", divide.inputs))
        count += 1
    return count


def _only_convolution(value: ir.Value) -> ir.Node | None:
    """The convolution that alone reads a value or, of it, what other nodes move elsewhere, and reads nothing else."""
    readers: set[tuple[ir.Node, int]] = set()
    values, derived, joined = [value], {value}, set()
    while values:
        value = values.pop()
        if value.is_graph_output():
            return None
        moved = {use.node for use in value.uses() if use.node.op_type in MOVES}
        readers |= {(use.node, use.idx) for use in value.uses() if use.node not in moved}
        values += [node.outputs[0] for node in moved]
        derived |= {node.outputs[0] for node in moved}
        joined |= {node for node in moved if node.op_type == "Concat"}
    if any(each not in derived for node in joined for each in node.inputs):
        return None
    node, index = readers.pop() if len(readers) == 1 else (None, 0)
    return node if node is not None and node.op_type == "Conv" and index == 0 else None
