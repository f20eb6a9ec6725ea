"""Fold a fitted score's projection into the layers before it.

The features of a fitted score are the codes z1 = C₁f₁ and z2 = C₂f₂, their difference or both, and its statistic starts
with r = P₁ᵀz1 + P₂ᵀz2 − o. No norm or activation lies between, so r = A f₁ + B f₂ − o with A = P₁ᵀC₁ and B = P₂ᵀC₂, and
z2 need not be computed. The decoder reads z1 by a transposed convolution V. It can start from D f₁ with D = VᵀC₁, then
z1 need not be computed either. If only a Euclidean norm reads r (one Gaussian for all), r is replaced by its
coordinates in Q of [A B o] = QR, as in ``latent.py``. Of these the pass chooses what has the fewest weights.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.graph.nodes import (
    Array,
    add_constant,
    constant_input,
    only_consumer,
    replace,
    replace_layer,
)
from kdgan_compress.export.graph.passes.gemm import starts_from_pixel
from kdgan_compress.export.graph.passes.latent import (
    QR_ZERO_TOL,
    code_readers,
    code_source,
    makes_vector,
    reads_vector,
    weight_matrix,
)


@dataclass(frozen=True, eq=False)
class ProjectionPattern:
    """The nodes from a fitted score's features to its projection.

    Attributes:
        to_latent: Convolution to z1; its weight as a matrix is C₁ (latent, n₁).
        to_latent2: Convolution to z2, with C₂ (latent, n₂).
        decoder_input: Transposed convolution that reads z1; its weight as a matrix is V (latent, n).
        codes: z1 and z2 as vectors (M, latent).
        product: The MatMul of the features with the projection.
        difference: The Sub of the product and the offset, which outputs r.
        projections: P₁ and P₂ (latent, rank).
        offset: o (rank,).
    """

    to_latent: ir.Node
    to_latent2: ir.Node
    decoder_input: ir.Node
    codes: tuple[ir.Value, ir.Value]
    product: ir.Node
    difference: ir.Node
    projections: tuple[Array, Array]
    offset: Array

    @property
    def num_weights(self) -> int:
        """Number of the weights that the pass may replace."""
        return weight_matrix(self.product).size + self.num_kept(True, True)

    def num_kept(self, keeps_z1: bool, keeps_z2: bool) -> int:
        """Number of weights of the layers around z1 and z2 that are kept; both convolutions may have the same ones."""
        layers = [self.to_latent, self.decoder_input] if keeps_z1 else []
        layers += [self.to_latent2] if keeps_z2 else []
        num = sum(weight_matrix(node).size for node in {id(node.inputs[1]): node for node in layers}.values())
        decoder = weight_matrix(self.decoder_input)
        return num if keeps_z1 else num + decoder.shape[1] * weight_matrix(self.to_latent).shape[1]


@dataclass(frozen=True, eq=False)
class _Affine:
    """r = first·x₁ + second·x₂ − offset, where the rows that ``first`` lacks are zero."""

    first: Array
    second: Array
    offset: Array

    @property
    def num_weights(self) -> int:
        return self.first.size + self.second.size

    def triangular(self) -> "_Affine":
        """A map to vectors of the same norm, with fewer weights if r is longer than x₁."""
        width = self.first.shape[1]
        if len(self.first) <= width:
            return self
        upper: Array = np.linalg.qr(np.column_stack([self.first, self.second, self.offset]), mode="r")  # type: ignore[assignment]  # numpy types every mode alike
        upper[np.abs(upper) < QR_ZERO_TOL * np.abs(upper).max()] = 0
        return _Affine(upper[:width, :width], upper[:, width:-1], upper[:, -1])


def fold_projection(model: ir.Model) -> int:
    """Fold the projection of a fitted score, if that leaves fewer weights; returns 1 if it did, else 0."""
    graph = model.graph
    found = find_projection(graph)
    if found is None:
        return 0
    norm = _norm_of(found.difference)
    plans = {
        (keeps_z1, keeps_z2): _affine(found, keeps_z1, keeps_z2, is_norm=norm is not None)
        for keeps_z1, keeps_z2 in ((False, False), (True, False), (True, True))
        if keeps_z1 or starts_from_pixel(found.decoder_input)
    }
    num_weights = {keeps: plan.num_weights + found.num_kept(*keeps) for keeps, plan in plans.items()}
    keeps_z1, keeps_z2 = keeps = min(num_weights, key=lambda each: num_weights[each])
    if num_weights[keeps] >= found.num_weights:
        return 0
    features = found.codes[0] if keeps_z1 else _flat_input(graph, found.to_latent)
    features2 = found.codes[1] if keeps_z2 else _flat_input(graph, found.to_latent2)
    result = _apply(graph, found.difference, plans[keeps], features, features2)
    if not keeps_z1:
        matrix = weight_matrix(found.decoder_input).T @ weight_matrix(found.to_latent)
        _start_decoder(graph, found.decoder_input, features, matrix)
    if norm is None:
        found.difference.outputs[0].replace_all_uses_with(result)
    else:
        _take_norm(graph, norm, result)
    return 1


def find_projection(graph: ir.Graph) -> ProjectionPattern | None:
    """Find a matrix product of two codes, of which one also feeds a transposed convolution, minus a constant."""
    for product in graph:
        matrix = constant_input(product, 1) if product.op_type == "MatMul" else None
        difference, value = only_consumer(product.outputs[0]), product.inputs[0] if product.inputs else None
        features = value.producer() if value is not None else None
        if matrix is None or matrix.ndim != 2 or difference is None or features is None:
            continue
        offset = constant_input(difference, 1) if difference.op_type == "Sub" else None
        halves = _split(features, matrix)
        if offset is None or offset.shape != matrix.shape[1:] or halves is None:
            continue
        for index in (0, 1):
            first, second = code_source(features.inputs[index]), code_source(features.inputs[1 - index])
            decoder = None if first is None or second is None else _decoder_of(first, second, features)
            codes = features.inputs[index], features.inputs[1 - index]
            if first is not None and second is not None and decoder is not None:
                projections = halves[index], halves[1 - index]
                return ProjectionPattern(first, second, decoder, codes, product, difference, projections, offset)  # type: ignore[arg-type]
    return None


def _split(features: ir.Node, matrix: Array) -> tuple[Array, Array] | None:
    """The rows of the projection for the two inputs of ``features``, if it is [a; b] or a − b of vectors."""
    shapes = [None if value is None else value.shape for value in features.inputs]
    if only_consumer(features.outputs[0]) is None or len(shapes) != 2 or shapes[0] is None or len(shapes[0]) != 2:
        return None
    if features.op_type == "Sub":
        return (matrix, -matrix) if shapes[0] == shapes[1] else None
    is_stack = features.op_type == "Concat" and features.attributes["axis"].as_int() in (1, -1)
    length = shapes[0][1]
    return (matrix[:length], matrix[length:]) if is_stack and isinstance(length, int) else None


def _decoder_of(first: ir.Node, second: ir.Node, features: ir.Node) -> ir.Node | None:
    """The transposed convolution of z1, if both nodes are bare convolutions to codes that nothing else reads."""
    if first is second or not (makes_vector(first) and makes_vector(second)):
        return None
    readers = [node for node in code_readers(first.outputs[0]) if node is not features]
    if code_readers(second.outputs[0]) != [features] or len(readers) != 1:
        return None
    return readers[0] if reads_vector(readers[0]) else None


def _norm_of(difference: ir.Node) -> ir.Node | None:
    """The Euclidean norm over r, if nothing else reads r except changes of shape that keep its length."""
    length = difference.outputs[0].shape[1] if difference.outputs[0].shape is not None else None
    reader = only_consumer(difference.outputs[0])
    if reader is not None and reader.op_type in ("Reshape", "Unsqueeze"):
        reader = only_consumer(reader.outputs[0])
    value = None if reader is None else reader.inputs[0]
    if reader is None or reader.op_type != "ReduceL2" or value is None or value.shape is None:
        return None
    axes, rank = constant_input(reader, 1), len(value.shape)
    is_last = axes is not None and axes.tolist() in ([rank - 1], [-1])
    keeps = "keepdims" in reader.attributes and reader.attributes["keepdims"].as_int() == 0
    return reader if is_last and keeps and isinstance(length, int) and value.shape[rank - 1] == length else None


def _affine(found: ProjectionPattern, keeps_z1: bool, keeps_z2: bool, is_norm: bool) -> _Affine:
    """R as a function of the codes that are kept and of the features before the others."""
    first, second = (matrix.T for matrix in found.projections)
    if not keeps_z1:
        first = first @ weight_matrix(found.to_latent)
    if not keeps_z2:
        second = second @ weight_matrix(found.to_latent2)
    affine = _Affine(first, second, found.offset)
    return affine.triangular() if is_norm else affine


def _apply(graph: ir.Graph, before: ir.Node, affine: _Affine, first: ir.Value, second: ir.Value) -> ir.Value:
    """Compute r from vectors x₁ and x₂."""
    num_rows, num_first = len(affine.second), len(affine.first)
    is_padded = num_first < num_rows
    product = _gemm(graph, before, first, affine.first, None if is_padded else -affine.offset)
    if is_padded:
        pads = add_constant(graph, [0, 0, 0, num_rows - num_first])
        product = _insert(graph, before, ir.node("Pad", [product, pads]), num_rows)
    product2 = _gemm(graph, before, second, affine.second, -affine.offset if is_padded else None)
    return _insert(graph, before, ir.node("Add", [product, product2]), num_rows)


def _flat_input(graph: ir.Graph, convolution: ir.Node) -> ir.Value:
    """The input of a convolution over its whole input, as vectors (M, n)."""
    image = convolution.inputs[0]
    assert image is not None
    return _insert(graph, convolution, ir.node("Flatten", [image], {"axis": 1}), weight_matrix(convolution).shape[1])


def _gemm(graph: ir.Graph, before: ir.Node, value: ir.Value, matrix: Array, bias: Array | None) -> ir.Value:
    constants = [add_constant(graph, each) for each in (matrix, bias) if each is not None]
    return _insert(graph, before, ir.node("Gemm", [value, *constants], {"transB": 1}), len(matrix))


def _insert(graph: ir.Graph, before: ir.Node, node: ir.Node, length: int) -> ir.Value:
    """Insert a node that outputs vectors of this length."""
    (output,), value = node.outputs, node.inputs[0]
    assert value is not None
    assert value.shape is not None
    output.shape, output.type = ir.Shape([value.shape[0], length]), value.type
    graph.insert_before(before, node)
    return output


def _start_decoder(graph: ir.Graph, decoder: ir.Node, features: ir.Value, matrix: Array) -> None:
    """Compute the decoder's first feature map from the encoder's features; each channel's bias counts per position."""
    weight, bias = constant_input(decoder, 1), constant_input(decoder, 2)
    assert weight is not None
    shape = weight.shape[1:]
    repeated = [] if bias is None else [add_constant(graph, np.repeat(bias, math.prod(shape[1:])))]
    product = ir.node("Gemm", [features, add_constant(graph, matrix), *repeated], {"transB": 1})
    assert features.shape is not None
    product.outputs[0].shape, product.outputs[0].type = ir.Shape([features.shape[0], len(matrix)]), features.type
    replace_layer(graph, decoder, [product], "Reshape", [add_constant(graph, [-1, *shape])])


def _take_norm(graph: ir.Graph, norm: ir.Node, result: ir.Value) -> None:
    """Take the norm of the vectors themselves, then arrange the scores as before."""
    shape = norm.outputs[0].shape
    assert shape is not None
    assert result.shape is not None
    length = ir.node("ReduceL2", [result, add_constant(graph, [1])], {"keepdims": 0})
    length.outputs[0].shape, length.outputs[0].type = ir.Shape([result.shape[0]]), result.type
    reader = only_consumer(norm.outputs[0])
    if list(shape[1:]) == [1] and reader is not None and reader.op_type == "Squeeze":
        replace(graph, [norm, reader], length)
    else:
        sizes = [-1, *map(int, shape[1:])]  # type: ignore[arg-type]  # only the first is dynamic
        replace(graph, [norm], length, ir.node("Reshape", [length.outputs[0], add_constant(graph, sizes)]))
