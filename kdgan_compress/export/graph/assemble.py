"""Add preprocessing before the traced core, and the decision and maps after it.

Inputs: ``image`` and the optional ``threshold``. Outputs: ``score`` (N,), ``is_anomaly`` (N,) and, on request,
``reconstruction`` and ``anomaly_map``. A core that cuts photos into tiles has an anomaly map of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir

from kdgan_compress.errors import KdganError
from kdgan_compress.export.graph.nodes import add_constant
from kdgan_compress.export.graph.trace import MAP, SCORE, X_HAT
from kdgan_compress.gans import ImageFormat

InputKind = Literal["uint8", "float"]

MAX_SIDE = 8192
"""Height and width of images of a fixed size, in pixels."""


@dataclass(frozen=True)
class IOSpec:
    """Inputs and outputs of the exported file.

    Attributes:
        input: ``"uint8"``: (N, H, W, C), 0 to 255. ``"float"``: float32 (N, C, H, W), 0 to 1.
        input_size: Fixed height and width of the images, in pixels; None for any size.
        batch_size: 1 fixes N to 1; None for any N.
        reconstruction: Also output x̂, with the input's type and layout, at the network's size; not with tiles.
        anomaly_map: Also output an anomaly map, float32. With tiles (N, H, W) at the frame's size, in units of the
            score; else (N, S, S): |x − x̂| averaged over the channels, 0 to 1. None: only with tiles.
    """

    input: InputKind = "uint8"
    input_size: tuple[int, int] | None = None
    batch_size: Literal[1] | None = None
    reconstruction: bool = False
    anomaly_map: bool | None = None

    def __post_init__(self) -> None:
        if self.input_size is not None and min(self.input_size) < 1:
            found = f"got {self.input_size}"
            raise KdganError("The input size must be at least 1×1 pixel", found, "Give height and width")
        if self.input_size is not None and max(self.input_size) > MAX_SIDE:
            found = f"got {self.input_size}"
            raise KdganError(f"The input size must be at most {MAX_SIDE} pixels", found, "Give a smaller one")

    def resolve(self, is_tiled: bool) -> "IOSpec":
        """The same with ``anomaly_map`` decided.

        Raises:
            KdganError: A reconstruction of tiles is requested.
        """
        if is_tiled and self.reconstruction:
            hint = "Leave out --reconstruction; the anomaly map shows where a photo differs"
            raise KdganError("Photos cut into tiles have no reconstruction", "the tiles overlap", hint)
        return replace(self, anomaly_map=is_tiled if self.anomaly_map is None else self.anomaly_map)


def add_pre_and_postprocessing(core: ir.Model, image_format: ImageFormat, threshold: float, io: IOSpec) -> None:
    """Turn a traced core into a detector, in place.

    Args:
        core: Graph from ``images`` (N, C, H, W) in [−1, 1] to ``score`` (N,) and, for maps, ``x_hat`` or ``map``.
        image_format: Size and channels of the network's images.
        threshold: Default value of the input ``threshold``; scores above it are anomalies.
        io: Inputs and outputs of the detector.
    """
    graph = core.graph
    (images,) = graph.inputs
    traced = {value.name: value for value in graph.outputs}
    batch: int | str = io.batch_size or "N"
    channels = image_format.image_channels
    size = io.input_size or ("H", "W")
    is_uint8 = io.input == "uint8"
    image = ir.Value(
        name="image",
        shape=ir.Shape([batch, *size, channels] if is_uint8 else [batch, channels, *size]),
        type=ir.TensorType(ir.DataType.UINT8 if is_uint8 else ir.DataType.FLOAT),
    )
    limit = add_constant(graph, float(threshold))
    graph.initializers.pop(str(limit.name))
    limit.name = "threshold"
    graph.register_initializer(limit)
    graph.inputs[:] = [image, limit]

    working_size = frame_of(images)
    pixels = _add_preprocessing(graph, image, channels, working_size, io)
    images.replace_all_uses_with(pixels)
    score = traced[SCORE]
    score.name = "score"
    score.shape = ir.Shape([batch])
    outputs = [score, _append(graph, "Greater", [score, limit], "is_anomaly", ir.DataType.BOOL, [batch])]
    if io.reconstruction:
        outputs.append(_add_reconstruction(graph, traced[X_HAT], is_uint8, batch, image_format))
    if io.resolve(MAP in traced).anomaly_map:
        if MAP in traced:
            anomaly_map = traced[MAP]
            anomaly_map.name, anomaly_map.shape = "anomaly_map", ir.Shape([batch, *working_size])
        else:
            error = _append(graph, "Abs", [_append(graph, "Sub", [pixels, traced[X_HAT]])])
            mean, shape = _append(graph, "ReduceMean", [error, [1]], keepdims=0), [batch, *working_size]
            anomaly_map = _append(graph, "Mul", [mean, 0.5], "anomaly_map", ir.DataType.FLOAT, shape)
        outputs.append(anomaly_map)
    graph.outputs[:] = outputs
    graph.sort()


def frame_of(images: ir.Value) -> tuple[int, int]:
    """Height and width of a core's input."""
    assert images.shape is not None
    height, width = images.shape[2:]
    assert isinstance(height, int)
    assert isinstance(width, int)
    return height, width


def _add_preprocessing(graph: ir.Graph, image: ir.Value, channels: int, size: tuple[int, int], io: IOSpec) -> ir.Value:
    """Resize as in training (bilinear, antialiased) and scale to [−1, 1]."""
    values, axes, half_range = image, [2, 3], 0.5
    if io.input == "uint8":
        values, axes, half_range = _append(graph, "Cast", [image], to=ir.DataType.FLOAT), [1, 2], 127.5
    if io.input_size != size:
        values = _append(
            graph,
            "Resize",
            [values, None, None, list(size)],
            axes=axes,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            antialias=1,
            exclude_outside=1,  # weights of pixels outside the image are dropped, as in torch and Pillow
        )
    if io.input == "uint8":
        values = _append(graph, "Transpose", [values], perm=[0, 3, 1, 2])  # after the resize, when the image is small
    scaled = _append(graph, "Div", [values, half_range])
    return _append(graph, "Sub", [scaled, 1.0], None, ir.DataType.FLOAT, [io.batch_size or "N", channels, *size])


def _add_reconstruction(
    graph: ir.Graph, x_hat: ir.Value, is_uint8: bool, batch: int | str, image_format: ImageFormat
) -> ir.Value:
    """Convert x̂ to the input's range and layout."""
    channels, side = image_format.image_channels, image_format.image_size
    shifted = _append(graph, "Add", [x_hat, 1.0])
    if not is_uint8:
        shape = [batch, channels, side, side]
        return _append(graph, "Mul", [shifted, 0.5], "reconstruction", ir.DataType.FLOAT, shape)
    rounded = _append(graph, "Round", [_append(graph, "Mul", [shifted, 127.5])])
    levels = _append(graph, "Clip", [rounded, 0.0, 255.0])  # a decoder without a final tanh may leave the range
    nhwc = _append(graph, "Transpose", [levels], perm=[0, 2, 3, 1])
    dtype, shape = ir.DataType.UINT8, [batch, side, side, channels]
    return _append(graph, "Cast", [nhwc], "reconstruction", dtype, shape, to=dtype)


def _append(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value | float | list[int] | None],
    name: str | None = None,
    dtype: ir.DataType | None = None,
    shape: Sequence[int | str] | None = None,
    **attributes: Any,
) -> ir.Value:
    """Append a node, with numbers among its inputs as constants; returns its output."""
    values = [each if each is None or isinstance(each, ir.Value) else add_constant(graph, each) for each in inputs]
    node = ir.node(operator, values, attributes)
    (output,) = node.outputs
    output.name = name
    output.type = None if dtype is None else ir.TensorType(dtype)
    output.shape = None if shape is None else ir.Shape(shape)
    graph.append(node)
    return output


def canonicalize_names(model: ir.Model) -> None:
    """Give values and nodes short numbered names that do not depend on torch's version; drop inner shapes and types."""
    graph = model.graph
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for value in graph.outputs:
        value.metadata_props.clear()  # torch's names
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
