"""Small steps on a graph of ``onnx_ir`` that every rewrite takes: read a weight, add one, put nodes for others."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[np.float64]

ELEMENTWISE = frozenset({"Relu", "LeakyRelu", "Tanh", "Sigmoid"})
"""Activations, which don't mind where a number stands."""

SHAPE_ONLY = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that leave numbers and their order as they are."""


def array(value: ir.Value | None) -> Array | None:
    """A constant's numbers, float64 that arithmetic on weights rounds only once; None of what is computed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy().astype(np.float64)


def add_constant(graph: ir.Graph, numbers: NDArray[np.generic]) -> ir.Value:
    """A new constant of the graph; floats become float32."""
    if np.issubdtype(numbers.dtype, np.floating) and numbers.dtype != np.float16:
        numbers = numbers.astype(np.float32)
    number = len(graph.initializers)
    while (name := f"c{number}") in graph.initializers:
        number += 1
    tensor = ir.tensor(np.array(numbers, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def num_groups(node: ir.Node) -> int:
    """Of a convolution."""
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value; None where there are several, or the graph gives it out."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def replace(graph: ir.Graph, old: list[ir.Node], *new: ir.Node) -> None:
    """Put nodes in the place of others, the last one's output for the last one's, of the same shape."""
    before, after = old[-1].outputs[0], new[-1].outputs[0]
    after.shape, after.type = before.shape, before.type
    ir.convenience.replace_nodes_and_values(graph, old[-1], old, new, [before], [after])
