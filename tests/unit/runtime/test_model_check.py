"""Detectors with anything that a detector doesn't need are refused before ONNX Runtime sees them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY, CHECKSUM_PLACEHOLDER, write_checksum
from kdgan_compress.runtime.model_check import check_model

EXPORTS = sorted(Path(__file__).parents[3].glob("exports/*/*.onnx"))


@pytest.fixture
def model():
    return onnx.load(EXPORTS[0])


def node(model, operator):
    return next(each for each in model.graph.node if each.op_type == operator)


def set_ints(operator, name, values):
    def change(model):
        (attribute,) = [each for each in node(model, operator).attribute if each.name == name]
        del attribute.ints[:]
        attribute.ints.extend(values)

    return change


def set_int(operator, name, value):
    def change(model):
        chosen = node(model, operator)
        kept = [each for each in chosen.attribute if each.name != name]
        del chosen.attribute[:]
        chosen.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def subgraph(model):
    graph = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph))


def function(model):
    made = helper.make_function("own", "f", ["x"], ["y"], [], [helper.make_opsetid("", 18)])
    model.functions.append(made)


def huge_shape(model):
    chosen = node(model, "Reshape")
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 100_000, 100_000]), "huge"))
    chosen.input[1] = "huge"


def wrong_length(model):
    tensor = next(each for each in model.graph.initializer if len(each.raw_data) > 4)
    tensor.raw_data = tensor.raw_data[:-4]


CHANGES = {
    "group 0": set_int("ConvTranspose", "group", 0),
    "a huge group": set_int("Conv", "group", 10**9),
    "stride 0": set_ints("Conv", "strides", [0, 1]),
    "negative pads": set_ints("Conv", "pads", [-1, 0, 0, 0]),
    "a kernel that is not the weights'": set_ints("ConvTranspose", "kernel_shape", [7, 7]),
    "dilation 2^40": set_ints("Conv", "dilations", [2**40, 1]),
    "an unknown attribute": set_int("Conv", "what", 1),
    "an attribute of another type": set_int("LeakyRelu", "alpha", 1),
    "a custom operator": lambda model: setattr(node(model, "Conv"), "domain", "own"),
    "an operator that does not exist": lambda model: setattr(node(model, "Conv"), "op_type", "Convolution"),
    "operators of another set": lambda model: model.opset_import.append(helper.make_opsetid("com.microsoft", 1)),
    "external data": external,
    "a subgraph": subgraph,
    "a function": function,
    "a huge shape": huge_shape,
    "a tensor that is too short": wrong_length,
    "two tensors of one name": lambda model: model.graph.initializer.append(model.graph.initializer[0]),
    "a tensor of an unknown type": lambda model: setattr(model.graph.initializer[0], "data_type", 99),
}


@pytest.mark.parametrize("path", EXPORTS, ids=lambda path: path.stem)
def test_exports_are_accepted(path):
    check_model(path.read_bytes())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_refused(model, change):
    change(model)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        check_model(model.SerializeToString())


def test_a_sealed_detector_is_refused_without_a_session(model, tmp_path, monkeypatch):
    from kdgan_compress.runtime import detector

    CHANGES["group 0"](model)
    for entry in model.metadata_props:
        if entry.key == CHECKSUM_KEY:
            entry.value = CHECKSUM_PLACEHOLDER
    (tmp_path / "a.onnx").write_bytes(write_checksum(model.SerializeToString()))
    monkeypatch.setattr(detector, "create_session", lambda *_: pytest.fail("made a session"))
    with pytest.raises(KdganError, match="ConvTranspose has group = 0"):
        Detector(tmp_path / "a.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 30, b"\x3a\x00", b"text"])
def test_what_is_no_model(content):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        check_model(content)
