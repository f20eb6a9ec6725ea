"""Changes to valid files: of their bytes, and of what the bytes mean, which pass a parser's first checks."""

import io
import json
import random
import struct
import zipfile

import onnx
from onnx import numpy_helper

from kdgan_compress.runtime.checksum import CHECKSUM_KEY, CHECKSUM_PLACEHOLDER

ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    -(2**63),
    2**64,
    10**30,
    10**4400,
)
ODD_VALUES = (
    *(None, True, False, "", "x", [], {}, [1], {"a": 1}, "\ud800", "\x00", "a" * 5000, "../..", "folder:/", "npz:"),
    *(*ODD_NUMBERS[:-1], 0.5, -0.0, 1e308, float("nan"), float("inf"), [[]] * 3, "1e20", "mygan:build", "norm"),
)
ODD_TEXTS = (
    *(
        "!!float x",
        "!!int",
        "!!timestamp x",
        "!!python/object:os.system x",
        "2020-13-45",
        "0x",
        "0b",
        "1:99",
        ".inf",
        ".nan",
    ),
    *(
        "&a [*a]",
        "*b",
        "<<: *c",
        "null",
        "~",
        "[]",
        "{}",
        "[[[[",
        "{{",
        "'",
        '"',
        "\\ud800",
        "- ",
        "? ",
        "| ",
        "> ",
        "1e999",
    ),
    *(
        "9" * 5000,
        "\t",
        "\x00",
        "\u2028",
        "%YAML 3",
        "---",
        "...",
        "!!set {a}",
        "!!binary x",
        "=",
        "1_000",
        "NaN",
        "Infinity",
    ),
)
OPERATORS = (
    "If",
    "Loop",
    "Conv",
    "ConvTranspose",
    "Resize",
    "Expand",
    "Tile",
    "Gemm",
    "Unknown",
    "Pad",
    "Reshape",
    "Pow",
)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, remove, repeat and overwrite a few bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        position, length = rng.randrange(len(data)), min(1 << rng.randrange(8), len(data))
        match rng.randrange(7):
            case 0:
                data[position] ^= 1 << rng.randrange(8)
            case 1:
                data[position] = rng.randrange(256)
            case 2:
                del data[position : position + length]
            case 3:
                data[position:position] = data[position : position + length]
            case 4:
                data[position:position] = rng.choice(ODD_TEXTS).encode("utf-8", "surrogatepass")[:50]
            case 5:
                number = rng.choice(ODD_NUMBERS[:-1]) & (2**64 - 1)
                data[position : position + 8] = struct.pack(rng.choice("<>") + "Q", number)
            case 6:
                del data[position:]
    return bytes(data)


def mutate_value(value: object, rng: random.Random) -> object:
    """Replace, remove or repeat a value somewhere in nested lists and dictionaries."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value, key=str))
        changed = dict(value)
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(("x", "", "a" * 300, key + "x" if isinstance(key, str) else "y"))] = changed.pop(key)
            case _:
                changed[key] = mutate_value(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        changed_list = list(value)
        position = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                del changed_list[position]
            case 1:
                changed_list.append(changed_list[position])
            case _:
                changed_list[position] = mutate_value(changed_list[position], rng)
        return changed_list
    if rng.random() < 0.02:
        deep: object = []
        for _ in range(rng.choice((10, 500, 5000))):
            deep = [deep]
        return deep
    return rng.choice(ODD_VALUES)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Another value in a JSON text."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    return _dump(mutate_value(json.loads(content), rng))


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Another value in a line of JSON."""
    if rng.random() < 0.5:
        return mutate_bytes(content, rng)
    lines = content.splitlines()
    position = rng.randrange(len(lines))
    lines[position] = mutate_json(lines[position], rng)
    return b"\n".join(lines) + b"\n"


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """Another word in a text of lines ``key: value``."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 5))):
        position = rng.randrange(len(lines))
        key, colon, _ = lines[position].partition(":")
        odd = rng.choice(ODD_TEXTS)
        lines[position] = rng.choice(
            (f"{key}{colon} {odd}", odd, f"{odd}: 1", lines[position] + odd, f"  {lines[position]}")
        )
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Another value in the header, or in the model's own header, or other bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    (name,) = metadata
    if rng.random() < 0.75:
        metadata[name] = _dump(mutate_value(json.loads(metadata[name]), rng)).decode()
    else:
        header = mutate_value(header, rng)
    text = _dump(header)
    size = len(text) if rng.random() < 0.9 else rng.choice(ODD_NUMBERS[:-1]) & (2**64 - 1)
    return struct.pack("<Q", size) + text + content[8 + length :]


def mutate_zip(content: bytes, rng: random.Random) -> bytes:
    """Other bytes in a member, or another set of members, or other bytes of the archive."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        members = {name: archive.read(name) for name in names}
    chosen = rng.choice(names)
    match rng.randrange(8):
        case 0:
            del members[chosen]
        case 1:
            members[chosen] = members[rng.choice(names)]
        case 2:
            members[chosen + "x"] = members.pop(chosen)
        case 3 | 4:
            members[chosen] = _other_shape(members[chosen], rng)
        case _:
            members[chosen] = mutate_bytes(members[chosen], rng)
    is_stored = all(
        info.compress_type == zipfile.ZIP_STORED for info in zipfile.ZipFile(io.BytesIO(content)).infolist()
    )
    method = zipfile.ZIP_STORED if is_stored and rng.random() < 0.9 else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return stream.getvalue()


def mutate_npy(content: bytes, rng: random.Random) -> bytes:
    """Another shape or type in the header of an array, or other bytes."""
    return _other_shape(content, rng) if rng.random() < 0.5 else mutate_bytes(content, rng)


def mutate_detector(content: bytes, rng: random.Random) -> bytes:
    """Another attribute, operator, tensor or metadata entry, with the right checksum."""
    if rng.random() < 0.1:
        return mutate_bytes(content, rng)
    if rng.random() < 0.3:
        return seal(mutate_bytes(content, rng))
    model = onnx.load_from_string(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice((_change_attribute, _change_attribute, _change_node, _change_tensor, _change_metadata))(model, rng)
    try:
        return seal(model.SerializeToString())
    except ValueError:  # a text that is not UTF-8
        return seal(mutate_bytes(content, rng))


def seal(content: bytes) -> bytes:
    """The file with the checksum of its content, as far as it has a place for it."""
    import hashlib
    import re

    pattern = CHECKSUM_KEY.encode() + rb"\x12\x40([0-9a-f]{64})"
    match = re.search(pattern, content)
    if match is None:
        return content
    blank = content.replace(match[1], CHECKSUM_PLACEHOLDER.encode())
    return blank.replace(CHECKSUM_PLACEHOLDER.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


def _change_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    attribute = rng.choice(rng.choice(nodes).attribute)
    number = rng.choice((-1, 0, 0, 1, 2, 3, 7, 64, 1000, 2**31 - 1, 2**31, 2**62, -(2**63)))
    if attribute.ints and rng.random() < 0.8:
        attribute.ints[rng.randrange(len(attribute.ints))] = number
    elif attribute.ints:
        attribute.ints.append(number)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"x", b"linear", b"nearest", b"cubic", b"\xff", b"SAME_UPPER"))
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = number
    if rng.random() < 0.1:
        attribute.name = rng.choice(("group", "axis", "strides", "perm", "x", "to"))


def _change_node(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    match rng.randrange(6):
        case 0:
            node.op_type = rng.choice(OPERATORS)
        case 1:
            node.domain = rng.choice(("ai.onnx", "com.microsoft", "x"))
        case 2 if node.attribute:
            del node.attribute[rng.randrange(len(node.attribute))]
        case 3 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(rng.choice(model.graph.node).output)
        case 4:
            model.graph.node.remove(node)
        case _:
            names = [tensor.name for tensor in model.graph.initializer]
            node.input[rng.randrange(len(node.input))] = rng.choice(names) if node.input else ""


def _change_tensor(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    match rng.randrange(5):
        case 0 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, 1, 2, 1000, 2**31, 2**62, -1))
        case 1:
            tensor.data_type = rng.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 20, 99))
        case 2:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", rng.choice(("x", "/etc/passwd", "../x"))
        case 3:
            shapes = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT64]
            if shapes:
                chosen = rng.choice(shapes)
                values = numpy_helper.to_array(chosen).copy()
                if values.size:
                    values.reshape(-1)[rng.randrange(values.size)] = rng.choice((-1, 0, 1, 7, 100_000, 2**31, 2**62))
                    chosen.CopyFrom(numpy_helper.from_array(values, chosen.name))
        case _:
            tensor.raw_data = mutate_bytes(tensor.raw_data, rng)


def _change_metadata(model: onnx.ModelProto, rng: random.Random) -> None:
    entry = rng.choice([each for each in model.metadata_props if each.key != CHECKSUM_KEY])
    entry.value = rng.choice(
        ("", "x", "nan", "inf", "-1", "0", "1e999", "99999x99999", "16x16", "9" * 5000, "1.5", "16384")
    )


def _other_shape(member: bytes, rng: random.Random) -> bytes:
    """An array with another header."""
    if not member.startswith(b"\x93NUMPY"):
        return mutate_bytes(member, rng)
    start, _, rest = member.partition(b"{")
    header, _, values = rest.partition(b"}")
    text = header.decode("latin1")
    number = rng.choice((0, 1, 7, 10**9, 10**12, 10**18, 10**30, -1))
    match rng.randrange(4):
        case 0:
            text = text.replace("(", f"({number}, ", 1)
        case 1:
            text = text.replace("'shape': (", f"'shape': ({number},), 'x': (", 1)
        case 2:
            descr = rng.choice(
                ("<f4", "<f8", "|O", "<U64", "|u1", "<i8", "|b1", "<M8[s]", "|V8", "<U999999", "<c16", ">f4")
            )
            text = text.replace(text.split("'")[3], descr, 1)
        case 3:
            text = text.replace("False", rng.choice(("True", "1", "None", "False or True")), 1)
    body = b"{" + text.encode("latin1") + b"}" + values
    if rng.random() < 0.8:  # the length of the header is right
        change = len(text) - len(header)
        (length,) = struct.unpack("<H", start[8:10])
        start = start[:8] + struct.pack("<H", max(0, min(65535, length + change)))
    return start + body


def _dump(value: object) -> bytes:
    try:
        return json.dumps(value).encode()
    except (RecursionError, ValueError):
        return b"[" * 10_000
