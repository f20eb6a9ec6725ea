"""A handwritten detector with a frame: it resizes a photo to the frame and outputs a map in units of the score.

The map is the difference from a reference image in grey levels, averaged over the channels and over a square; the
score is its maximum.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdgan_compress.runtime.checksum import CHECKSUM_KEY, CHECKSUM_PLACEHOLDER, write_checksum
from kdgan_compress.runtime.detector import SCHEMA_VERSION


def tile_detector(reference: np.ndarray, threshold: float, smoothing: int = 1) -> onnx.ModelProto:
    """The ONNX graph for a reference image (H, W, C), without metadata."""
    height, width, channels = reference.shape
    half = smoothing // 2
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node(
            "Resize",
            ["pixels", "", "", "size"],
            ["resized"],
            axes=[1, 2],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            antialias=1,
        ),
        helper.make_node("Sub", ["resized", "reference"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("ReduceMean", ["distance", "last"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["planes"]),
        helper.make_node(
            "AveragePool",
            ["planes"],
            ["smooth"],
            kernel_shape=[smoothing, smoothing],
            pads=[half] * 4,
        ),
        helper.make_node("Squeeze", ["smooth", "one"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "sides"], ["score"], keepdims=0),
        helper.make_node("Greater", ["score", "threshold"], ["is_anomaly"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiles",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", channels]),
            helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("is_anomaly", TensorProto.BOOL, ["N"]),
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", height, width]),
        ],
        [
            numpy_helper.from_array(np.array([height, width], np.int64), "size"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([3], np.int64), "last"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "sides"),
            numpy_helper.from_array(reference.astype(np.float32)[None], "reference"),
            numpy_helper.from_array(np.array(threshold, np.float32), "threshold"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_tile_detector(
    path: Path, reference: np.ndarray, threshold: float, smoothing: int = 1, **changed: str | None
) -> Path:
    """Write the detector; ``changed`` is further metadata, None removes an entry."""
    model = tile_detector(reference, threshold, smoothing)
    height, width, channels = reference.shape
    metadata: dict[str, str | None] = {
        "schema_version": str(SCHEMA_VERSION),
        "image_channels": str(channels),
        "image_size": "8",
        "frame": f"{height}x{width}",
        "map_unit": "score",
        "threshold": repr(threshold),
        "threshold_rule": "a guess",
        "precision": "fp32",
        "weights_sha256": "none",
        CHECKSUM_KEY: CHECKSUM_PLACEHOLDER,
    }
    kept = {key: value for key, value in (metadata | changed).items() if value is not None}
    helper.set_model_props(model, kept)
    onnx.checker.check_model(model)
    path.write_bytes(write_checksum(model.SerializeToString()))
    return path
