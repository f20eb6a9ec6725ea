"""A handwritten detector file with the checksum of an export: the score of an image is its mean grey level."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from kdgan_compress.runtime.checksum import CHECKSUM_KEY, CHECKSUM_PLACEHOLDER, write_checksum
from kdgan_compress.runtime.detector import SCHEMA_VERSION


def brightness(channels: int, threshold: float) -> onnx.ModelProto:
    """The ONNX graph, without metadata."""
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["levels", "axes"], ["score"], keepdims=0),
        helper.make_node("Greater", ["score", "threshold"], ["is_anomaly"]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", channels]),
            helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("is_anomaly", TensorProto.BOOL, ["N"]),
        ],
        [
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("threshold", TensorProto.FLOAT, [], [threshold]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_brightness(path: Path, channels: int = 1, threshold: float = 100.5, **changed: str) -> Path:
    """Write the detector; ``changed`` is further metadata."""
    model = brightness(channels, threshold)
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "image_channels": str(channels),
        "image_size": "32",
        "threshold": repr(threshold),
        "precision": "fp32",
        "weights_sha256": "none",
        CHECKSUM_KEY: CHECKSUM_PLACEHOLDER,
    }
    helper.set_model_props(model, metadata | changed)
    onnx.checker.check_model(model)
    path.write_bytes(write_checksum(model.SerializeToString()))
    return path
