"""Turn convolutions from or to a single pixel into matrix products (Gemm), and a difference of codes into one."""

import math

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.graph.nodes import (
    ELEMENTWISE,
    add_constant,
    constant_value,
    num_groups,
    only_consumer,
    replace,
)
from kdgan_compress.export.graph.passes.depth_to_space import upsampling_geometry


def conv_to_gemm(model: ir.Model) -> int:
    """Replace a convolution over its whole input by a matrix product, which may output floats in int8 too."""
    graph = model.graph
    nodes = [node for node in graph if node.op_type == "Conv" and _covers_input(node)]
    for node in nodes:
        _conv_as_gemm(graph, node)
    return len(nodes)


def conv_transpose_to_gemm(model: ir.Model) -> int:
    """Replace a transposed convolution of a 1×1 image by a matrix product, into which runtimes fuse the activation."""
    graph = model.graph
    nodes = [node for node in graph if node.op_type == "ConvTranspose" and _starts_from_pixel(node)]
    for node in nodes:
        _conv_transpose_as_gemm(graph, node)
    return len(nodes)


def fuse_sub_into_gemm(model: ir.Model) -> int:
    """Compute the difference of a code and a matrix product in one product: a − W·f = Gemm(f, −W, a)."""
    graph, count = model.graph, 0
    for node in list(graph):
        product = node.inputs[1].producer() if node.op_type == "Sub" and node.inputs[1] is not None else None
        code = node.inputs[0].producer() if node.op_type == "Sub" and node.inputs[0] is not None else None
        if product is None or code is None or product.op_type != "Gemm" or code.op_type not in ("Gemm", "Pad"):
            continue
        weight = constant_value(product.inputs[1])
        if weight is None or len(product.inputs) > 2 or only_consumer(product.outputs[0]) is not node:
            continue
        if code.outputs[0].shape is None or code.outputs[0].shape != product.outputs[0].shape:
            continue
        inputs = [product.inputs[0], add_constant(graph, -weight), node.inputs[0]]
        replace(graph, [product, node], ir.node("Gemm", inputs, product.attributes))
        count += 1
    return count


def _conv_as_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """Feature map to vector: Flatten, Gemm and, for consumers that read the result as an image, Unsqueeze."""
    weight, image, shape = constant_value(node.inputs[1]), node.inputs[0], node.outputs[0].shape
    assert weight is not None
    assert shape is not None
    flat = ir.node("Flatten", [image], {"axis": 1})
    matrix = add_constant(graph, weight.reshape(len(weight), -1))
    product = ir.node("Gemm", [flat.outputs[0], matrix, *node.inputs[2:]], {"transB": 1})
    product.outputs[0].shape, product.outputs[0].type = ir.Shape(shape[:2]), node.outputs[0].type
    if image is not None and image.shape is not None:
        flat.outputs[0].shape, flat.outputs[0].type = ir.Shape([image.shape[0], matrix.shape[1]]), image.type  # type: ignore[index]
    for use in list(node.outputs[0].uses()):
        if use.node.op_type == "Flatten":
            use.node.outputs[0].replace_all_uses_with(product.outputs[0])
    axes = add_constant(graph, np.arange(2, len(shape)))
    replace(graph, [node], flat, product, ir.node("Unsqueeze", [product.outputs[0], axes]))


def _conv_transpose_as_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """Vector to feature map: Flatten, Gemm with each channel's bias repeated per position, activation, Reshape."""
    weight, image = constant_value(node.inputs[1]), node.inputs[0]
    assert weight is not None
    assert image is not None
    num_positions = math.prod(weight.shape[2:])
    source = image.producer()
    if source is not None and source.op_type == "Unsqueeze" and source.inputs[0] is not None:
        flat, new = source.inputs[0], []
    else:
        new = [ir.node("Flatten", [image], {"axis": 1})]
        flat = new[0].outputs[0]
        assert image.shape is not None
        flat.shape, flat.type = ir.Shape([image.shape[0], len(weight)]), image.type
    inputs = [flat, add_constant(graph, weight.reshape(len(weight), -1).T)]
    bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        inputs.append(add_constant(graph, np.repeat(bias, num_positions)))
    new.append(ir.node("Gemm", inputs, {"transB": 1}))
    old, follower = [node], only_consumer(node.outputs[0])
    if follower is not None and follower.op_type in ELEMENTWISE:
        new.append(ir.node(follower.op_type, [new[-1].outputs[0]], follower.attributes))
        old.append(follower)
    shape = add_constant(graph, np.array([-1, *weight.shape[1:]]))
    replace(graph, old, *new, ir.node("Reshape", [new[-1].outputs[0], shape]))


def _starts_from_pixel(node: ir.Node) -> bool:
    """Whether a transposed convolution makes a map of its kernel's size from a 1×1 image."""
    image, weight = node.inputs[0], constant_value(node.inputs[1])
    if image is None or image.shape is None or weight is None:
        return False
    return list(image.shape[2:]) == [1, 1] and upsampling_geometry(node) == (weight.shape[2], 0)


def _covers_input(node: ir.Node) -> bool:
    """Whether a convolution's kernel has the size of its input (larger than 1×1), so that the output is 1×1."""
    image, weight = node.inputs[0], constant_value(node.inputs[1])
    if image is None or image.shape is None or weight is None or node.outputs[0].shape is None:
        return False
    is_unpadded = "pads" not in node.attributes or not any(node.attributes["pads"].as_ints())
    fits = list(image.shape[2:]) == list(weight.shape[2:]) != [1] * (weight.ndim - 2)
    return num_groups(node) == 1 and is_unpadded and fits
