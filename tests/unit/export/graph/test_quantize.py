"""fp16 and int8: which weights become what, calibration by normals alone, and how far scores move."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.helper import make_node
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, roc_auc_score
from tiny_graphs import (
    architecture,
    by_torch,
    detector_of,
    from_nodes,
    generator_of,
    photos,
    run,
    session_of,
    trace_once,
)

from kdgan_compress.errors import KdganError
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.graph.quantize import to_fp16
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ThresholdRule, ValidationData
from kdgan_compress.runtime import Detector

COUNT = 200


def make_validation_data(*, test_seed=1, train_seed=0, train_count=COUNT, labels=True) -> ValidationData:
    """Novel: noise. Normal: ramps."""
    train = photos(2 * train_count, 16, 16, 1, seed=train_seed)[::2]
    test = photos(COUNT, 16, 16, 1, seed=test_seed)
    is_anomalous = np.arange(COUNT) % 2 == 1
    return (
        ValidationData(train, train, test, is_anomalous)
        if labels
        else ValidationData(train, train, test[:0], is_anomalous[:0])
    )


def described(norm="batch"):
    return architecture("ede", norm, 1, channels=(4, 8), latent_size=160)


@pytest.fixture(scope="module")
def generator():
    return generator_of(described())


@pytest.fixture(scope="module")
def written(quick, generator, tmp_path_factory):
    """Reports and paths by precision, with thresholds of the best F1."""
    folder = tmp_path_factory.mktemp("precisions")
    rule = ThresholdRule(None)
    return {
        precision: (
            write_detector(
                folder / f"{precision}.onnx", generator, described(), 0, "", ExportSettings(precision),
                validation=make_validation_data(), rule=rule,
            ),
            folder / f"{precision}.onnx",
        )
        for precision in ("fp32", "fp16", "int8")
    }  # fmt: skip


def types_by_node(path) -> list[tuple[str, set[int]]]:
    """Operators with the types of all that goes through them, casts and quantising left out."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    passed_over = ("Cast", "QuantizeLinear", "DequantizeLinear")
    return [
        (node.op_type, {types[name] for name in (*node.input, *node.output) if name} - {TensorProto.INT64})
        for node in graph.node
        if node.op_type not in passed_over
    ]


def test_fp16_layers_are_half_and_the_score_is_not(written):
    _, path = written["fp16"]
    nodes = types_by_node(path)
    kinds = [types for operator, types in nodes if operator in ("Conv", "ConvTranspose", "Gemm")]
    assert len(kinds) == 9
    assert all(types == {TensorProto.FLOAT16} for types in kinds)
    last = max(i for i, (operator, _) in enumerate(nodes) if operator in ("Conv", "ConvTranspose", "Gemm"))
    assert nodes[last + 1 :] == [
        ("ReduceL2", {TensorProto.FLOAT}),
        ("Greater", {TensorProto.FLOAT, TensorProto.BOOL}),
    ]
    assert [types for operator, types in nodes if operator in ("Resize", "Div", "Sub")] == [{TensorProto.FLOAT}] * 3
    weights = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1]
    assert {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16}


def test_fp16_weights_are_those_of_fp32_rounded_once(written):
    def weights(precision):
        tensors = onnx.load(written[precision][1]).graph.initializer
        arrays = [numpy_helper.to_array(tensor) for tensor in tensors if len(tensor.dims) > 1]
        return sorted((array for array in arrays), key=lambda array: (array.shape, float(np.abs(array).sum())))

    pairs = list(zip(weights("fp32"), weights("fp16"), strict=True))
    assert len(pairs) == 9
    for single, half in pairs[:-1]:  # fp32 has the scaling of pixels inside its first convolution
        if not np.allclose(single * 127.5, half, rtol=1e-2):
            np.testing.assert_array_equal(single.astype(np.float16), half)


def test_sizes(written):
    floats, halves, bytes_ = (written[name][0].size_bytes for name in ("fp32", "fp16", "int8"))
    around = 6000
    assert abs(halves - around / 2 - floats / 2) < around / 2
    assert bytes_ < 0.45 * floats
    assert all(report.size_bytes == path.stat().st_size for report, path in written.values())


def expected_agreement(written, precision):
    validation = make_validation_data()
    scores = {name: Detector(written[name][1]).score(validation.test) for name in ("fp32", precision)}
    ours, theirs = scores[precision], scores["fp32"]
    return (
        roc_auc_score(validation.test_is_anomalous, ours.score),
        roc_auc_score(validation.test_is_anomalous, ours.score)
        - roc_auc_score(validation.test_is_anomalous, theirs.score),
        np.mean(ours.is_anomaly == theirs.is_anomaly),
        spearmanr(ours.score, theirs.score).statistic,
    )


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_agreement_is_that_of_the_two_files(written, precision):
    report, _ = written[precision]
    found = report.agreement
    auc, auc_diff, labels, spearman = expected_agreement(written, precision)
    assert (found.auc, found.auc_diff) == (pytest.approx(auc, abs=1e-3), pytest.approx(auc_diff, abs=1e-3))
    assert (found.label_agreement, found.spearman) == (
        pytest.approx(labels, abs=0.006),
        pytest.approx(spearman, abs=1e-3),
    )
    assert found.num_images == COUNT
    assert found.spearman > 0.99
    assert found.auc > 0.5


def test_fp32_has_nothing_to_agree_with(written):
    assert written["fp32"][0].agreement is None
    assert written["fp32"][0].parity_max_rel <= 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_threshold_is_each_precisions_own_best_f1(written, precision):
    report, path = written[precision]
    validation = make_validation_data()
    detector = Detector(path)
    scores = detector.score(validation.test)
    best = max(
        f1_score(validation.test_is_anomalous, scores.score > t) for t in [*scores.score, scores.score.min() - 1]
    )
    assert f1_score(validation.test_is_anomalous, scores.is_anomaly) == pytest.approx(best)
    assert (detector.threshold, detector.metadata["threshold_rule"]) == (report.threshold, report.threshold_rule)
    assert report.threshold_rule == f"best F1 on {COUNT} labelled images"


def test_thresholds_differ(written):
    assert len({report.threshold for report, _ in written.values()}) == 3


def test_parity_of_lower_precisions_is_reported(written, generator):
    for precision, bound in (("fp16", 2e-2), ("int8", 0.3)):
        report, path = written[precision]
        assert 1e-6 < report.parity_max_rel < bound
        images = make_validation_data().test
        relative = np.abs(Detector(path).score(images).score / by_torch(generator, images) - 1)
        assert relative.max() < bound


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.usefixtures("quick")
def test_threshold_by_quantile_on_each_precisions_own_scores(generator, tmp_path, precision):
    validation = make_validation_data(labels=False)
    path = tmp_path / "d.onnx"
    report = write_detector(
        path, generator, described(), 123, "by hand", ExportSettings(precision), validation=validation
    )
    scores = Detector(path).score(validation.normals).score
    assert report.threshold == pytest.approx(np.quantile(scores.astype(float), 0.99), rel=2e-3)
    assert report.threshold_rule == f"0.99 quantile of {COUNT} normal images' scores"
    assert report.agreement.auc is None


def quantised(path):
    """Initialisers by name, and who reads each value."""
    graph = onnx.load(path).graph
    readers = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}, readers


def test_int8_weights_are_a_byte_each_by_output_channel(written):
    """Of 4-8 with a latent of 160: heads of 128 · 160, and one of the opening's; trunks have 8 · 4 · 16 = 512."""
    constants, readers = quantised(written["int8"][1])
    stored = {name: array for name, array in constants.items() if array.dtype == np.int8 and array.ndim > 1}
    assert stored
    for name, array in stored.items():
        (dequantise,) = readers[name]
        scale, zero = constants[dequantise.input[1]], constants[dequantise.input[2]]
        axis = next((attribute.i for attribute in dequantise.attribute if attribute.name == "axis"), 1)
        assert dequantise.op_type == "DequantizeLinear"
        (layer,) = readers[dequantise.output[0]]
        assert layer.op_type in ("Conv", "Gemm")
        transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
        assert axis == (0 if layer.op_type == "Conv" or transposed else 1)
        assert scale.shape == (array.shape[axis],)
        assert not np.any(zero)
        assert array.size >= 1000
        peak = np.abs(array.astype(int)).max(tuple(i for i in range(array.ndim) if i != axis))
        assert np.median(peak) == 127
    floats = [array for array in constants.values() if array.dtype == np.float32 and array.ndim > 1]
    assert floats
    assert all(array.size < 1000 for array in floats)


def test_int8_numbers_are_those_of_fp32_rounded_to_their_channels_step(written, generator):
    """Each weight lies within half a step of a weight of the graph in floats."""
    constants, readers = quantised(written["int8"][1])
    names = [name for name, array in constants.items() if array.dtype == np.int8 and array.ndim == 2]
    floats, _ = detector_of(trace_once(generator, described()), described(), ExportSettings("int8").selected_rewrites)
    singles = [v.const_value.numpy() for v in floats.graph.initializers.values() if v.const_value.shape.rank() == 2]
    for name in names:
        scale = constants[readers[name][0].input[1]]
        found = constants[name].astype(float) * scale[:, None]
        nearest = min(np.abs(found - each).max() / scale.max() for each in singles if each.shape == found.shape)
        assert nearest <= 0.5 + 1e-3
    assert names


def weights_and_scales(path) -> bytes:
    constants, _ = quantised(path)
    return b"".join(array.tobytes() for name, array in sorted(constants.items()) if name != "threshold")


@pytest.mark.usefixtures("quick")
def test_calibration_sees_training_normals_alone(written, generator, tmp_path):
    def export(validation):
        settings = ExportSettings("int8")
        write_detector(tmp_path / "d.onnx", generator, described(), 0, "", settings, validation=validation, gate=False)
        return weights_and_scales(tmp_path / "d.onnx")

    reference = weights_and_scales(written["int8"][1])
    train = make_validation_data().train
    other = make_validation_data(test_seed=7, labels=True)
    assert export(ValidationData(train, other.test[1::2], other.test, ~other.test_is_anomalous)) == reference
    assert export(ValidationData(other.test[1::2], train, other.test, other.test_is_anomalous)) != reference


@pytest.mark.usefixtures("quick")
def test_too_few_images_to_calibrate(generator, tmp_path):
    for count, fails in ((31, True), (32, False)):
        validation = make_validation_data(train_count=count)
        settings = ExportSettings("int8")
        if not fails:
            write_detector(
                tmp_path / "d.onnx", generator, described(), 0, "", settings, validation=validation, gate=False
            )
            continue
        with pytest.raises(KdganError, match="int8 needs at least 32 normal images for calibration; got 31"):
            write_detector(tmp_path / "d.onnx", generator, described(), 0, "", settings, validation=validation)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.usefixtures("quick")
def test_without_images(generator, tmp_path, precision):
    with pytest.raises(KdganError, match=f"{precision} needs normal images to set its threshold; got none"):
        write_detector(tmp_path / "d.onnx", generator, described(), 0, "", ExportSettings(precision))


@pytest.mark.usefixtures("quick")
def test_gate_that_fails_leaves_no_file(generator, tmp_path):
    """Labels by torch's own scores: an AUC of 1, which nothing but the same order keeps."""
    validation = make_validation_data()
    scores = by_torch(generator, validation.test)
    settings, path = ExportSettings(latent_rank=1), tmp_path / "d.onnx"
    labels = scores > np.median(scores)
    validation = ValidationData(validation.train, validation.train, validation.test, labels)
    with pytest.raises(KdganError, match=r"fp32 of rank 1 must keep the AUC of fp32 to 0\.005; it changes by -0\."):
        write_detector(path, generator, described(), 0, "", settings, validation=validation)
    assert list(tmp_path.iterdir()) == []
    report = write_detector(path, generator, described(), 0, "", settings, validation=validation, gate=False)
    assert report.agreement.auc_diff < -0.005
    path.write_text("older")
    with pytest.raises(KdganError, match="must keep the AUC"):
        write_detector(path, generator, described(), 0, "", settings, validation=validation)
    assert path.read_text() == "older"


@pytest.mark.parametrize("family", ["cvgad", "ed"])
def test_fp16_keeps_what_comes_behind_the_reconstruction_in_float(traced, family):
    """SSIM's differences of squares would be lost in halves."""
    generator, core, architecture_ = traced(family, "batch", 1)
    model = core.clone()
    to_fp16(model)
    assembled, _ = detector_of(model, architecture_)
    images = photos(300, 16, 16, 1)
    (scores,) = session_of(assembled).run(["score"], {"image": images})
    with torch.no_grad():
        expected = by_torch(generator, images)
    np.testing.assert_allclose(scores, expected, rtol=5e-3)
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(assembled), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    behind = [node for node in inferred.graph.node if node.op_type in ("MatMul", "Pow", "Log", "Abs", "ReduceMean")]
    assert behind
    assert {types.get(name, TensorProto.FLOAT) for node in behind for name in node.output} == {TensorProto.FLOAT}


def test_fp16_of_an_output_that_is_a_layers():
    """The reconstruction of a decoder that ends in a convolution is given out as floats."""
    weight = np.random.default_rng(0).normal(size=(1, 1, 3, 3)).astype(np.float32)
    model = from_nodes([make_node("Conv", ["images", "w"], ["score"])], {"w": weight}, ["N", 1, 6, 6])
    images = np.random.default_rng(1).normal(size=(2, 1, 6, 6)).astype(np.float32)
    before = run(model, images)
    to_fp16(model)
    after = run(model, images)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, before, atol=2e-2)
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_fp16_leaves_what_must_be_float_or_whole():
    """A resize's scales are float32 by its definition, and shapes are whole numbers."""
    constants = {
        "w": np.random.default_rng(0).normal(size=(1, 1, 3, 3)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "rest": np.array([1, 6, 6]),
        "axes": np.array([1, 2, 3]),
    }
    nodes = [
        make_node("Shape", ["images"], ["count"], end=1),
        make_node("Resize", ["images", "", "scales"], ["large"], mode="linear"),
        make_node("Conv", ["large", "w"], ["map"], strides=[2, 2], pads=[1, 1, 1, 1]),
        make_node("Concat", ["count", "rest"], ["shape"], axis=0),
        make_node("Reshape", ["map", "shape"], ["again"]),
        make_node("Conv", ["again", "w"], ["last"], pads=[1, 1, 1, 1]),
        make_node("Reshape", ["last", "shape"], ["view"]),
        make_node("ReduceL2", ["view", "axes"], ["score"], keepdims=0),
    ]
    model = from_nodes(nodes, constants, ["N", 1, 6, 6])
    images = np.random.default_rng(1).normal(size=(2, 1, 6, 6)).astype(np.float32)
    before = run(model, images)
    to_fp16(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run(model, images), before, rtol=1e-2)


def test_rewrites_of_floats_are_made_before(written):
    assert set(written["fp16"][0].rewrites) == ExportSettings().selected_rewrites
    assert written["fp16"][0].rewrites["batch-norm"] == 6
