"""Read and write graphs of ``onnx_ir``: constants, consumers, replacement of nodes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

ELEMENTWISE = frozenset({"Relu", "LeakyRelu", "Tanh", "Sigmoid"})
"""Activations, which commute with any change of shape."""

SHAPE_ONLY = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that keep the values and their order."""


def constant_value(value: ir.Value | None) -> Array | None:
    """A constant as float64, so that arithmetic on weights rounds only once; None if the value is computed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy().astype(np.float64)


def constant_input(node: ir.Node, index: int) -> Array | None:
    """A node's constant input; None if it is computed or missing."""
    return constant_value(node.inputs[index]) if index < len(node.inputs) else None


def weight_of(node: ir.Node) -> Array:
    """The weights of a layer that was found to have constant ones."""
    weight = constant_input(node, 1)
    assert weight is not None
    return weight


def add_constant(graph: ir.Graph, values: ArrayLike) -> ir.Value:
    """Add a constant to the graph; floats other than float16 become float32."""
    array = np.array(values, order="C")
    if np.issubdtype(array.dtype, np.floating) and array.dtype != np.float16:
        array = array.astype(np.float32)
    number = len(graph.initializers)
    while (name := f"c{number}") in graph.initializers:
        number += 1
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def num_groups(node: ir.Node) -> int:
    """The number of groups of a convolution."""
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def is_pixel(value: ir.Value | None) -> bool:
    """Whether a value is known to be 1×1 images."""
    return value is not None and value.shape is not None and list(value.shape[2:]) == [1, 1]


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The node that reads a value; None if there are several or the value is a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def replace(graph: ir.Graph, old: list[ir.Node], *new: ir.Node) -> None:
    """Replace nodes; the last new output, of the same shape, takes the role of the last old one."""
    before, after = old[-1].outputs[0], new[-1].outputs[0]
    after.shape, after.type = before.shape, before.type
    ir.convenience.replace_nodes_and_values(graph, old[-1], old, new, [before], [after])


def replace_layer(
    graph: ir.Graph,
    layer: ir.Node,
    new: list[ir.Node],
    reshaping: str,
    inputs: Sequence[ir.Value] = (),
    **attributes: Any,
) -> None:
    """Replace a layer by nodes and a reshaping operator; an activation after the layer moves before the latter."""
    old, follower = [layer], only_consumer(layer.outputs[0])
    if follower is not None and follower.op_type in ELEMENTWISE:
        new = [*new, ir.node(follower.op_type, [new[-1].outputs[0]], follower.attributes)]
        old.append(follower)
    replace(graph, old, *new, ir.node(reshaping, [new[-1].outputs[0], *inputs], attributes))
