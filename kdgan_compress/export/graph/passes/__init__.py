"""Exact graph passes: the same score up to rounding, from a graph that is smaller, faster or runs on more runtimes.

A pass changes a model in place and returns how many matches it replaced. Passes look only at operators and weights, so
they work on the graph of any GAN.
"""

from collections.abc import Callable, Iterable, Mapping

import onnx_ir as ir
from onnx_ir.passes import common as common_passes

from kdgan_compress.export.graph.passes.decompose import decompose_unsupported_ops
from kdgan_compress.export.graph.passes.depth_to_space import conv_transpose_to_depth_to_space
from kdgan_compress.export.graph.passes.folding import fold_batch_norms, fold_input_scale
from kdgan_compress.export.graph.passes.gemm import conv_to_gemm, conv_transpose_to_gemm, fuse_sum_into_gemm
from kdgan_compress.export.graph.passes.latent import collapse_latent
from kdgan_compress.export.graph.passes.projection import fold_projection

REWRITES: Mapping[str, Callable[[ir.Model], int]] = {
    "batch-norm": fold_batch_norms,
    "projection": fold_projection,
    "latent": collapse_latent,
    "heads": conv_to_gemm,
    "opening": conv_transpose_to_gemm,
    "difference": fuse_sum_into_gemm,
    "conv-transpose": conv_transpose_to_depth_to_space,
    "score": decompose_unsupported_ops,
    "scale": fold_input_scale,
}
"""All passes in the order in which they run, by the names used in options and metadata; ``scale`` runs last, because it
needs the preprocessing."""


def run_passes(model: ir.Model, names: Iterable[str]) -> dict[str, int]:
    """Run the named passes in place; returns the number of matches of each."""
    selected, counts = set(names), {}
    for name, apply in REWRITES.items():
        if name in selected:
            counts[name] = apply(model)
            common_passes.CommonSubexpressionEliminationPass()(model)
            common_passes.RemoveUnusedNodesPass()(model)
    return counts
