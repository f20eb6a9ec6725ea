"""The latent collapsed: z carries no more than the features behind it, so a basis change makes it shorter.

The encoder's head W₁ and the decoder's first transposed convolution V have no norm or activation between them, and
‖z1 − z2‖₂ = ‖W₁f₁ − W₂f₂‖₂. With [W₁ −W₂] = QR the score is ‖R[f₁; f₂]‖₂, and the decoder's Vᵀz1 is (QᵀV)ᵀR₁f₁: z1 and
z2 by their coordinates in Q. Where f has fewer numbers than z that is smaller, and the same but for rounding.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from kdgan_compress.export.nodes import SHAPE_ONLY, Array, add_constant, array, num_groups, only_consumer

ANY_LENGTH = SHAPE_ONLY - {"Reshape"}
"""Operators that leave a code a code, whatever its length."""

ROUNDING = 1e-12
"""What is smaller, next to the largest, is a zero of R; the rest of it would make every process's file another."""


@dataclass(frozen=True, eq=False)
class Latent:
    """Where a graph makes and uses its latent code.

    Attributes:
        head: The convolution that makes z1 of a feature map, and its weight as a matrix W₁ (latent, n₁).
        opening: The transposed convolution that reads z1, and its weight V (latent, n).
        second: The convolution that makes z2, its weight W₂ (latent, n₂) and the Sub of the two; None where the score
            doesn't compare codes.
    """

    head: ir.Node
    opening: ir.Node
    second: ir.Node | None
    difference: ir.Node | None

    @property
    def size(self) -> int:
        """Length of z."""
        return int(_matrix(self.head).shape[0])


def collapse_latent(model: ir.Model) -> int:
    """Give codes their coordinates in Q, if that leaves fewer weights; how often it did."""
    latent = find_latent(model.graph)
    if latent is None:
        return 0
    first, opening = _matrix(latent.head), _matrix(latent.opening)
    second = np.zeros((len(first), 0)) if latent.second is None else _matrix(latent.second)
    basis, _ = np.linalg.qr(np.hstack([first, -second]))
    num_first, num_second = min(first.shape), basis.shape[1] if latent.second is not None else 0
    needed = num_first * (first.shape[1] + opening.shape[1]) + num_second * second.shape[1]
    if needed >= first.size + opening.size + second.size:
        return 0
    _change_basis(model.graph, latent, basis[:, :num_first], basis)
    return 1


def truncate_latent(model: ir.Model, rank: int) -> float:
    """Keep z1 and z2 only by their first coordinates in the left singular vectors of [W₁ −W₂]: smaller, not exact.

    Args:
        model: Before any other rewrite of its latent.
        rank: Coordinates kept, 1 ≤ rank < length of z.

    Returns:
        Share of Σσ² that is lost.
    """
    latent = find_latent(model.graph)
    assert latent is not None, "the caller has looked"
    first = _matrix(latent.head)
    both = first if latent.second is None else np.hstack([first, -_matrix(latent.second)])
    vectors, singular, _ = np.linalg.svd(both, full_matrices=False)
    basis = vectors[:, :rank]
    _change_basis(model.graph, latent, basis, basis)
    return float((singular[rank:] ** 2).sum() / (singular**2).sum())


def find_latent(graph: ir.Graph) -> Latent | None:
    """The one place where a bare convolution to a vector feeds a bare transposed convolution and nothing else."""
    for head in graph:
        if not _makes_vector(head):
            continue
        ends = _ends(head.outputs[0])
        openings = [node for node in ends if _reads_vector(node)]
        others = [node for node in ends if node not in openings]
        if len(openings) != 1 or len(others) > 1:
            continue
        if not others:
            return Latent(head, openings[0], None, None)
        second = _other_head(others[0], head)
        if second is not None:
            return Latent(head, openings[0], second, others[0])
    return None


def _makes_vector(node: ir.Node) -> bool:
    """Whether a node is a convolution without bias from a whole feature map to one vector."""
    shape = node.outputs[0].shape
    is_bare = node.op_type == "Conv" and len(node.inputs) == 2 and array(node.inputs[1]) is not None
    return is_bare and num_groups(node) == 1 and shape is not None and list(shape[2:]) == [1, 1]


def _reads_vector(node: ir.Node) -> bool:
    """Whether a node is a transposed convolution of a 1×1 image."""
    image = node.inputs[0] if node.inputs else None
    if node.op_type != "ConvTranspose" or num_groups(node) > 1 or array(node.inputs[1]) is None:
        return False
    return image is not None and image.shape is not None and list(image.shape[2:]) == [1, 1]


def _ends(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value for its numbers, whatever shape it takes on the way."""
    if value.is_graph_output():
        return [node for node in [value.producer()] if node is not None]
    ends: list[ir.Node] = []
    for use in value.uses():
        ends += _ends(use.node.outputs[0]) if use.node.op_type in ANY_LENGTH else [use.node]
    return ends


def _other_head(difference: ir.Node, head: ir.Node) -> ir.Node | None:
    """The head of the code that is subtracted from z1 (or the other way round), read by a Euclidean norm alone."""
    reader = only_consumer(difference.outputs[0]) if difference.op_type == "Sub" else None
    axes = array(reader.inputs[1]) if reader is not None and reader.op_type == "ReduceL2" else None
    shape = difference.outputs[0].shape
    if axes is None or shape is None or len(shape) != 2 or axes.tolist() not in ([1], [-1]):
        return None
    others = {_source(value) for value in difference.inputs} - {head}
    other = others.pop() if len(others) == 1 else None
    if other is None or not _makes_vector(other) or _ends(other.outputs[0]) != [difference]:
        return None
    return other if len(_matrix(other)) == len(_matrix(head)) else None


def _source(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ANY_LENGTH and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _matrix(node: ir.Node) -> Array:
    """A weight as a matrix with the latent along its first axis."""
    weight = array(node.inputs[1])
    assert weight is not None
    return weight.reshape(len(weight), -1)


def _change_basis(graph: ir.Graph, latent: Latent, first: Array, second: Array) -> None:
    """z1 by its coordinates in ``first`` (latent, k₁), z2 in ``second`` (latent, k₂ ≥ k₁) whose first k₁ those are."""
    for node, basis in ((latent.head, first), (latent.opening, first), (latent.second, second)):
        if node is None:
            continue
        weight = array(node.inputs[1])
        assert weight is not None
        coordinates = basis.T @ _matrix(node)
        coordinates[np.abs(coordinates) < ROUNDING * np.abs(coordinates).max()] = 0
        node.replace_input_with(1, add_constant(graph, coordinates.reshape(-1, *weight.shape[1:])))
    _resize(latent.head.outputs[0], first.shape[1])
    if latent.second is None or latent.difference is None:
        return
    _resize(latent.second.outputs[0], second.shape[1])
    missing = second.shape[1] - first.shape[1]
    for index, value in enumerate(latent.difference.inputs):
        if missing and value is not None and _source(value) is latent.head:
            padded = ir.node("Pad", [value, add_constant(graph, np.array([0, 0, 0, missing]))])
            graph.insert_before(latent.difference, padded)
            latent.difference.replace_input_with(index, padded.outputs[0])
            padded.outputs[0].shape, padded.outputs[0].type = latent.difference.outputs[0].shape, value.type


def _resize(value: ir.Value, length: int) -> None:
    """Note a code's new length on a value, and on all that only shape it."""
    shape = value.shape
    if shape is not None:
        value.shape = ir.Shape([shape[0], length, *shape[2:]])
    for use in value.uses():
        if use.node.op_type in ANY_LENGTH or use.node.op_type == "Sub":
            _resize(use.node.outputs[0], length)
