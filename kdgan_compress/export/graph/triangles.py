"""Store the whitenings of a statistic in less space: they are upper triangular, so half of each is zero.

The file has the upper entries in a row, from which a Gather rebuilds the matrices when the file is loaded: runtimes
compute what depends on constants only once.
"""

from typing import Literal

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.graph.nodes import Array, add_constant, constant_input

StatisticType = Literal["float32", "float16", "int8"]
MAX_INT8 = 127


def pack_triangles(model: ir.Model, dtype: StatisticType = "float32") -> int:
    """Store stacks of upper triangular matrices (K, r, r) that vectors are multiplied by in less space, in place.

    Args:
        model: The graph.
        dtype: Type of the stored values. ``"int8"`` has a scale for each column of each matrix.

    Returns:
        Number of stacks that were packed.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        matrices = constant_input(node, 1) if node.op_type == "MatMul" else None
        if matrices is None or matrices.ndim != 3 or np.tril(matrices, -1).any() or matrices.shape[1] < 2:
            continue
        node.replace_input_with(1, _unpacked(graph, node, matrices, dtype))
        count += 1
    return count


def _unpacked(graph: ir.Graph, before: ir.Node, matrices: Array, dtype: StatisticType) -> ir.Value:
    """The matrices, computed from their packed entries before a node."""
    number, size, _ = matrices.shape
    scale = None
    if dtype == "int8":
        scale = np.maximum(np.abs(matrices).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / MAX_INT8
        matrices = np.round(matrices / scale)
    elif dtype == "float16" and np.abs(matrices).max() > np.finfo(np.float16).max:
        dtype = "float32"
    rows, columns = np.triu_indices(size)
    packed = np.zeros((number, len(rows) + 1))  # the last entry of each is the zero below the diagonal
    packed[:, :-1] = matrices[:, rows, columns]
    indices = np.full((size, size), len(rows))
    indices[rows, columns] = np.arange(len(rows))

    def add(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        created = ir.node(operator, inputs, attributes)
        graph.insert_before(before, created)
        return created.outputs[0]

    smallest = add_constant(graph, indices.astype(np.uint16 if len(rows) < 1 << 16 else np.int32).ravel())
    values = add("Gather", add_constant(graph, packed.astype(dtype)), add("Cast", smallest, to=ir.DataType.INT32), axis=1)
    values = add("Reshape", values, add_constant(graph, [number, size, size]))
    if dtype != "float32":
        values = add("Cast", values, to=ir.DataType.FLOAT)
    return values if scale is None else add("Mul", values, add_constant(graph, scale))
