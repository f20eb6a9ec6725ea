"""Exact rewrites of the core: the same score, to rounding, of a graph that is smaller, faster or runs in more places.

Each takes a model, changes it in place and says how often it found something to change. They look at operators and
weights alone, so they work on whatever GAN the graph came from.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from kdgan_compress.export.conv_transpose import geometry_of, split_conv_transposes
from kdgan_compress.export.latent import collapse_latent
from kdgan_compress.export.nodes import ELEMENTWISE, add_constant, array, num_groups, only_consumer, replace


def fold_batch_norms(model: ir.Model) -> int:
    """Batch norm goes into the convolution before it: W′ = W·s and b′ = β + (b − μ)·s with s = γ/√(σ²+ε)."""
    graph, count = model.graph, 0
    for node in list(graph):
        before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "BatchNormalization" or before is None or before.op_type not in ("Conv", "ConvTranspose"):
            continue
        if before.op_type == "ConvTranspose" and num_groups(before) > 1:
            continue
        statistics = [array(value) for value in node.inputs[1:]]
        weight, bias = array(before.inputs[1]), array(before.inputs[2]) if len(before.inputs) > 2 else None
        if weight is None or any(each is None for each in statistics) or only_consumer(before.outputs[0]) is not node:
            continue
        gamma, beta, mean, variance = (np.float64(each) for each in statistics)
        scale = gamma / np.sqrt(variance + node.attributes["epsilon"].as_float())
        along = (1, -1) if before.op_type == "ConvTranspose" else (-1, 1)
        folded = weight * scale.reshape(*along, *[1] * (weight.ndim - 2))
        shift = beta + ((0 if bias is None else bias) - mean) * scale
        inputs = [before.inputs[0], add_constant(graph, folded), add_constant(graph, shift)]
        replace(graph, [before, node], ir.node(before.op_type, inputs, before.attributes))
        count += 1
    return count


def make_heads_dense(model: ir.Model) -> int:
    """A convolution over its whole input becomes a matrix product, whose int8 form may give floats."""
    graph = model.graph
    found = [node for node in graph if node.op_type == "Conv" and _covers_input(node)]
    for node in found:
        _gather(graph, node)
    return len(found)


def make_opening_dense(model: ir.Model) -> int:
    """A transposed convolution of a 1×1 image becomes a matrix product, into which runtimes fuse the activation."""
    graph = model.graph
    found = [node for node in graph if node.op_type == "ConvTranspose" and _spreads_vector(node)]
    for node in found:
        _spread(graph, node)
    return len(found)


def subtract_inside(model: ir.Model) -> int:
    """The difference of a code and a matrix product becomes one product: a − W·f = Gemm(f, −W, a)."""
    graph, count = model.graph, 0
    for node in list(graph):
        product = node.inputs[1].producer() if node.op_type == "Sub" and node.inputs[1] is not None else None
        code = node.inputs[0].producer() if node.op_type == "Sub" and node.inputs[0] is not None else None
        if product is None or code is None or product.op_type != "Gemm" or code.op_type not in ("Gemm", "Pad"):
            continue
        weight = array(product.inputs[1])
        if weight is None or len(product.inputs) > 2 or only_consumer(product.outputs[0]) is not node:
            continue
        if code.outputs[0].shape is None or code.outputs[0].shape != product.outputs[0].shape:
            continue
        inputs = [product.inputs[0], add_constant(graph, -weight), node.inputs[0]]
        replace(graph, [product, node], ir.node("Gemm", inputs, product.attributes))
        count += 1
    return count


def fold_scale(model: ir.Model) -> int:
    """Preprocessing's x / h − 1 before a convolution alone becomes x − h: the convolution's weights take the 1 / h."""
    graph, count = model.graph, 0
    for divide in [node for node in graph if node.op_type == "Div"]:
        minus = only_consumer(divide.outputs[0])
        layer = only_consumer(minus.outputs[0]) if minus is not None else None
        if minus is None or layer is None or (minus.op_type, layer.op_type) != ("Sub", "Conv"):
            continue
        half, one, weight = array(divide.inputs[1]), array(minus.inputs[1]), array(layer.inputs[1])
        if half is None or weight is None or one is None or half.size != 1 or not np.array_equal(one, np.ones(())):
            continue
        layer.replace_input_with(1, add_constant(graph, weight / half))
        replace(graph, [divide, minus], ir.node("Sub", divide.inputs))
        count += 1
    return count


def spell_out(model: ir.Model) -> int:
    """Operators that mobile runtimes lack become some that they have.

    Sums and Euclidean norms become means, ‖a‖₂ = √(n·mean(a²)), Flatten becomes Reshape, and below a norm the
    difference to a code padded with zeros is one of the first coordinates with the others behind it.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        new = _spelt_out(graph, node)
        if new:
            replace(graph, [node], *new)
            count += 1
    return count


REWRITES: Mapping[str, Callable[[ir.Model], int]] = {
    "batch-norm": fold_batch_norms,
    "latent": collapse_latent,
    "heads": make_heads_dense,
    "opening": make_opening_dense,
    "difference": subtract_inside,
    "conv-transpose": split_conv_transposes,
    "score": spell_out,
    "scale": fold_scale,
}
"""All of them, in the order they are made in; ``scale`` needs the preprocessing around the core."""


def rewrite(model: ir.Model, names: Iterable[str]) -> dict[str, int]:
    """Make the named rewrites in place; how often each found something to change."""
    chosen, counts = set(names), {}
    for name, make in REWRITES.items():
        if name in chosen:
            counts[name] = make(model)
            passes.CommonSubexpressionEliminationPass()(model)
            passes.RemoveUnusedNodesPass()(model)
    return counts


def _spelt_out(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    """What to put for a node; nothing where it can stay."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.shape is None:
        return []
    if node.op_type == "Flatten":
        lengths = [length for length in value.shape[1:] if isinstance(length, int)]
        if len(lengths) < len(value.shape) - 1:
            return []
        return [ir.node("Reshape", [value, add_constant(graph, np.array([-1, math.prod(lengths)]))])]
    padded = value.producer() if node.op_type == "Sub" else None
    if padded is not None and padded.op_type == "Pad":
        return _compare_first(graph, padded, node)
    axes = array(node.inputs[1]) if node.op_type in ("ReduceL2", "ReduceSum") and len(node.inputs) > 1 else None
    if axes is None or value.dtype not in (ir.DataType.FLOAT, None):
        return []
    lengths = [length for axis in axes if isinstance(length := value.shape[int(axis)], int)]
    if len(lengths) < len(axes):
        return []
    number = add_constant(graph, np.array(math.prod(lengths), np.float32))
    nodes = [ir.node("Mul", [value, value])] if node.op_type == "ReduceL2" else []
    terms = nodes[0].outputs[0] if nodes else value
    nodes.append(ir.node("ReduceMean", [terms, node.inputs[1]], node.attributes))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], number]))
    if node.op_type == "ReduceL2":
        nodes.append(ir.node("Sqrt", [nodes[-1].outputs[0]]))
    return nodes


def _compare_first(graph: ir.Graph, padded: ir.Node, difference: ir.Node) -> list[ir.Node]:
    """The difference of ``[a, 0]`` and b without Pad, for a norm that reads it and no sign: ``[a − b₁, b₂]``."""
    reader, pads, code = only_consumer(difference.outputs[0]), array(padded.inputs[1]), difference.inputs[1]
    if reader is None or reader.op_type != "ReduceL2" or pads is None or code is None or code.shape is None:
        return []
    length, num_rest = code.shape[1], int(pads[-1])
    with_zeros = len(padded.inputs) == 2 and "mode" not in padded.attributes
    if not (with_zeros and isinstance(length, int)) or np.count_nonzero(pads) != 1 or len(pads) != 4 or num_rest < 1:
        return []
    parts = ir.node(
        "Split", [code, add_constant(graph, np.array([length - num_rest, num_rest]))], {"axis": 1}, num_outputs=2
    )
    first = ir.node("Sub", [padded.inputs[0], parts.outputs[0]])
    return [parts, first, ir.node("Concat", [first.outputs[0], parts.outputs[1]], {"axis": 1})]


def _gather(graph: ir.Graph, node: ir.Node) -> None:
    """Map to vector: Flatten, Gemm and, for those who read it as an image, Unsqueeze."""
    weight, image, shape = array(node.inputs[1]), node.inputs[0], node.outputs[0].shape
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


def _spread(graph: ir.Graph, node: ir.Node) -> None:
    """Vector to map: Flatten, Gemm with the bias of each channel at all its places, the activation, Reshape."""
    weight, image = array(node.inputs[1]), node.inputs[0]
    assert weight is not None
    assert image is not None
    places = math.prod(weight.shape[2:])
    source = image.producer()
    if source is not None and source.op_type == "Unsqueeze" and source.inputs[0] is not None:
        flat, new = source.inputs[0], []
    else:
        new = [ir.node("Flatten", [image], {"axis": 1})]
        flat = new[0].outputs[0]
        assert image.shape is not None
        flat.shape, flat.type = ir.Shape([image.shape[0], len(weight)]), image.type
    inputs = [flat, add_constant(graph, weight.reshape(len(weight), -1).T)]
    bias = array(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        inputs.append(add_constant(graph, np.repeat(bias, places)))
    new.append(ir.node("Gemm", inputs, {"transB": 1}))
    old, follower = [node], only_consumer(node.outputs[0])
    if follower is not None and follower.op_type in ELEMENTWISE:
        new.append(ir.node(follower.op_type, [new[-1].outputs[0]], follower.attributes))
        old.append(follower)
    shape = add_constant(graph, np.array([-1, *weight.shape[1:]]))
    replace(graph, old, *new, ir.node("Reshape", [new[-1].outputs[0], shape]))


def _spreads_vector(node: ir.Node) -> bool:
    """Whether a transposed convolution makes a map of its kernel's size from a 1×1 image."""
    image, weight = node.inputs[0], array(node.inputs[1])
    if image is None or image.shape is None or weight is None:
        return False
    return list(image.shape[2:]) == [1, 1] and geometry_of(node) == (weight.shape[2], 0)


def _covers_input(node: ir.Node) -> bool:
    """Whether a convolution makes 1×1 of an image of its kernel's size, which is larger."""
    image, weight = node.inputs[0], array(node.inputs[1])
    if image is None or image.shape is None or weight is None or node.outputs[0].shape is None:
        return False
    unpadded = "pads" not in node.attributes or not any(node.attributes["pads"].as_ints())
    fits = list(image.shape[2:]) == list(weight.shape[2:]) != [1] * (weight.ndim - 2)
    return num_groups(node) == 1 and unpadded and fits
