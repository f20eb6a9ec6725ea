"""Decompose operators that mobile runtimes do not have into operators that they have."""

import math
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.graph.nodes import add_constant, constant_input, only_consumer, replace


def decompose_unsupported_ops(model: ir.Model) -> int:
    """Decompose sums, Euclidean norms, Flatten, and Pad before a norm.

    Sums and norms become means, ‖a‖₂ = √(n·mean(a²)); Flatten becomes Reshape; the difference to a zero-padded code, if
    only a norm reads it, becomes the difference of the first coordinates, concatenated with the others.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        if new := _decompose(graph, node):
            replace(graph, [node], *new)
            count += 1
    return count


def _decompose(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    """The nodes that replace a node; empty if it can stay."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.shape is None:
        return []
    if node.op_type == "Flatten":
        length = _num_values(value.shape, range(1, len(value.shape)))
        return [] if length is None else [ir.node("Reshape", [value, add_constant(graph, [-1, length])])]
    padded = value.producer() if node.op_type == "Sub" else None
    if padded is not None and padded.op_type == "Pad":
        return _subtract_without_pad(graph, padded, node)
    is_norm = node.op_type == "ReduceL2"
    axes = constant_input(node, 1) if is_norm or node.op_type == "ReduceSum" else None
    length = None if axes is None else _num_values(value.shape, axes.astype(int))
    if length is None or value.dtype not in (ir.DataType.FLOAT, None):
        return []
    nodes = [ir.node("Mul", [value, value])] if is_norm else []
    terms = nodes[0].outputs[0] if is_norm else value
    nodes.append(ir.node("ReduceMean", [terms, node.inputs[1]], node.attributes))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], add_constant(graph, float(length))]))
    if is_norm:
        nodes.append(ir.node("Sqrt", [nodes[-1].outputs[0]]))
    return nodes


def _num_values(shape: ir.Shape, axes: Iterable[int]) -> int | None:
    """Number of values along some axes; None if it is not known."""
    lengths = [shape[axis] for axis in axes]
    known = [length for length in lengths if isinstance(length, int)]
    return math.prod(known) if len(known) == len(lengths) else None


def _subtract_without_pad(graph: ir.Graph, padded: ir.Node, difference: ir.Node) -> list[ir.Node]:
    """``[a, 0] − b`` as ``[a − b₁, b₂]``: the sign of b₂ is irrelevant to the norm that reads it."""
    reader, pads, code = only_consumer(difference.outputs[0]), constant_input(padded, 1), difference.inputs[1]
    if reader is None or reader.op_type != "ReduceL2" or pads is None or code is None or code.shape is None:
        return []
    length, num_rest = code.shape[1], int(pads[-1])
    with_zeros = len(padded.inputs) == 2 and "mode" not in padded.attributes
    if not (with_zeros and isinstance(length, int)) or np.count_nonzero(pads) != 1 or len(pads) != 4 or num_rest < 1:
        return []
    parts = ir.node("Split", [code, add_constant(graph, [length - num_rest, num_rest])], {"axis": 1}, num_outputs=2)
    first = ir.node("Sub", [padded.inputs[0], parts.outputs[0]])
    return [parts, first, ir.node("Concat", [first.outputs[0], parts.outputs[1]], {"axis": 1})]
