"""The projection folded into the layers before it: torch's scores, counts of weights by hand, and graphs left alone."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from fitted import GRID, normals, traced
from onnx.helper import make_node
from tiny_graphs import from_nodes, num_floats, run, session_of

from kdgan_compress.export.graph.passes import REWRITES, run_passes
from kdgan_compress.export.graph.trace import IMAGES
from kdgan_compress.scores import FittedScorer

EVERY = set(REWRITES) - {"scale"}
WIDE = {"norm": "instance", "channels": (1, 8), "latent_size": 12}
"""128 numbers before codes of 12."""

CASES = {
    "positions": ("position-gaussian", "residual", GRID, {}),
    "wide": ("position-gaussian", "latents", GRID, WIDE),
    "one for all positions": ("gaussian", "residual", GRID, {"norm": "instance"}),
    "images": ("gaussian", "latents", None, {"norm": "instance"}),
    "shared encoder": ("gaussian", "residual", None, {"family": "cvgad"}),
    "mixture": ("mixture", "latents", None, {"family": "ed", "image_channels": 3}),
}


def check_scores(scorer: FittedScorer, model: ir.Model, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = [scorer.anomaly_score(images)] + ([scorer.anomaly_map(images)] if scorer.grid else [])
    found = session_of(model).run(None, {IMAGES: images.numpy()})
    for values, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, wanted.numpy(), rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_scores_and_maps_stay(case):
    kind, features, grid, described = CASES[case]
    scorer, network, core = traced(kind, features, grid, **described)
    images = normals(7, network, scorer.grid) / 127.5 - 1
    images[0] = torch.rand_like(images[0])
    for names in (set(), {"projection"}, EVERY - {"conv-transpose", "score"}, EVERY, EVERY - {"projection"}):
        model = core.clone()
        assert run_passes(model, names).get("projection") == (1 if "projection" in names else None)
        check_scores(scorer, model, images)


def num_saved(case) -> int:
    kind, features, grid, described = CASES[case]
    *_, core = traced(kind, features, grid, **described)
    before = num_floats(core)
    run_passes(core, {"projection"})
    return before - num_floats(core)


def test_neither_code_is_computed_by_a_narrow_network():
    """Features of 32 numbers before codes of 40 and 6 directions: A and B are 6 × 32, D is 32 × 32."""
    assert num_saved("positions") == 3 * 40 * 32 + 40 * 6 - (2 * 6 * 32 + 32 * 32)


def test_a_wide_network_keeps_z1():
    """Features of 128 numbers before codes of 12: the decoder reads z1, and B is 6 × 128."""
    assert num_saved("wide") == 12 * 128 + 24 * 6 - (12 * 6 + 6 * 128)


def test_one_gaussian_becomes_triangular():
    """[A B o] has 32 + 32 + 1 columns: the first 32 coordinates depend on z1 and z2, the others on z2 alone."""
    kind, features, grid, described = CASES["images"]
    scorer, _, core = traced(kind, features, grid, **described)
    assert scorer.statistic is not None
    rank = min(scorer.statistic.projection.shape[1], 65)
    assert rank > 32
    run_passes(core, {"projection"})
    weights = [tuple(node.inputs[1].const_value.shape) for node in core.graph if node.op_type == "Gemm"]
    assert sorted(weights) == sorted([(32, 32), (32, 32), (rank, 32)])


def test_a_score_of_its_own_has_no_projection():
    scorer, network, core = traced(None)
    assert run_passes(core, EVERY)["projection"] == 0
    check_scores(scorer, core, normals(3, network) / 127.5 - 1)


def codes(between=(), projected="f", axis=1, offset="o", reader=(), rank=3) -> ir.Model:
    """z1 and z2 of 2×2×2 features, one of which is opened, their stack projected and summed; and what else is said."""
    numbers = np.random.default_rng(0)
    constants = {
        "w": numbers.normal(size=(24, 2, 2, 2)).astype(np.float32),
        "u": numbers.normal(size=(24, 2, 2, 2)).astype(np.float32),
        "v": numbers.normal(size=(24, 2, 2, 2)).astype(np.float32),
        "bias": np.ones(24, np.float32),
        "p": numbers.normal(size=(48, rank)).astype(np.float32),
        "o": numbers.normal(size=rank).astype(np.float32),
        "scalar": np.float32([2]),
        "one": np.array([1]),
    }
    nodes = [
        make_node("Conv", ["images", "w"], ["z1"]),
        make_node("ConvTranspose", ["z1", "v"], ["x"]),
        make_node("Tanh", ["x"], ["y"]),
        make_node("Conv", ["y", "u"] + (["bias"] if "bias" in between else []), ["z2"]),
        make_node("Flatten", ["z1"], ["f1"]),
        make_node("Relu" if "relu" in between else "Flatten", ["z2"], ["r2"]),
        make_node("Flatten", ["r2"], ["f2"]),
        make_node("Concat", ["f1", "f2"], ["f"], axis=axis),
        make_node("MatMul", [projected, "p"], ["m"]),
        make_node("Sub", ["m", offset], ["r"]),
        make_node("ReduceL2", ["r", "one"], ["length"], keepdims=0),
        *reader,
        make_node("Abs", [reader[-1].output[0] if reader else "length"], ["score"]),
    ]
    used = {name for node in nodes for name in node.input}
    return from_nodes(nodes, {k: v for k, v in constants.items() if k in used}, ["N", 2, 2, 2])


READ_BY_OTHERS = [
    make_node("ReduceMean", ["f2", "one"], ["mean"], keepdims=0),
    make_node("Add", ["mean", "length"], ["both"]),
]
FEATURES_READ = [
    make_node("ReduceMean", ["f", "one"], ["mean"], keepdims=0),
    make_node("Add", ["mean", "length"], ["both"]),
]


@pytest.mark.parametrize(
    ("graph", "changes"),
    [
        (codes(), 1),
        (codes(axis=-1), 1),
        (codes(between=["relu"]), 0),
        (codes(between=["bias"]), 0),
        (codes(offset="scalar"), 0),
        (codes(reader=READ_BY_OTHERS), 0),
        (codes(reader=FEATURES_READ), 0),
        (codes(rank=40), 1),
    ],
    ids=["bare", "from behind", "activation", "bias", "offset", "code read", "features read", "longer than features"],
)
@pytest.mark.parametrize("names", [{"projection"}, EVERY], ids=len)
def test_only_bare_codes_are_folded(graph, changes, names):
    graph = graph.clone()
    images = np.random.default_rng(1).normal(size=(5, 2, 2, 2)).astype(np.float32)
    before = run(graph, images)
    assert run_passes(graph, names)["projection"] == changes
    np.testing.assert_allclose(run(graph, images), before, rtol=1e-5)
