"""Shorten the latent code exactly: z has no more information than the features that it is computed from.

The encoder's last layer W₁ and the decoder's first transposed convolution V have no norm or activation between them,
and ‖z1 − z2‖₂ = ‖W₁f₁ − W₂f₂‖₂. With [W₁ −W₂] = QR the score is ‖R[f₁; f₂]‖₂, and the decoder's Vᵀz1 is (QᵀV)ᵀR₁f₁. So
z1 and z2 are replaced by their coordinates in Q: smaller wherever f has fewer values than z, and exact up to rounding.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from kdgan_compress.errors import KdganError
from kdgan_compress.export.graph.nodes import (
    SHAPE_ONLY,
    Array,
    add_constant,
    constant_input,
    is_pixel,
    num_groups,
    only_consumer,
    weight_of,
)

LENGTH_AGNOSTIC_OPS = SHAPE_ONLY - {"Reshape"}
"""Operators that keep a code's values and work for any length of it."""

QR_ZERO_TOL = 1e-12
"""Relative size below which an entry of R is set to zero: its rounding noise differs from process to process."""


@dataclass(frozen=True, eq=False)
class LatentPattern:
    """The nodes of a graph that produce and read its latent codes.

    Attributes:
        to_latent: Convolution from a feature map to z1; its weight as a matrix is W₁ (latent, n₁).
        decoder_input: Transposed convolution that reads z1; its weight as a matrix is V (latent, n).
        to_latent2: Convolution to z2, with weight W₂ (latent, n₂); None if the score does not compare codes.
        difference: The Sub of z1 and z2; None if the score does not compare codes.
    """

    to_latent: ir.Node
    decoder_input: ir.Node
    to_latent2: ir.Node | None = None
    difference: ir.Node | None = None

    @property
    def size(self) -> int:
        """Length of z."""
        return len(weight_of(self.to_latent))

    @property
    def weights(self) -> tuple[Array, Array]:
        """W₁, and −W₂ (latent, 0 or n₂)."""
        first = weight_matrix(self.to_latent)
        return first, np.zeros((len(first), 0)) if self.to_latent2 is None else -weight_matrix(self.to_latent2)


def collapse_latent(model: ir.Model) -> int:
    """Replace the codes by their coordinates in Q, if that leaves fewer weights; returns 1 if it did, else 0."""
    latent = find_latent(model.graph)
    if latent is None:
        return 0
    first, second = latent.weights
    decoder = weight_matrix(latent.decoder_input)
    basis, _ = np.linalg.qr(np.hstack([first, second]))
    num_first = min(first.shape)
    needed = num_first * (first.shape[1] + decoder.shape[1]) + basis.shape[1] * second.shape[1]
    if needed >= first.size + decoder.size + second.size:
        return 0
    _change_basis(model.graph, latent, basis[:, :num_first], basis)
    return 1


def truncate_latent(model: ir.Model, rank: int) -> float:
    """Keep only the first coordinates of z1 and z2 in the left singular vectors of [W₁ −W₂]: smaller, but not exact.

    Args:
        model: Traced core, to which no pass was applied yet.
        rank: Number of coordinates kept, 1 ≤ rank < length of z.

    Returns:
        Fraction of Σσ² that is lost, in [0, 1).

    Raises:
        KdganError: ``find_latent`` finds no latent, or the rank is out of range.
    """
    latent = find_latent(model.graph)
    if latent is None:
        problem = "A latent rank needs a latent between two convolutions without norm or activation"
        raise KdganError(problem, "this graph has none", "Leave the latent rank out")
    if not 1 <= rank < latent.size:
        hint = "Leave it out to keep the whole latent"
        raise KdganError(f"The latent rank must be 1 to {latent.size - 1}", f"got {rank}", hint)
    vectors, singular, _ = np.linalg.svd(np.hstack(latent.weights), full_matrices=False)
    basis = vectors[:, :rank]
    _change_basis(model.graph, latent, basis, basis)
    return float((singular[rank:] ** 2).sum() / (singular**2).sum())


def find_latent(graph: ir.Graph) -> LatentPattern | None:
    """Find a convolution to a vector that feeds only a transposed convolution and possibly a difference of codes."""
    for node in graph:
        if not makes_vector(node):
            continue
        readers = code_readers(node.outputs[0])
        decoders = [reader for reader in readers if reads_vector(reader)]
        others = [reader for reader in readers if reader not in decoders]
        if len(decoders) != 1 or len(others) > 1:
            continue
        if not others:
            return LatentPattern(node, decoders[0])
        second = _find_second_encoder(others[0], node)
        if second is not None:
            return LatentPattern(node, decoders[0], second, others[0])
    return None


def makes_vector(node: ir.Node) -> bool:
    """Whether a node is a convolution without bias from a whole feature map to a vector."""
    is_plain = node.op_type == "Conv" and len(node.inputs) == 2 and constant_input(node, 1) is not None
    return is_plain and num_groups(node) == 1 and is_pixel(node.outputs[0])


def reads_vector(node: ir.Node) -> bool:
    """Whether a node is a transposed convolution of a 1×1 image."""
    is_plain = node.op_type == "ConvTranspose" and constant_input(node, 1) is not None
    return is_plain and num_groups(node) == 1 and is_pixel(node.inputs[0])


def code_readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, skipping those that only change its shape."""
    if value.is_graph_output():
        return [node for node in [value.producer()] if node is not None]
    readers: list[ir.Node] = []
    for use in value.uses():
        readers += code_readers(use.node.outputs[0]) if use.node.op_type in LENGTH_AGNOSTIC_OPS else [use.node]
    return readers


def _find_second_encoder(difference: ir.Node, to_latent: ir.Node) -> ir.Node | None:
    """The convolution to z2, if ``difference`` is z1 − z2 or z2 − z1 and only a Euclidean norm reads it."""
    reader = only_consumer(difference.outputs[0]) if difference.op_type == "Sub" else None
    axes = constant_input(reader, 1) if reader is not None and reader.op_type == "ReduceL2" else None
    shape = difference.outputs[0].shape
    if axes is None or shape is None or len(shape) != 2 or axes.tolist() not in ([1], [-1]):
        return None
    others = {code_source(value) for value in difference.inputs} - {to_latent}
    other = others.pop() if len(others) == 1 else None
    if other is None or not makes_vector(other) or code_readers(other.outputs[0]) != [difference]:
        return None
    return other if len(weight_of(other)) == len(weight_of(to_latent)) else None


def code_source(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in LENGTH_AGNOSTIC_OPS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def weight_matrix(node: ir.Node) -> Array:
    """A weight as a matrix with the latent dimension first."""
    weight = weight_of(node)
    return weight.reshape(len(weight), -1)


def _change_basis(graph: ir.Graph, latent: LatentPattern, first: Array, second: Array) -> None:
    """Replace z1 by its coordinates in ``first`` (latent, k₁) and z2 by those in ``second`` (latent, k₂ ≥ k₁).

    The first k₁ columns of ``second`` are those of ``first``.
    """
    for node, basis in ((latent.to_latent, first), (latent.decoder_input, first), (latent.to_latent2, second)):
        if node is None:
            continue
        coordinates = basis.T @ weight_matrix(node)
        coordinates[np.abs(coordinates) < QR_ZERO_TOL * np.abs(coordinates).max()] = 0
        node.replace_input_with(1, add_constant(graph, coordinates.reshape(-1, *weight_of(node).shape[1:])))
    _resize(latent.to_latent.outputs[0], first.shape[1])
    if latent.to_latent2 is None or latent.difference is None:
        return
    _resize(latent.to_latent2.outputs[0], second.shape[1])
    missing = second.shape[1] - first.shape[1]
    for index, value in enumerate(latent.difference.inputs):
        if missing and value is not None and code_source(value) is latent.to_latent:
            padded = ir.node("Pad", [value, add_constant(graph, [0, 0, 0, missing])])
            graph.insert_before(latent.difference, padded)
            latent.difference.replace_input_with(index, padded.outputs[0])
            padded.outputs[0].shape, padded.outputs[0].type = latent.difference.outputs[0].shape, value.type


def _resize(value: ir.Value, length: int) -> None:
    """Update the recorded shapes of a code and of the values computed from it by changes of shape or a difference."""
    shape = value.shape
    if shape is not None:
        value.shape = ir.Shape([shape[0], length, *shape[2:]])
    for use in value.uses():
        if use.node.op_type in LENGTH_AGNOSTIC_OPS or use.node.op_type == "Sub":
            _resize(use.node.outputs[0], length)
