"""The detector's ONNX graph: preprocessing and verdict written by hand around the generator that torch exports.

Inputs: ``image`` uint8 (N, H, W, C) of any size, optional ``threshold``. Outputs: ``score`` and ``is_anomaly`` (N,).
"""

import logging
import warnings
from collections.abc import Iterable

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kdgan_compress.gans import ImageFormat, Scorer

OPSET = 18
IR_VERSION = 9
PREFIX = "g_"


def detector_graph(generator: torch.nn.Module, image_format: ImageFormat, threshold: float) -> onnx.ModelProto:
    """Build the whole graph.

    Args:
        generator: In evaluation mode, with ``anomaly_score``.
        image_format: Side and channels of its images.
        threshold: Default of the input of that name; scores above it are anomalies.

    Returns:
        A checked model without metadata, paths or source lines.
    """
    core = _torch_graph(Scorer(generator), image_format)
    size, channels = image_format.image_size, image_format.image_channels
    constants: dict[str, NDArray[np.generic]] = {
        "channels_and_size": np.array([channels, size, size], dtype=np.int64),
        "half_range": np.array(127.5, dtype=np.float32),
        "one": np.array(1.0, dtype=np.float32),
    }
    before = [
        helper.make_node("Cast", ["image"], ["float_nhwc"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float_nhwc"], ["float_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Shape", ["image"], ["batch_size"], start=0, end=1),
        helper.make_node("Concat", ["batch_size", "channels_and_size"], ["sizes"], axis=0),
        helper.make_node(
            "Resize",
            ["float_nchw", "", "", "sizes"],
            ["resized"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            antialias=1,
            exclude_outside=1,  # weights of pixels beyond the edge are dropped, as torch and Pillow do
        ),
        helper.make_node("Div", ["resized", "half_range"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], [PREFIX + core.graph.input[0].name]),
    ]
    after = [
        helper.make_node("Identity", [PREFIX + core.graph.output[0].name], ["score"]),
        helper.make_node("Greater", ["score", "threshold"], ["is_anomaly"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.array(threshold, dtype=np.float32), "threshold"))
    graph = helper.make_graph(
        [*before, *_renamed(core), *after],
        "detector",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", channels]),
            helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("is_anomaly", TensorProto.BOOL, ["N"]),
        ],
        [*initializers, *core.graph.initializer],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "kdgan-compress"
    onnx.checker.check_model(model, full_check=True)
    return model


def _torch_graph(scorer: torch.nn.Module, image_format: ImageFormat) -> onnx.ModelProto:
    """The scorer as torch exports it, batch dynamic."""
    example = torch.zeros(2, image_format.image_channels, image_format.image_size, image_format.image_size)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecated parts
            program = torch.onnx.export(
                scorer.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    versions = {opset.domain: opset.version for opset in model.opset_import}
    assert versions[""] == OPSET, f"torch exported opset {versions['']}"
    return model


def _renamed(core: onnx.ModelProto) -> Iterable[onnx.NodeProto]:
    """The core's nodes under names of their own and without the paths and source lines torch leaves in them.

    Nodes and values are numbered in order, so that the bytes don't depend on how torch names things; initializers are
    renamed in place.
    """
    names = {"": ""}
    for value in (core.graph.input[0], core.graph.output[0]):
        names[value.name] = PREFIX + value.name
    for number, initializer in enumerate(core.graph.initializer):
        names[initializer.name] = f"w{number}"
        initializer.name = f"w{number}"
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    for number, node in enumerate(core.graph.node):
        for output in node.output:
            names.setdefault(output, f"v{len(names)}")
        renamed = helper.make_node(
            node.op_type, [names[name] for name in node.input], [names[name] for name in node.output], f"n{number}"
        )
        renamed.domain = node.domain
        renamed.attribute.extend(node.attribute)
        yield renamed
