"""The detector's graph: preprocessing before a core, verdict and maps behind it.

Inputs: ``image`` and the optional ``threshold``. Outputs: ``score`` (N,), ``is_anomaly`` (N,) and, if asked,
``reconstruction`` and ``error_map``.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from kdgan_compress.errors import KdganError
from kdgan_compress.export.core import SCORE, X_HAT
from kdgan_compress.export.nodes import add_constant
from kdgan_compress.gans import ImageFormat

InputKind = Literal["uint8", "float"]


@dataclass(frozen=True)
class Interface:
    """What the file takes and gives.

    Attributes:
        input: ``"uint8"``: (N, H, W, C), 0 to 255. ``"float"``: float32 (N, C, H, W), 0 to 1.
        frame: The one height and width that are taken, in pixels; None for any.
        single: N is 1 for good, instead of any number.
        reconstruction: Give x̂ too, in the input's type and layout, at the network's size.
        error_map: Give the mean of |x − x̂| over the channels too: float32 (N, S, S), 0 to 1.
    """

    input: InputKind = "uint8"
    frame: tuple[int, int] | None = None
    single: bool = False
    reconstruction: bool = False
    error_map: bool = False

    def __post_init__(self) -> None:
        if self.frame is not None and min(self.frame) < 1:
            raise KdganError("The frame must be at least 1×1 pixel", f"got {self.frame}", "Give its height and width")

    @property
    def maps(self) -> bool:
        """Whether the reconstruction is needed."""
        return self.reconstruction or self.error_map


def assemble(core: ir.Model, image_format: ImageFormat, threshold: float, interface: Interface) -> None:
    """Build preprocessing and verdict around a core, in place.

    Args:
        core: From ``images`` (N, C, S, S) in [−1, 1] to ``score`` (N,) and, for maps, ``x_hat``.
        image_format: Side and channels of its images.
        threshold: Default of the input of that name; scores above it are anomalies.
        interface: What the file takes and gives.
    """
    graph = core.graph
    (images,) = graph.inputs
    outputs = {value.name: value for value in graph.outputs}
    batch: int | str = 1 if interface.single else "N"
    channels = image_format.image_channels

    frame = interface.frame or ("H", "W")
    as_bytes = interface.input == "uint8"
    image = ir.Value(
        name="image",
        shape=ir.Shape([batch, *frame, channels] if as_bytes else [batch, channels, *frame]),
        type=ir.TensorType(ir.DataType.UINT8 if as_bytes else ir.DataType.FLOAT),
    )
    limit = add_constant(graph, np.array(threshold, np.float32))
    graph.initializers.pop(str(limit.name))
    limit.name = "threshold"
    graph.register_initializer(limit)
    graph.inputs[:] = [image, limit]

    pixels = _preprocess(graph, image, image_format, interface)
    images.replace_all_uses_with(pixels)
    score = outputs[SCORE]
    score.name = "score"
    score.shape = ir.Shape([batch])
    verdict = _append(graph, "Greater", [score, limit], "is_anomaly", ir.DataType.BOOL, [batch])
    given = [score, verdict]
    size = image_format.image_size
    if interface.reconstruction:
        given.append(_reconstruction(graph, outputs[X_HAT], as_bytes, [batch, size, size, channels]))
    if interface.error_map:
        error = _append(graph, "Abs", [_append(graph, "Sub", [pixels, outputs[X_HAT]])])
        axis, half = add_constant(graph, np.array([1])), add_constant(graph, np.array(0.5, np.float32))
        mean = _append(graph, "ReduceMean", [error, axis], keepdims=0)
        given.append(_append(graph, "Mul", [mean, half], "error_map", ir.DataType.FLOAT, [batch, size, size]))
    graph.outputs[:] = given
    graph.sort()


def _preprocess(graph: ir.Graph, image: ir.Value, image_format: ImageFormat, interface: Interface) -> ir.Value:
    """Resize as training does, antialiased and bilinear, and scale to [−1, 1]."""
    size = image_format.image_size
    values, axes = image, [2, 3]
    if interface.input == "uint8":
        values, axes = _append(graph, "Cast", [image], to=ir.DataType.FLOAT), [1, 2]
    if interface.frame != (size, size):
        sizes = add_constant(graph, np.array([size, size]))
        resize = ir.node(
            "Resize",
            [values, None, None, sizes],
            {
                "axes": axes,
                "mode": "linear",
                "coordinate_transformation_mode": "half_pixel",
                "antialias": 1,
                "exclude_outside": 1,  # weights of pixels beyond the edge are dropped, as torch and Pillow do
            },
        )
        graph.append(resize)
        (values,) = resize.outputs
    if interface.input == "uint8":
        values = _append(graph, "Transpose", [values], perm=[0, 3, 1, 2])  # last, where the image is small
    half_range = add_constant(graph, np.array(127.5 if interface.input == "uint8" else 0.5, np.float32))
    scaled = _append(graph, "Div", [values, half_range])
    one = add_constant(graph, np.array(1.0, np.float32))
    shape = [1 if interface.single else "N", image_format.image_channels, size, size]
    return _append(graph, "Sub", [scaled, one], None, ir.DataType.FLOAT, shape)


def _reconstruction(graph: ir.Graph, x_hat: ir.Value, as_bytes: bool, nhwc: list[int | str]) -> ir.Value:
    """x̂ in the input's own range and layout."""
    half = add_constant(graph, np.array(127.5 if as_bytes else 0.5, np.float32))
    one = add_constant(graph, np.array(1.0, np.float32))
    scaled = _append(graph, "Add", [x_hat, one])
    if not as_bytes:
        shape = [nhwc[0], nhwc[3], nhwc[1], nhwc[2]]
        return _append(graph, "Mul", [scaled, half], "reconstruction", ir.DataType.FLOAT, shape)
    low, high = (add_constant(graph, np.array(level, np.float32)) for level in (0, 255))
    rounded = _append(graph, "Round", [_append(graph, "Mul", [scaled, half])])
    levels = _append(graph, "Clip", [rounded, low, high])  # a network without tanh at its end may leave the range
    last = _append(graph, "Transpose", [levels], perm=[0, 2, 3, 1])
    return _append(graph, "Cast", [last], "reconstruction", ir.DataType.UINT8, nhwc, to=ir.DataType.UINT8)


def _append(
    graph: ir.Graph,
    operator: str,
    inputs: list[ir.Value],
    name: str | None = None,
    dtype: ir.DataType | None = None,
    shape: list[int | str] | None = None,
    **attributes: int | list[int],
) -> ir.Value:
    """One more node; its output, with name, type and shape where those matter."""
    node = ir.node(operator, inputs, attributes)
    (output,) = node.outputs
    if name is not None:
        output.name = name
    if dtype is not None:
        output.type = ir.TensorType(dtype)
    if shape is not None:
        output.shape = ir.Shape(shape)
    graph.append(node)
    return output


def tidy(model: ir.Model) -> None:
    """Short names in order, which no version of torch has a say in, and nothing about values inside."""
    graph = model.graph
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for value in graph.outputs:
        value.metadata_props.clear()  # torch's names for it
    for number, value in enumerate([value for value in graph.initializers.values() if id(value) not in kept]):
        value.name = f"w{number}"
        if value.const_value is not None:
            value.const_value.name = value.name
    number = 0
    for position, node in enumerate(graph):
        node.name = f"n{position}"
        for output in node.outputs:
            if id(output) not in kept:
                output.name = f"v{number}"
                output.shape = output.type = None
                number += 1
