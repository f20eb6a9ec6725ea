import contextlib

import numpy as np
import onnx
import pytest
from brightness import brightness, write_brightness
from onnx import TensorProto, helper, numpy_helper
from tile_detector import write_tile_detector

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY, is_intact, read_checksum
from kdgan_compress.runtime.onnx_file import has_external_data, read_fields, replace_threshold

RULE = "0.99 quantile of 123 good photos' scores, by calibrate"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A detector whose threshold is in ``float_data``, as ``helper.make_tensor`` stores it."""
    return write_brightness(tmp_path_factory.mktemp("d") / "d.onnx", 3, 100.5, threshold_rule="a guess").read_bytes()


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A detector whose threshold is in ``raw_data``, as ``numpy_helper.from_array`` stores it."""
    path = tmp_path_factory.mktemp("t") / "d.onnx"
    return write_tile_detector(path, np.zeros((9, 12, 3)), 40.25).read_bytes()


def parse(content: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(content)


def without_threshold(content: bytes) -> tuple[onnx.ModelProto, float, dict[str, str]]:
    """The model with the threshold, its metadata and the checksum taken out, and these."""
    model = parse(content)
    (tensor,) = (each for each in model.graph.initializer if each.name == "threshold")
    value = float(numpy_helper.to_array(tensor))
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    taken = {each.key: each.value for each in model.metadata_props}
    for each in model.metadata_props:
        if each.key in ("threshold", "threshold_rule", CHECKSUM_KEY):
            each.value = ""
    return model, value, taken


@pytest.mark.parametrize("kind", ["content", "raw"])
@pytest.mark.parametrize("threshold", [0.1, -3.75, 0.0, 1e-30, 3.4e38, 123456789.123])
def test_nothing_but_the_threshold_and_the_checksum_changes(request, kind, threshold):
    before = request.getfixturevalue(kind)
    after = replace_threshold(before, threshold, RULE)
    onnx.checker.check_model(parse(after), full_check=True)
    old, _, old_metadata = without_threshold(before)
    new, value, metadata = without_threshold(after)
    assert new == old
    assert value == np.float32(threshold)
    assert float(metadata["threshold"]) == threshold
    assert metadata["threshold_rule"] == RULE
    assert set(metadata) == set(old_metadata)
    assert is_intact(after, metadata[CHECKSUM_KEY])
    assert read_checksum(after) == metadata[CHECKSUM_KEY] != old_metadata[CHECKSUM_KEY]


def test_the_value_stays_where_it_was_stored(content, raw):
    for before, field in ((content, "float_data"), (raw, "raw_data")):
        (tensor,) = (t for t in parse(replace_threshold(before, 2.5, RULE)).graph.initializer if t.name == "threshold")
        assert getattr(tensor, field)
        assert len(tensor.ListFields()) == 3  # data_type, name and this


def test_the_old_threshold_gives_the_old_bytes(content):
    assert replace_threshold(replace_threshold(content, 7.0, "x"), 100.5, "a guess") == content


def test_a_rule_of_any_length_and_language(content):
    for rule in ("", "é" * 63, "x" * 64, "図" * 6000):
        after = replace_threshold(content, 1.0, rule)
        assert {each.key: each.value for each in parse(after).metadata_props}["threshold_rule"] == rule


def test_a_missing_entry_is_added(tmp_path):
    before = write_brightness(tmp_path / "d.onnx").read_bytes()
    (tmp_path / "e.onnx").write_bytes(replace_threshold(before, 4.5, RULE))
    detector = Detector(tmp_path / "e.onnx")
    assert (detector.threshold, detector.metadata["threshold_rule"]) == (4.5, RULE)


def test_the_default_of_the_file_and_of_the_detector_agree(tmp_path, content):
    path = tmp_path / "e.onnx"
    path.write_bytes(replace_threshold(content, 50.25, RULE))
    image = np.full((1, 4, 4, 3), 50, np.uint8)
    session = Detector(path).session
    for level, is_anomaly in ((50, False), (51, True)):
        image[:] = level
        assert session.run(["is_anomaly"], {"image": image})[0].tolist() == [is_anomaly]
        assert Detector(path).score(image).is_anomaly.tolist() == [is_anomaly]


def changed(content, change):
    model = parse(content)
    change(model)
    return model.SerializeToString()


def initializer(model):
    return next(each for each in model.graph.initializer if each.name == "threshold")


REFUSED = {
    "one initializer named threshold": lambda model: initializer(model).ClearField("name"),
    "one initializer": lambda model: model.graph.initializer.append(helper.make_tensor("threshold", 1, [], [1.0])),
    "must be one float32": lambda model: initializer(model).CopyFrom(helper.make_tensor("threshold", 1, [2], [1, 2])),
    "one float32": lambda model: initializer(model).CopyFrom(helper.make_tensor("threshold", 11, [], [1.0])),
    "float32;": lambda model: initializer(model).CopyFrom(helper.make_tensor("threshold", 10, [2], [1.0, 2.0])),
    "needs one graph": lambda model: model.ClearField("graph"),
    "must occur once": lambda model: model.metadata_props.add(key="threshold", value="1"),
    "zeros elsewhere": lambda model: setattr(model, "doc_string", "0" * 64),
}


@pytest.mark.parametrize("message", REFUSED)
def test_files_that_are_not_edited(content, message):
    with pytest.raises(KdganError, match=message):
        replace_threshold(changed(content, REFUSED[message]), 1.0, RULE)


def test_fields_of_every_kind_are_walked():
    """Against protobuf's own writer: an attribute has varints, fixed 32 bits, bytes and packed numbers."""
    attribute = helper.make_attribute("alpha", 0.5)
    attribute.i = -1  # a varint of ten bytes
    attribute.ints.extend([1, 2**40])
    content = attribute.SerializeToString()
    numbers = [field.number for field in read_fields(content)]
    assert sorted(set(numbers)) == sorted(field.number for field, _ in attribute.ListFields())
    assert [field.end for field in read_fields(content)][-1] == len(content)
    assert list(read_fields(b"")) == []


@pytest.mark.parametrize(
    "content", [b"\x0a", b"\x0a\x05abc", b"\x08", b"\x80" * 11, b"\x0d\0\0", b"\x0b", b"\x02\x00", b"\x0f"]
)
def test_broken_messages(content):
    with pytest.raises(ValueError, match="byte"):
        list(read_fields(content))


def external(tensor):
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    return tensor


def constant(tensor):
    return helper.make_node("Constant", [], ["c"], value=tensor)


TENSOR = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
GRAPH = helper.make_graph([], "g", [], [], [external(helper.make_tensor("w", 1, [1], [1.0]))])
EXTERNAL = {
    "initializer": lambda model: external(model.graph.initializer[0]),
    "constant": lambda model: model.graph.node.append(constant(external(helper.make_tensor("w", 1, [1], [1.0])))),
    "branch": lambda model: model.graph.node.append(
        helper.make_node("If", ["c"], ["d"], then_branch=GRAPH, else_branch=helper.make_graph([], "h", [], []))
    ),
    "sparse": lambda model: model.graph.sparse_initializer.add().values.CopyFrom(
        external(helper.make_tensor("w", 1, [1], [1.0]))
    ),
    "function": lambda model: model.functions.add().node.append(
        constant(external(helper.make_tensor("w", 1, [1], [1.0])))
    ),
    "location without entries": lambda model: setattr(model.graph.initializer[0], "data_location", 1),
    "entries without location": lambda model: model.graph.initializer[0].external_data.add(key="location", value="x"),
}


@pytest.mark.parametrize("where", EXTERNAL)
def test_external_data_are_found_wherever_a_tensor_may_be(content, where):
    assert has_external_data(changed(content, EXTERNAL[where]))


def test_files_without_external_data(content, raw):
    assert not has_external_data(content)
    assert not has_external_data(raw)
    assert not has_external_data(changed(content, lambda model: model.graph.node.append(constant(TENSOR))))
    assert not has_external_data(changed(content, lambda m: setattr(m.graph.initializer[0], "data_location", 0)))


def nested(content: bytes, key: bytes) -> bytes:
    """A message as the field of another one."""
    length, size = len(content), bytearray()
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return key + bytes([*size, length]) + content


@pytest.mark.parametrize("is_external", [False, True])
def test_deeply_nested_graphs_need_no_recursion(is_external):
    tensor = external(helper.make_tensor("w", 1, [1], [1.0])) if is_external else TENSOR
    content = helper.make_graph([], "g", [], [], [tensor]).SerializeToString()
    for _ in range(2000):
        for key in (b"\x32", b"\x2a", b"\x0a"):  # the graph of an attribute of a node of a graph
            content = nested(content, key)
    assert has_external_data(nested(content, b"\x3a")) == is_external


def test_damaged_files_raise_nothing_but_value_errors(content):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 6)):
            damaged[position] = rng.integers(0, 256)
        damaged = bytes(damaged[: rng.integers(1, len(content) + 1)])
        for function in (has_external_data, lambda changed: replace_threshold(changed, 1.0, RULE)):
            with contextlib.suppress(ValueError):
                function(damaged)


def test_a_model_of_another_program_is_refused(content):
    with pytest.raises(KdganError, match="initializer named threshold"):
        replace_threshold(
            changed(brightness(1, 2.0).SerializeToString(), lambda m: m.graph.ClearField("initializer")), 1.0, ""
        )
