"""Store weights in less space than they are computed in: whitenings as triangles, all large weights as int8.

The float32 values are computed from constants alone, which a runtime does once, when it loads the file.
"""

from typing import Literal

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.graph.nodes import Array, add_constant, constant_input

StatisticType = Literal["float32", "float16", "int8"]
MAX_INT8 = 127
OUTPUT_AXES = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": 1}
"""Operators whose weights are stored as int8, with the axis of their outputs, along which each has its own scale."""

MIN_WEIGHTS_TO_STORE = 1000


def store_int8(model: ir.Model) -> int:
    """Store large weights as int8 with a scale per output channel, in place; the arithmetic stays in float32.

    Returns:
        Number of layers.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        weight = constant_input(node, 1) if node.op_type in OUTPUT_AXES else None
        if weight is None or weight.size < MIN_WEIGHTS_TO_STORE or (node.op_type == "MatMul" and weight.ndim != 2):
            continue
        output = OUTPUT_AXES[node.op_type]
        scale, rounded = _quantize(weight, tuple(axis for axis in range(weight.ndim) if axis != output))
        values = _add(graph, node, "Cast", add_constant(graph, rounded.astype(np.int8)), to=ir.DataType.FLOAT)
        node.replace_input_with(1, _add(graph, node, "Mul", values, add_constant(graph, scale)))
        count += 1
    return count


def pack_triangles(model: ir.Model, dtype: StatisticType = "float32") -> int:
    """Store stacks of upper triangular matrices (K, r, r), as whitenings are, without the zeros, in place.

    Args:
        model: The graph.
        dtype: Type of the stored values. ``"int8"`` has a scale for each column of each matrix.

    Returns:
        Number of stacks.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        matrices = constant_input(node, 1) if node.op_type == "MatMul" else None
        if matrices is None or matrices.ndim != 3 or np.tril(matrices, -1).any() or matrices.shape[1] < 2:
            continue
        node.replace_input_with(1, _unpacked(graph, node, matrices, dtype))
        count += 1
    return count


def _unpacked(graph: ir.Graph, node: ir.Node, matrices: Array, dtype: StatisticType) -> ir.Value:
    """The matrices, gathered from their upper entries and one zero."""
    number, size, _ = matrices.shape
    scale = None
    if dtype == "int8":
        scale, matrices = _quantize(matrices, 1)
    elif dtype == "float16" and np.abs(matrices).max() > np.finfo(np.float16).max:
        dtype = "float32"
    rows, columns = np.triu_indices(size)
    packed = np.zeros((number, len(rows) + 1))
    packed[:, :-1] = matrices[:, rows, columns]
    indices = np.full((size, size), len(rows))  # that of the zero
    indices[rows, columns] = np.arange(len(rows))
    short = add_constant(graph, indices.ravel().astype(np.uint16 if len(rows) < 1 << 16 else np.int32))
    index = _add(graph, node, "Cast", short, to=ir.DataType.INT32)
    values = _add(graph, node, "Gather", add_constant(graph, packed.astype(dtype)), index, axis=1)
    values = _add(graph, node, "Reshape", values, add_constant(graph, [number, size, size]))
    if dtype != "float32":
        values = _add(graph, node, "Cast", values, to=ir.DataType.FLOAT)
    return values if scale is None else _add(graph, node, "Mul", values, add_constant(graph, scale))


def _quantize(values: Array, axis: int | tuple[int, ...]) -> tuple[Array, Array]:
    """The scale along the axes, and whole numbers from −127 to 127 that make the values when multiplied by it."""
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / MAX_INT8, 1.0)
    return scale, np.round(values / scale)


def _add(graph: ir.Graph, before: ir.Node, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
    node = ir.node(operator, inputs, attributes)
    graph.insert_before(before, node)
    return node.outputs[0]
