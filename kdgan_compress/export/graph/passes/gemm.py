"""Turn convolutions from or to a single pixel into matrix products (Gemm), and a sum of codes into one."""

import math

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.graph.nodes import (
    add_constant,
    constant_input,
    is_pixel,
    num_groups,
    only_consumer,
    replace,
    replace_layer,
    weight_of,
)
from kdgan_compress.export.graph.passes.depth_to_space import upsampling_geometry


def conv_to_gemm(model: ir.Model) -> int:
    """Replace a convolution over its whole input by a matrix product, which may output floats in int8 too.

    Feature map to vector: Flatten, Gemm and, for consumers that read the result as an image, Unsqueeze.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        image, shape = node.inputs[0] if node.inputs else None, node.outputs[0].shape
        if not _covers_input(node) or image is None or image.shape is None or shape is None:
            continue
        weight = weight_of(node)
        matrix = weight.reshape(len(weight), -1)
        flat = ir.node("Flatten", [image], {"axis": 1})
        flat.outputs[0].shape, flat.outputs[0].type = ir.Shape([image.shape[0], matrix.shape[1]]), image.type
        product = ir.node("Gemm", [flat.outputs[0], add_constant(graph, matrix), *node.inputs[2:]], {"transB": 1})
        product.outputs[0].shape, product.outputs[0].type = ir.Shape(shape[:2]), node.outputs[0].type
        for use in list(node.outputs[0].uses()):
            if use.node.op_type == "Flatten":
                use.node.outputs[0].replace_all_uses_with(product.outputs[0])
        axes = add_constant(graph, np.arange(2, len(shape)))
        replace(graph, [node], flat, product, ir.node("Unsqueeze", [product.outputs[0], axes]))
        count += 1
    return count


def conv_transpose_to_gemm(model: ir.Model) -> int:
    """Replace a transposed convolution of a 1×1 image by a matrix product, into which runtimes fuse the activation.

    Vector to feature map: Flatten, Gemm with each channel's bias repeated per position, activation, Reshape.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        image = node.inputs[0] if node.inputs else None
        if not starts_from_pixel(node) or image is None or image.shape is None:
            continue
        weight, bias, source, new = weight_of(node), constant_input(node, 2), image.producer(), []
        if source is not None and source.op_type == "Unsqueeze" and source.inputs[0] is not None:
            flat = source.inputs[0]
        else:
            new = [ir.node("Flatten", [image], {"axis": 1})]
            flat = new[0].outputs[0]
            flat.shape, flat.type = ir.Shape([image.shape[0], len(weight)]), image.type
        inputs = [flat, add_constant(graph, weight.reshape(len(weight), -1).T)]
        if bias is not None:
            inputs.append(add_constant(graph, np.repeat(bias, math.prod(weight.shape[2:]))))
        new.append(ir.node("Gemm", inputs, {"transB": 1}))
        replace_layer(graph, node, new, "Reshape", [add_constant(graph, [-1, *weight.shape[1:]])])
        count += 1
    return count


def fuse_sum_into_gemm(model: ir.Model) -> int:
    """Compute the sum or difference of a code and a matrix product in one product: a − W·f = Gemm(f, −W, a)."""
    graph, count = model.graph, 0
    for node in list(graph):
        if node.op_type not in ("Add", "Sub"):
            continue
        code, product = (value.producer() if value is not None else None for value in node.inputs)
        if product is None or code is None or product.op_type != "Gemm" or code.op_type not in ("Gemm", "Pad"):
            continue
        weight = constant_input(product, 1)
        if weight is None or len(product.inputs) > 2 or only_consumer(product.outputs[0]) is not node:
            continue
        if code.outputs[0].shape is None or code.outputs[0].shape != product.outputs[0].shape:
            continue
        signed = weight if node.op_type == "Add" else -weight
        inputs = [product.inputs[0], add_constant(graph, signed), node.inputs[0]]
        replace(graph, [product, node], ir.node("Gemm", inputs, product.attributes))
        count += 1
    return count


def _covers_input(node: ir.Node) -> bool:
    """Whether a node is a convolution whose kernel has its input's size (larger than 1×1); so the output is 1×1."""
    weight = constant_input(node, 1) if node.op_type == "Conv" else None
    image = node.inputs[0] if weight is not None else None
    if weight is None or image is None or image.shape is None:
        return False
    is_unpadded = "pads" not in node.attributes or not any(node.attributes["pads"].as_ints())
    fits = list(image.shape[2:]) == list(weight.shape[2:]) != [1] * (weight.ndim - 2)
    return num_groups(node) == 1 and is_unpadded and fits


def starts_from_pixel(node: ir.Node) -> bool:
    """Whether a node is a transposed convolution that makes a map of its kernel's size from a 1×1 image."""
    weight = constant_input(node, 1) if node.op_type == "ConvTranspose" else None
    return weight is not None and is_pixel(node.inputs[0]) and upsampling_geometry(node) == (weight.shape[2], 0)
