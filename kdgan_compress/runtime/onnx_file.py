"""Read and edit an ONNX file without the onnx package: as much of the protobuf format as a detector needs.

A message is a sequence of fields. Each begins with a key, the varint ``number << 3 | wire type``; then follow a varint
(wire type 0), 8 bytes (1), a length and that many bytes (2), or 4 bytes (5). Field numbers are those of ``onnx.proto``.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime.checksum import CHECKSUM_KEY, CHECKSUM_PLACEHOLDER, write_checksum

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

MAX_VARINT_BYTES = 10

MODEL_GRAPH, MODEL_METADATA = 7, 14
GRAPH_INITIALIZER = 5
TENSOR_DATA_TYPE, TENSOR_FLOAT_DATA, TENSOR_NAME, TENSOR_RAW_DATA = 2, 4, 8, 9
TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 13, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
FLOAT = 1
"""``TensorProto.DataType.FLOAT``."""

SUBMESSAGES = {
    "model": {MODEL_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", GRAPH_INITIALIZER: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Kind of message → its fields that lead to tensors, and their kinds."""

THRESHOLD_HINT = "Give a detector that `kdgan-compress export` wrote"


class Field(NamedTuple):
    """One field of a message, as positions in the file's content.

    Attributes:
        number: Number of the field.
        wire_type: How its value is stored.
        start: Position of the key.
        begin: Position of the value; of the bytes after the length for wire type 2.
        end: Position after the value.
    """

    number: int
    wire_type: int
    start: int
    begin: int
    end: int


def read_fields(content: bytes, begin: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of the message in ``content[begin:end]``, in order.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    end = len(content) if end is None else end
    position = begin
    while position < end:
        start = position
        key, position = read_varint(content, position, end)
        number, wire_type = key >> 3, key & 7
        value = position
        if wire_type == VARINT:
            _, position = read_varint(content, position, end)
        elif wire_type == BYTES:
            length, value = read_varint(content, position, end)
            position = value + length
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"byte {start} begins no field of a protobuf message")
        if position > end or number == 0:
            raise ValueError(f"the field at byte {start} is not complete")
        yield Field(number, wire_type, start, value, position)


def has_external_data(content: bytes) -> bool:
    """Whether a tensor of the ONNX file keeps its values in another file.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    messages = [("model", 0, len(content))]  # not recursive, since graphs may be nested without limit
    while messages:
        kind, begin, end = messages.pop()
        for field in read_fields(content, begin, end):
            if kind == "tensor" and field.number == TENSOR_EXTERNAL_DATA:
                return True
            if kind == "tensor" and field.number == TENSOR_DATA_LOCATION and _varint_of(content, field) != 0:
                return True
            if field.wire_type == BYTES and field.number in SUBMESSAGES[kind]:
                messages.append((SUBMESSAGES[kind][field.number], field.begin, field.end))
    return False


def replace_threshold(content: bytes, threshold: float, rule: str) -> bytes:
    """Give a detector file another default threshold; everything else keeps its bytes, except for the checksum.

    Args:
        content: The ``.onnx`` file.
        threshold: The new threshold, for the initializer ``threshold`` and the metadata entry of that name.
        rule: How it was set, for the metadata entry ``threshold_rule``.

    Returns:
        The new file's content.

    Raises:
        KdganError: The file has no single float32 ``threshold``, or repeats a metadata entry.
        ValueError: The bytes are not a protobuf message.
    """
    entries = {"threshold": repr(float(threshold)), "threshold_rule": rule, CHECKSUM_KEY: CHECKSUM_PLACEHOLDER}
    written: set[str] = set()
    num_graphs = 0
    parts = []
    for field in read_fields(content):
        part = content[field.start : field.end]
        if field.number == MODEL_GRAPH:
            num_graphs += 1
            part = _bytes_field(MODEL_GRAPH, _replace_in_graph(content, field, threshold))
        elif field.number == MODEL_METADATA:
            key = _text(content, field, ENTRY_KEY)
            if key in entries:
                if key in written:
                    raise KdganError("A metadata entry must occur once", f"{key} is repeated", THRESHOLD_HINT)
                written.add(key)
                part = _metadata_entry(key, entries[key])
        parts.append(part)
    if num_graphs != 1:
        raise KdganError("An ONNX file needs one graph", f"this one has {num_graphs}", THRESHOLD_HINT)
    parts += [_metadata_entry(key, value) for key, value in entries.items() if key not in written]
    edited = b"".join(parts)
    if edited.count(CHECKSUM_PLACEHOLDER.encode()) != 1:
        found = f"it contains {len(CHECKSUM_PLACEHOLDER)} zeros elsewhere"
        raise KdganError("The file needs a place for its checksum", found, THRESHOLD_HINT)
    return write_checksum(edited)


def _replace_in_graph(content: bytes, graph: Field, threshold: float) -> bytes:
    """The graph's bytes with another value of the initializer ``threshold``."""
    parts, num_replaced = [], 0
    for field in read_fields(content, graph.begin, graph.end):
        if field.number == GRAPH_INITIALIZER and _text(content, field, TENSOR_NAME) == "threshold":
            num_replaced += 1
            parts.append(_bytes_field(GRAPH_INITIALIZER, _replace_value(content, field, threshold)))
        else:
            parts.append(content[field.start : field.end])
    if num_replaced != 1:
        problem = "A detector needs one initializer named threshold"
        raise KdganError(problem, f"this file has {num_replaced}", THRESHOLD_HINT)
    return b"".join(parts)


def _replace_value(content: bytes, tensor: Field, threshold: float) -> bytes:
    """The tensor's bytes with another value, stored in the same field as before."""
    parts, sizes, is_float = [], [], False
    for field in read_fields(content, tensor.begin, tensor.end):
        part = content[field.start : field.end]
        if field.number in (TENSOR_FLOAT_DATA, TENSOR_RAW_DATA):
            sizes.append(field.end - field.begin)
            part = content[field.start : field.begin] + struct.pack("<f", threshold)  # key and length stay
        is_float |= field.number == TENSOR_DATA_TYPE and _varint_of(content, field) == FLOAT
        parts.append(part)
    if sizes != [struct.calcsize("<f")] or not is_float:
        problem, found = "The initializer threshold must be one float32", "it has another type or number of values"
        raise KdganError(problem, found, THRESHOLD_HINT)
    return b"".join(parts)


def _text(content: bytes, message: Field, number: int) -> str:
    """The value of a message's text field; empty if it has none. As in protobuf, the last one counts."""
    text = b""
    for field in read_fields(content, message.begin, message.end):
        if field.number == number:
            text = content[field.begin : field.end]
    return text.decode(errors="replace")


def _metadata_entry(key: str, value: str) -> bytes:
    return _bytes_field(
        MODEL_METADATA, _bytes_field(ENTRY_KEY, key.encode()) + _bytes_field(ENTRY_VALUE, value.encode())
    )


def _bytes_field(number: int, value: bytes) -> bytes:
    return _write_varint(number << 3 | BYTES) + _write_varint(len(value)) + value


def _varint_of(content: bytes, field: Field) -> int:
    return read_varint(content, field.begin, field.end)[0]


def read_varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """The integer at ``position``, in groups of 7 bits from the lowest, and the position after it."""
    value = 0
    for number, byte in enumerate(content[position : min(end, position + MAX_VARINT_BYTES)]):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value, position + number + 1
    raise ValueError(f"the number at byte {position} is not complete")


def _write_varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
