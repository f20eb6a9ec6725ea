"""Check an ONNX file before ONNX Runtime sees it, since an invalid attribute can crash the process.

Only what a detector needs is accepted: standard operators without subgraphs, attributes whose values make sense,
tensors that are as long as they say, and no shape that asks for more memory than ``MAX_ELEMENTS``. The bytes are read
as ``onnx_file`` describes; field numbers are those of ``onnx.proto``.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from kdgan_compress.runtime.onnx_file import BYTES, FIXED32, FIXED64, VARINT, Field, read_fields, read_varint
from kdgan_compress.runtime.operator_rules import MAX_RANK, OPERATORS, RULES, SENTINEL

STANDARD_DOMAINS = ("", "ai.onnx")
MIN_OPSET, MAX_OPSET = 13, 26
MAX_NODES = MAX_TENSORS = 20_000
MAX_ELEMENTS = 1 << 27
MAX_PADDING, MAX_SCALE = 4_096, 64

ATTRIBUTE_VALUES = {"f": 2, "i": 3, "s": 4, "t": 5, "floats": 7, "ints": 8}
"""Fields of an attribute that a detector may use."""

KINDS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints"}
"""``AttributeProto.type`` → the field that has the value."""

REQUIRED = {"Cast": "to", "DepthToSpace": "blocksize", "SpaceToDepth": "blocksize", "Concat": "axis"}

BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}
"""Bits of one value by ``TensorProto.DataType``; others are not accepted."""

TYPED_DATA = {1: (4, FIXED32), 6: (5, VARINT), 7: (7, VARINT), 11: (10, FIXED64)}
"""Data type → field and wire type of values that are not stored as raw bytes."""

INT32, INT64, FLOAT = 6, 7, 1


class Tensor:
    """A tensor's name, type and shape; its values are read only where they are shapes."""

    def __init__(self, content: bytes, begin: int, end: int) -> None:
        names = {1: "dims", 2: "data_type", 8: "name", 9: "raw_data", 4: "", 5: "", 7: "", 10: "", 12: ""}
        fields = _fields(content, begin, end, names)
        self.name = _text(content, fields.get(8, []))
        self.dims = _integers(content, fields.get(1, []))
        (self.data_type,) = _integers(content, fields.get(2, [])) or (0,)
        if self.data_type not in BITS:
            raise ValueError(f"tensor {self.name} has an unknown type")
        if len(self.dims) > MAX_RANK or any(not 0 <= dim < SENTINEL for dim in self.dims):
            raise ValueError(f"tensor {self.name} has the shape {self.dims}")
        size = (math.prod(self.dims) * BITS[self.data_type] + 7) // 8
        raw = fields.get(9, [])
        number, wire_type = TYPED_DATA.get(self.data_type, (5, VARINT))
        if raw:
            if len(raw) > 1 or raw[0].end - raw[0].begin != size:
                raise ValueError(f"tensor {self.name} has not as many values as its shape says")
            self._raw: bytes | None = content[raw[0].begin : raw[0].end]
        else:
            self._raw = None
            self._typed = _packed(content, fields.get(number, []), wire_type)
            if len(self._typed) != math.prod(self.dims):
                raise ValueError(f"tensor {self.name} has not as many values as its shape says")

    def integers(self) -> list[int]:
        """The values of an integer tensor."""
        if self._raw is None:
            return [_signed(value) for value in self._typed]
        code = {INT32: "i", INT64: "q"}[self.data_type]
        return list(struct.unpack(f"<{len(self._raw) // struct.calcsize(code)}{code}", self._raw))

    def floats(self) -> list[float]:
        """The values of a float32 tensor."""
        raw = self._raw if self._raw is not None else struct.pack(f"<{len(self._typed)}I", *self._typed)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def check_model(content: bytes) -> None:
    """Check a file's content.

    Raises:
        ValueError: It is not a protobuf message, or has something that a detector doesn't need; the message says what.
    """
    fields = _fields(content, 0, len(content), dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 8, 14), ""))
    graphs = fields.get(7, [])
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs")
    domains = []
    for field in fields.get(8, []):
        parts = _fields(content, field.begin, field.end, {1: "", 2: ""})
        domains.append(_text(content, parts.get(1, [])))
        version = sum(_integers(content, parts.get(2, [])))
        if domains[-1] not in STANDARD_DOMAINS:
            raise ValueError(f"it needs custom operators of {domains[-1]!r}")
        if not MIN_OPSET <= version <= MAX_OPSET:
            raise ValueError(f"it needs operator set {version}")
    if len(domains) != 1:
        raise ValueError(f"it names {len(domains)} operator sets")
    _check_graph(content, graphs[0])


def _check_graph(content: bytes, graph: Field) -> None:
    known = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 16), "")
    fields = _fields(content, graph.begin, graph.end, known)
    nodes, initializers = fields.get(1, []), fields.get(5, [])
    if len(nodes) > MAX_NODES or len(initializers) > MAX_TENSORS:
        raise ValueError(f"it has {len(nodes):,} operators and {len(initializers):,} tensors")
    tensors: dict[str, Tensor] = {}
    for field in initializers:
        tensor = Tensor(content, field.begin, field.end)
        if tensor.name in tensors or not tensor.name:
            raise ValueError(f"two tensors have the name {tensor.name!r}")
        tensors[tensor.name] = tensor
    for field in nodes:
        _check_node(content, field, tensors)


def _check_node(content: bytes, node: Field, tensors: dict[str, Tensor]) -> None:
    fields = _fields(content, node.begin, node.end, dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 9), ""))
    operator, domain = (_text(content, fields.get(number, [])) for number in (4, 7))
    if domain not in STANDARD_DOMAINS or operator not in OPERATORS:
        raise ValueError(f"it has the operator {f'{domain}.' if domain else ''}{operator}, which no detector may have")
    attributes: dict[str, Any] = {}
    for field in fields.get(5, []):
        name, value = _attribute(content, field, operator)
        if name in attributes:
            raise ValueError(f"an operator {operator} has two attributes {name}")
        attributes[name] = value
    if operator in REQUIRED and REQUIRED[operator] not in attributes:
        raise ValueError(f"an operator {operator} lacks {REQUIRED[operator]}")
    inputs = [_text(content, [field]) for field in fields.get(1, [])]
    outputs = [_text(content, [field]) for field in fields.get(2, [])]
    if isinstance(constant := attributes.get("value"), Tensor) and operator == "Constant" and outputs:
        tensors[outputs[0]] = constant
    _check_constants(operator, inputs, tensors)
    if operator in ("Conv", "ConvTranspose"):
        _check_convolution(operator, attributes, [tensors.get(name) for name in inputs])


def _attribute(content: bytes, field: Field, operator: str) -> tuple[str, Any]:
    """An attribute's name and value, which is valid."""
    known = dict.fromkeys((1, 20, *ATTRIBUTE_VALUES.values()), "")
    fields = _fields(content, field.begin, field.end, known | {13: ""})
    name = _text(content, fields.get(1, []))
    kind, is_valid = RULES.get(name, ("", lambda _: False))
    (stated,) = _integers(content, fields.get(20, [])) or (0,)
    values = {key: fields[number] for key, number in ATTRIBUTE_VALUES.items() if fields.get(number)}
    if KINDS.get(stated) != kind or values.keys() - {kind}:
        raise ValueError(f"an operator {operator} has the attribute {name!r}, which is not valid")
    value = _attribute_value(content, kind, values.get(kind, []))
    if not is_valid(value):
        shown = "" if kind == "t" else f" = {value}"
        raise ValueError(f"an operator {operator} has {name}{shown}, which is not valid")
    return name, value


def _attribute_value(content: bytes, kind: str, fields: list[Field]) -> Any:
    if kind == "ints":
        return [_signed(value) for value in _packed(content, fields, VARINT)]
    if kind == "floats":
        return [_as_float(value) for value in _packed(content, fields, FIXED32)]
    if kind == "s":
        return _text(content, fields)
    if kind == "t":
        if len(fields) != 1:
            raise ValueError("a constant has no value, or several")
        return Tensor(content, fields[0].begin, fields[0].end)
    if kind == "f":
        return _as_float(_packed(content, fields, FIXED32)[-1]) if fields else 0.0
    return (_integers(content, fields) or [0])[-1]


def _check_constants(operator: str, inputs: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Check the constants that say how large an operator's output is."""
    for index, name in enumerate(inputs):
        tensor = tensors.get(name)
        if tensor is None or (index == 0 and operator not in ("ConstantOfShape", "Range")):
            continue
        what = f"an operator {operator} asks for "
        if tensor.data_type in (INT32, INT64) and operator not in ("Gather", "GatherElements", "GatherND"):
            values = [abs(value) for value in tensor.integers() if abs(value) < SENTINEL]
            limit = MAX_PADDING if operator == "Pad" else MAX_ELEMENTS
            product = math.prod(value or 1 for value in values[:MAX_RANK])
            if product > MAX_ELEMENTS or any(value > limit for value in values):
                raise ValueError(f"{what}{values[:MAX_RANK]} values")
        is_scale = operator == "Resize" and index == 2 and tensor.data_type == FLOAT
        if is_scale and not all(0 < scale <= MAX_SCALE for scale in tensor.floats()):
            raise ValueError(f"{what}a scale that is not valid")


def _check_convolution(operator: str, attributes: Mapping[str, Any], inputs: list[Tensor | None]) -> None:
    """Check that the weights fit the attributes; weights that are computed are left to ONNX Runtime."""
    weight = inputs[1] if len(inputs) > 1 else None
    if weight is None:
        return
    group, kernel = attributes.get("group", 1), attributes.get("kernel_shape", weight.dims[2:])
    if len(weight.dims) < 3 or weight.dims[2:] != kernel or 0 in weight.dims or weight.dims[0] % group:
        raise ValueError(f"an operator {operator} has weights {weight.dims} for kernels {kernel} in {group} groups")
    bias = inputs[2] if len(inputs) > 2 else None
    channels = weight.dims[0] if operator == "Conv" else weight.dims[1] * group
    if bias is not None and bias.dims != [channels]:
        raise ValueError(f"an operator {operator} has a bias {bias.dims} for {channels} channels")


def _fields(content: bytes, begin: int, end: int, known: Mapping[int, str]) -> dict[int, list[Field]]:
    """The fields of a message by number.

    Raises:
        ValueError: It has one that is not known.
    """
    fields: dict[int, list[Field]] = {}
    for field in read_fields(content, begin, end):
        if field.number not in known:
            raise ValueError(f"the part at byte {field.start} has field {field.number}, which a detector doesn't need")
        fields.setdefault(field.number, []).append(field)
    return fields


def _text(content: bytes, fields: list[Field]) -> str:
    if not fields:
        return ""
    if len(fields) > 1 or fields[0].wire_type != BYTES:
        raise ValueError(f"the text at byte {fields[0].start} is not valid")
    return content[fields[0].begin : fields[0].end].decode("utf-8")


def _integers(content: bytes, fields: list[Field]) -> list[int]:
    return [_signed(value) for value in _packed(content, fields, VARINT)]


def _packed(content: bytes, fields: list[Field], wire_type: int) -> list[int]:
    """The values of a repeated field, each in a field of its own or many in one; floats as their bits."""
    values: list[int] = []
    for field in fields:
        if field.wire_type not in (wire_type, BYTES):
            raise ValueError(f"the number at byte {field.start} has another type")
        values += _numbers(content, field.begin, field.end, wire_type)
    return values


def _numbers(content: bytes, begin: int, end: int, wire_type: int) -> Iterator[int]:
    if wire_type != VARINT:
        size = 4 if wire_type == FIXED32 else 8
        if (end - begin) % size:
            raise ValueError(f"the numbers at byte {begin} are not complete")
        yield from struct.unpack(f"<{(end - begin) // size}{'I' if size == 4 else 'Q'}", content[begin:end])
        return
    while begin < end:
        value, begin = read_varint(content, begin, end)
        yield value


def _signed(value: int) -> int:
    """A varint as the 64-bit integer that it stands for."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _as_float(bits: int) -> float:
    (value,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(value)
