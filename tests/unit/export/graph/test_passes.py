"""Each rewrite alone and all together against the graph as it was and against torch, over a thousand images."""

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node
from tiny_graphs import (
    architecture,
    by_torch,
    detector_of,
    from_nodes,
    generator_of,
    num_floats,
    operators,
    photos,
    run,
    session_of,
)
from torch.nn.functional import conv_transpose2d

from kdgan_compress.errors import KdganError
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.graph.passes import REWRITES, run_passes
from kdgan_compress.export.graph.passes.folding import fold_input_scale
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.gans import Architecture

ALL = frozenset(REWRITES)
FLOAT_PASSES = ALL - {"conv-transpose", "score"}
INT8_PASSES = ALL - {"difference", "opening"}
TOLERANCE = 1e-5
FAMILIES = ("ede", "ed", "ed_ehat", "cvgad")
SETS = {
    **{name: frozenset({name}) for name in REWRITES},
    "difference after heads": frozenset({"heads", "difference"}),
    "all": ALL,
    "for floats": FLOAT_PASSES,
    "for bytes": INT8_PASSES,
    **{f"all but {name}": ALL - {name} for name in REWRITES},
}


@dataclass
class Case:
    described: Architecture
    core: ir.Model
    images: np.ndarray
    before: np.ndarray
    by_torch: np.ndarray


@pytest.fixture(
    scope="module",
    params=[(family, norm, 1 if (i + j) % 2 else 3) for i, family in enumerate(FAMILIES) for j, norm in
            enumerate(("batch", "instance"))],
    ids=lambda combination: "-".join(map(str, combination)),
)  # fmt: skip
def case(request, traced):
    generator, core, described = traced(*request.param)
    images = photos(1000, 16, 16, described.image_channels)
    unrewritten, _ = detector_of(core, described)
    (before,) = session_of(unrewritten).run(["score"], {"image": images})
    return Case(described, core, images, before, by_torch(generator, images))


def test_scores_before_any_pass_are_torchs_and_differ(case):
    np.testing.assert_allclose(case.before, case.by_torch, rtol=TOLERANCE)
    assert np.std(case.before) > 0.02 * np.mean(case.before)


@pytest.mark.parametrize("names", list(SETS.values()), ids=list(SETS))
def test_scores_stay(case, names):
    model, _ = detector_of(case.core, case.described, names)
    for value in model.graph.initializers.values():
        assert value.dtype != ir.DataType.DOUBLE
    (after,) = session_of(model).run(["score"], {"image": case.images})
    np.testing.assert_allclose(after, case.before, rtol=TOLERANCE)
    np.testing.assert_allclose(after, case.by_torch, rtol=TOLERANCE)


@pytest.mark.parametrize("names", list(SETS.values()), ids=list(SETS))
def test_graph_passes_the_strict_checker_and_any_batch(case, names):
    model, _ = detector_of(case.core, case.described, names)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    session = session_of(proto)
    for count in (1, 3):
        (score,) = session.run(["score"], {"image": case.images[:count]})
        np.testing.assert_allclose(score, case.before[:count], rtol=TOLERANCE)


def num_heads(case: Case) -> int:
    return 2 if case.described.family == "ede" else 1


def test_batch_norms_are_gone(case):
    model, counts = detector_of(case.core, case.described, {"batch-norm"})
    expected = 0
    if case.described.norm == "batch":
        expected = 2 * (3 if case.described.family == "ede" else 2)
    assert operators(case.core)["BatchNormalization"] == counts["batch-norm"] == expected
    assert operators(model)["BatchNormalization"] == 0
    with_bias = [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3]
    assert len(with_bias) == expected


def test_batch_norms_stay_without_the_rewrite(case):
    model, counts = detector_of(case.core, case.described, ALL - {"batch-norm"})
    assert "batch-norm" not in counts
    assert operators(model)["BatchNormalization"] == operators(case.core)["BatchNormalization"]


def test_transposed_convolutions_are_gone(case):
    before = operators(case.core)
    model, counts = detector_of(case.core, case.described, {"conv-transpose"})
    after = operators(model)
    assert counts["conv-transpose"] == before["ConvTranspose"] == after["DepthToSpace"] == 3
    assert after["ConvTranspose"] == 0
    assert after["Conv"] == before["Conv"] + 3
    assert operators(detector_of(case.core, case.described, ALL - {"conv-transpose"})[0])["DepthToSpace"] == 0


def test_activations_stand_before_the_spreading_of_pixels(case):
    """Where a runtime fuses them with the convolution; a norm, if there is one, stands between."""
    model, _ = detector_of(case.core, case.described, {"conv-transpose", "batch-norm"})
    spreads = [node for node in model.graph if node.op_type == "DepthToSpace"]
    sources = [node.inputs[0].producer().op_type for node in spreads]
    assert sources[-1] == "Tanh"
    if case.described.norm == "batch":
        assert sources == ["Relu", "Relu", "Tanh"]


def test_vectors_are_made_by_matrix_products(case):
    before = operators(case.core)
    heads, counts = detector_of(case.core, case.described, {"heads"})
    assert counts["heads"] == num_heads(case)
    assert operators(heads)["Gemm"] == num_heads(case)
    assert operators(heads)["Conv"] == before["Conv"] - num_heads(case)
    opening, counts = detector_of(case.core, case.described, {"opening"})
    assert counts["opening"] == operators(opening)["Gemm"] == 1
    assert operators(opening)["ConvTranspose"] == 2
    neither, _ = detector_of(case.core, case.described, ALL - {"heads", "opening"})
    assert operators(neither)["Gemm"] == 0


def test_difference_is_inside_the_product(case):
    expected = 1 if case.described.family == "ede" else 0
    without, _ = detector_of(case.core, case.described, {"heads"})
    model, counts = detector_of(case.core, case.described, {"heads", "difference"})
    assert counts["difference"] == expected
    assert operators(model)["Sub"] == operators(without)["Sub"] - expected
    assert detector_of(case.core, case.described, {"difference"})[1]["difference"] == 0


def test_operators_that_phones_lack_are_gone(case):
    model, counts = detector_of(case.core, case.described, {"score"})
    found = operators(case.core)
    lacking = ("ReduceL2", "ReduceSum", "Flatten")
    assert counts["score"] == sum(found[name] for name in lacking) > 0
    assert not any(operators(model)[name] for name in lacking)
    both, _ = detector_of(case.core, case.described, {"score", "latent"})
    assert operators(both)["Pad"] == 0
    assert operators(detector_of(case.core, case.described, {"latent"})[0])["Pad"] == (num_heads(case) == 2)


def test_scale_is_in_the_first_convolution_where_it_alone_reads_the_image(case):
    model, counts = detector_of(case.core, case.described, {"scale"})
    expected = 1 if case.described.family == "ede" else 0
    assert counts["scale"] == expected
    assert operators(model)["Div"] == operators(case.core)["Div"] + 1 - expected
    assert (
        operators(detector_of(case.core, case.described, ALL - {"scale"})[0])["Div"] == operators(case.core)["Div"] + 1
    )


def test_latent_is_shorter(case):
    """By hand: 32 features before a latent of 40 and 32 numbers behind it; z1 needs 32 coordinates, both need 40."""
    model, counts = detector_of(case.core, case.described, {"latent"})
    assert counts["latent"] == 1
    before = num_heads(case) * 40 * 32 + 40 * 32
    after = 32 * (32 + 32) + (40 * 32 if case.described.family == "ede" else 0)
    assert num_floats(case.core) - num_floats(model) == before - after > 0


def test_nothing_changes_without_rewrites(case):
    model, counts = detector_of(case.core, case.described, frozenset())
    assert counts == {}
    for operator, number in operators(case.core).items():
        assert operators(model)[operator] >= number


def test_every_set_of_rewrites_is_made_in_one_order(case):
    """Whatever the order they are named in."""
    texts = {
        ir.to_proto(detector_of(case.core, case.described, names)[0]).SerializeToString(deterministic=True)
        for names in (list(REWRITES), list(reversed(REWRITES)), ALL)
    }
    assert len(texts) == 1


def test_settings_choose():
    assert ExportSettings(rewrites=frozenset()).selected_rewrites == frozenset()
    assert ExportSettings(rewrites=frozenset({"latent"})).selected_rewrites == {"latent"}
    assert ExportSettings().selected_rewrites == ExportSettings("fp16").selected_rewrites == FLOAT_PASSES
    assert ExportSettings("int8").selected_rewrites == ExportSettings(mobile=True).selected_rewrites == INT8_PASSES
    assert "conv-transpose" in INT8_PASSES - FLOAT_PASSES
    with pytest.raises(KdganError, match=r"must be one of batch-norm, .*; got fold-everything, zip"):
        ExportSettings(rewrites=frozenset({"zip", "fold-everything", "latent"}))


def test_thirty_two_pixels(traced):
    generator, core, described = traced("ede", "batch", 3, channels=(1, 2, 4), image_size=32, latent_size=70)
    images = photos(1000, 32, 32, 3)
    expected = by_torch(generator, images, 32)
    for names in (frozenset(), FLOAT_PASSES, ALL):
        model, counts = detector_of(core, described, names)
        np.testing.assert_allclose(session_of(model).run(["score"], {"image": images})[0], expected, rtol=TOLERANCE)
    assert counts == {"batch-norm": 9, "latent": 1, "heads": 2, "opening": 1, "difference": 1, "conv-transpose": 3,
                      "score": 3, "scale": 1, "projection": 0}  # fmt: skip


def test_float_input_is_scaled_in_the_first_convolution_too(traced):
    generator, core, described = traced("ede", "batch", 3)
    model, counts = detector_of(core, described, ALL, IOSpec(input="float", input_size=(16, 16)))
    images = photos(8, 16, 16, 3)
    given = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert counts["scale"] == 1
    np.testing.assert_allclose(
        session_of(model).run(["score"], {"image": given})[0], by_torch(generator, images), rtol=TOLERANCE
    )


NUMBERS = np.random.default_rng(0)


def transposed(
    kernel, stride, padding, side, *, bias=True, activation=None, in_channels=3, out_channels=2, **attributes
):
    """A graph of one transposed convolution, and its weight and bias."""
    shape = (in_channels, out_channels, *(kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    constants = {"w": NUMBERS.normal(size=shape).astype(np.float32)}
    if bias:
        groups = attributes.get("group", 1)
        constants["b"] = NUMBERS.normal(size=out_channels * groups).astype(np.float32)
    end = "score" if activation is None else "map"
    pads = padding if isinstance(padding, list) else [padding] * 4
    nodes = [
        make_node(
            "ConvTranspose", ["images", *constants], [end], strides=[stride, stride], pads=pads,
            kernel_shape=shape[2:], **attributes,
        )
    ]  # fmt: skip
    if activation is not None:
        nodes.append(make_node(activation, ["map"], ["score"]))
    return from_nodes(nodes, constants, ["N", in_channels, side, side]), constants


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "side"),
    [(4, 2, 1, 5), (2, 2, 0, 4), (6, 2, 2, 3), (4, 1, 0, 1), (4, 3, 0, 1), (8, 4, 2, 3), (3, 1, 1, 4), (5, 3, 1, 2),
     (4, 2, 1, 1), (1, 1, 0, 3), (3, 3, 0, 3)],
)  # fmt: skip
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, "Relu"])
def test_transposed_convolution_is_torchs(kernel, stride, padding, side, bias, activation):
    model, constants = transposed(kernel, stride, padding, side, bias=bias, activation=activation)
    images = NUMBERS.normal(size=(2, 3, side, side)).astype(np.float32)
    weight, shift = torch.from_numpy(constants["w"]), torch.from_numpy(constants["b"]) if bias else None
    expected = conv_transpose2d(torch.from_numpy(images), weight, shift, stride=stride, padding=padding)
    expected = torch.relu(expected) if activation else expected
    assert run_passes(model, {"conv-transpose"}) == {"conv-transpose": 1}
    assert "ConvTranspose" not in operators(model)
    np.testing.assert_allclose(run(model, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        {"kernel": 3, "stride": 2, "padding": 1, "output_padding": [1, 1]},
        {"kernel": 4, "stride": 2, "padding": 1, "output_padding": [1, 1]},
        {"kernel": 4, "stride": 2, "padding": 1, "group": 3, "out_channels": 2},
        {"kernel": 4, "stride": 2, "padding": 1, "dilations": [2, 2]},
        {"kernel": 4, "stride": 1, "padding": 0},
        {"kernel": 4, "stride": 3, "padding": 1},
        {"kernel": (4, 2), "stride": 2, "padding": [1, 0, 1, 0]},
        {"kernel": 4, "stride": 2, "padding": [0, 0, 2, 2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["conv-transpose", "opening"])
def test_other_transposed_convolutions_are_left_alone(other, name):
    model, _ = transposed(side=4, **other)
    before = ir.to_proto(model).SerializeToString()
    assert run_passes(model, {name}) == {name: 0}
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, "LeakyRelu"])
def test_opening_is_torchs(bias, activation):
    model, constants = transposed(4, 1, 0, 1, bias=bias, activation=activation)
    codes = NUMBERS.normal(size=(5, 3, 1, 1)).astype(np.float32)
    shift = torch.from_numpy(constants["b"]) if bias else None
    expected = conv_transpose2d(torch.from_numpy(codes), torch.from_numpy(constants["w"]), shift)
    expected = torch.nn.functional.leaky_relu(expected, 0.01) if activation else expected
    assert run_passes(model, {"opening"}) == {"opening": 1}
    assert set(operators(model)) == {"Flatten", "Gemm", "Reshape"} | ({activation} if activation else set())
    np.testing.assert_allclose(run(model, codes), expected, rtol=1e-4, atol=1e-5)


def batch_norm(numbers) -> dict:
    size = numbers
    return {
        "gamma": NUMBERS.normal(1, 0.5, size).astype(np.float32),
        "beta": NUMBERS.normal(size=size).astype(np.float32),
        "mean": NUMBERS.normal(size=size).astype(np.float32),
        "variance": NUMBERS.uniform(0.01, 9, size).astype(np.float32),
    }


STATISTICS = ["gamma", "beta", "mean", "variance"]


@pytest.mark.parametrize(
    ("operator", "group", "folds"),
    [("Conv", 1, True), ("Conv", 2, True), ("ConvTranspose", 1, True), ("ConvTranspose", 2, False)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_after_any_convolution(operator, group, folds, bias):
    shape = (6, 4 // group, 3, 3) if operator == "Conv" else (4, 6 // group, 3, 3)
    constants = {"w": NUMBERS.normal(size=shape).astype(np.float32)} | batch_norm(6)
    if bias:
        constants["b"] = NUMBERS.normal(size=6).astype(np.float32)
    inputs = ["images", "w", *(["b"] if bias else [])]
    nodes = [
        make_node(operator, inputs, ["map"], group=group, kernel_shape=[3, 3]),
        make_node("BatchNormalization", ["map", *STATISTICS], ["score"], epsilon=1e-3),
    ]
    model = from_nodes(nodes, constants, ["N", 4, 5, 5])
    images = NUMBERS.normal(size=(2, 4, 5, 5)).astype(np.float32)
    before = run(model, images)
    assert run_passes(model, {"batch-norm"}) == {"batch-norm": int(folds)}
    assert ("BatchNormalization" in operators(model)) is not folds
    np.testing.assert_allclose(run(model, images), before, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_what_others_read_too_stays():
    constants = {"w": NUMBERS.normal(size=(2, 1, 3, 3)).astype(np.float32)} | batch_norm(2)
    nodes = [
        make_node("Conv", ["images", "w"], ["map"]),
        make_node("BatchNormalization", ["map", *STATISTICS], ["normed"]),
        make_node("Add", ["map", "normed"], ["score"]),
    ]
    model = from_nodes(nodes, constants, ["N", 1, 5, 5])
    assert run_passes(model, {"batch-norm"}) == {"batch-norm": 0}


def test_batch_norm_of_a_computed_map_stays():
    nodes = [
        make_node("Relu", ["images"], ["map"]),
        make_node("BatchNormalization", ["map", *STATISTICS], ["score"]),
    ]
    assert run_passes(from_nodes(nodes, batch_norm(2), ["N", 2, 5, 5]), {"batch-norm"}) == {"batch-norm": 0}


@pytest.mark.parametrize(
    ("attributes", "side", "found"),
    [({}, 4, 1), ({"pads": [1, 1, 1, 1]}, 4, 0), ({}, 5, 0), ({"group": 2}, 4, 0), ({"strides": [3, 3]}, 4, 1)],
    ids=str,
)
def test_convolution_over_its_whole_input(attributes, side, found):
    weight = NUMBERS.normal(size=(6, 4 // attributes.get("group", 1), 4, 4)).astype(np.float32)
    shift = NUMBERS.normal(size=6).astype(np.float32)
    model = from_nodes(
        [make_node("Conv", ["images", "w", "b"], ["score"], **attributes)], {"w": weight, "b": shift},
        ["N", 4, side, side],
    )  # fmt: skip
    images = NUMBERS.normal(size=(3, 4, side, side)).astype(np.float32)
    before = run(model, images)
    assert run_passes(model, {"heads"}) == {"heads": found}
    assert operators(model)["Gemm"] == found
    after = run(model, images)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mirrored", "filled", "plain"])
def test_norm_of_a_padded_code_loses_its_pad_only_if_padded_with_zeros(kind):
    constants = {"pads": np.array([0, 0, 0, 2]), "two": np.array(2, np.float32), "axes": np.array([1]),
                 "code": NUMBERS.normal(size=(1, 5)).astype(np.float32)}  # fmt: skip
    padded = {
        "mirrored": make_node("Pad", ["images", "pads"], ["padded"], mode="reflect"),
        "filled": make_node("Pad", ["images", "pads", "two"], ["padded"]),
        "plain": make_node("Pad", ["images", "pads"], ["padded"]),
    }[kind]
    nodes = [
        padded,
        make_node("Sub", ["padded", "code"], ["rest"]),
        make_node("ReduceL2", ["rest", "axes"], ["score"], keepdims=0),
    ]
    model = from_nodes(nodes, {k: v for k, v in constants.items() if k != "two" or kind == "filled"}, [1, 3])
    images = NUMBERS.normal(size=(1, 3)).astype(np.float32)
    before = run(model, images)
    assert run_passes(model, {"score"}) == {"score": 2 if kind == "plain" else 1}
    np.testing.assert_allclose(run(model, images), before, rtol=1e-6)


@pytest.mark.parametrize(("axes", "keepdims"), list(itertools.product([[1], [2, 3], [-1], [1, 2, 3]], [0, 1])))
@pytest.mark.parametrize("operator", ["ReduceL2", "ReduceSum"])
def test_norms_and_sums_are_means(operator, axes, keepdims):
    node = make_node(operator, ["images", "axes"], ["score"], keepdims=keepdims)
    model = from_nodes([node], {"axes": np.array(axes)}, ["N", 2, 3, 5])
    images = NUMBERS.normal(size=(4, 2, 3, 5)).astype(np.float32)
    reduced = np.sqrt((images.astype(float) ** 2).sum(tuple(axes), keepdims=bool(keepdims)))
    if operator == "ReduceSum":
        reduced = images.astype(float).sum(tuple(axes), keepdims=bool(keepdims))
    assert run_passes(model, {"score"}) == {"score": 1}
    assert operator not in operators(model)
    np.testing.assert_allclose(run(model, images), reduced, rtol=1e-5, atol=1e-6)


def test_sum_of_counts_and_sums_over_the_batch_stay():
    """A mean of integers would be rounded; how many images a batch has isn't known."""
    nodes = [
        make_node("Cast", ["images"], ["whole"], to=onnx.TensorProto.INT64),
        make_node("ReduceSum", ["whole", "axes"], ["count"], keepdims=0),
        make_node("Cast", ["count"], ["score"], to=onnx.TensorProto.FLOAT),
    ]
    assert run_passes(from_nodes(nodes, {"axes": np.array([1])}, ["N", 3]), {"score"}) == {"score": 0}
    node = make_node("ReduceSum", ["images", "axes"], ["score"], keepdims=0)
    assert run_passes(from_nodes([node], {"axes": np.array([0])}, ["N", 3]), {"score"}) == {"score": 0}


def test_generator_of_other_weights_scores_otherwise(traced):
    """The oracle of this file can fail."""
    generator, core, described = traced("ede", "batch", 1)
    images = photos(10, 16, 16, 1)
    (scores,) = session_of(detector_of(core, described, ALL)[0]).run(["score"], {"image": images})
    other = generator_of(architecture("ede", "batch", 1), seed=1)
    assert np.abs(by_torch(other, images) / scores - 1).min() > 1e-3
    assert np.abs(by_torch(generator, images) / scores - 1).max() < TOLERANCE


@pytest.mark.parametrize("joined", ["image", "coordinates"])
def test_scale_stays_outside_where_the_convolution_reads_other_channels_too(joined):
    """As in CoordConv: the weights of channels that are not the image would be divided too."""
    values = {"half": np.float32(127.5), "one": np.float32(1), "w": np.ones((1, 2, 3, 3), np.float32)}
    values["coordinates"] = np.ones((1, 1, 8, 8), np.float32)
    nodes = [
        helper.make_node("Div", ["image", "half"], ["divided"]),
        helper.make_node("Sub", ["divided", "one"], ["x"]),
        helper.make_node("Concat", ["x", "x" if joined == "image" else joined], ["both"], axis=1),
        helper.make_node("Conv", ["both", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 6, 6])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    assert fold_input_scale(ir.from_proto(helper.make_model(graph))) == (joined == "image")
