import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import Detector

METADATA = {"schema_version": "1", "image_channels": "3", "image_size": "32", "threshold": "100.5"}


def brightness(channels: int) -> onnx.ModelProto:
    """A detector whose score is the mean level of an image."""
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
            helper.make_tensor("threshold", TensorProto.FLOAT, [], [1e9]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def save(path, channels: int = 3, **changed: str | None):
    metadata = METADATA | {"image_channels": str(channels)} | changed
    model = brightness(channels)
    helper.set_model_props(model, {key: value for key, value in metadata.items() if value is not None})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def detector(tmp_path):
    return Detector(save(tmp_path / "d.onnx"))


def test_what_the_file_says_is_known(detector):
    assert (detector.image_channels, detector.image_size, detector.threshold) == (3, 32, 100.5)
    assert detector.metadata == METADATA


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (5, 9, 31, 3), (0, 8, 8, 3)])
def test_scores(detector, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    scores = detector.score(images)
    assert (scores.score.dtype, scores.is_anomaly.dtype) == (np.float32, np.bool_)
    np.testing.assert_allclose(scores.score, [image.mean() for image in images], rtol=1e-6)
    assert scores.is_anomaly.tolist() == [image.mean() > 100.5 for image in images]


def test_views_are_scored_as_they_look(detector):
    images = np.random.default_rng(0).integers(0, 256, (4, 10, 12, 3), dtype=np.uint8)
    flipped = detector.score(images[::-2, 2:, ::-1])
    np.testing.assert_allclose(flipped.score, [images[3, 2:].mean(), images[1, 2:].mean()], rtol=1e-6)


def test_scores_above_the_threshold_are_anomalies(tmp_path):
    path = save(tmp_path / "d.onnx", threshold="100.0")
    images = np.stack([np.full((2, 2, 3), level, np.uint8) for level in (99, 100, 101)])
    assert Detector(path).score(images).is_anomaly.tolist() == [False, False, True]
    assert Detector(path, threshold=98.5).score(images).is_anomaly.tolist() == [True, True, True]
    assert Detector(path, threshold=0.0).threshold == 0.0


def test_threads_do_not_change_scores(tmp_path, detector):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    two = Detector(str(tmp_path / "d.onnx"), threads=2)
    np.testing.assert_allclose(two.score(images).score, detector.score(images).score, rtol=1e-6)


@pytest.mark.parametrize(("channels", "expected"), [(1, 76.0), (3, 85.0)])
def test_image_file_is_read_in_the_detectors_channels(tmp_path, channels, expected):
    detector = Detector(save(tmp_path / "d.onnx", channels, threshold="80"))
    photo = tmp_path / "red.png"
    Image.new("RGB", (6, 4), (255, 0, 0)).save(photo)
    assert detector.score_file(photo) == (expected, expected > 80)
    assert detector.score_file(str(photo)) == (expected, expected > 80)
    assert [type(value) for value in detector.score_file(photo)] == [float, bool]


def test_unreadable_image_file(tmp_path, detector):
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(KdganError, match="must be an image that can be read"):
        detector.score_file(tmp_path / "a.png")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 8, 8, 3), np.int8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 1), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
    ],
)
def test_other_arrays_are_refused(detector, images):
    with pytest.raises(KdganError) as caught:
        detector.score(images)
    assert caught.value.must == "Images must be uint8 (N, H, W, 3)"
    assert caught.value.found == f"got {images.dtype} {images.shape}"


def test_missing_file(tmp_path):
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(KdganError, match="The detector must be a file; found none at"):
            Detector(path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.95])
def test_cut_file(tmp_path, share):
    path = save(tmp_path / "d.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(KdganError, match=r"d\.onnx"):
        Detector(path)


@pytest.mark.parametrize("content", [b"not a model\n", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x08\x09"])
def test_other_content(tmp_path, content):
    """The last of these is an ONNX model that ends before its graph begins."""
    path = tmp_path / "d.onnx"
    path.write_bytes(content)
    with pytest.raises(KdganError, match="must be a whole ONNX file"):
        Detector(path)


def test_graph_that_does_not_hang_together(tmp_path):
    model = brightness(3)
    model.graph.node[1].input[0] = "nowhere"
    path = tmp_path / "d.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(KdganError, match="must be a whole ONNX file"):
        Detector(path)


def test_loading_prints_nothing(tmp_path, capfd):
    """Stdout belongs to ``--json``; this name is no UTF-8, which ONNX Runtime's fallback remarks on."""
    model = brightness(3)
    model.graph.node[0].op_type = "Caat"
    path = tmp_path / "d.onnx"
    path.write_bytes(model.SerializeToString().replace(b"Caat", b"Ca\xa4t"))
    with pytest.raises(KdganError):
        Detector(path)
    assert capfd.readouterr().out == ""


def test_onnx_file_of_another_program(tmp_path):
    with pytest.raises(KdganError, match="must carry this package's metadata"):
        Detector(save(tmp_path / "d.onnx", schema_version=None))


def test_newer_schema(tmp_path):
    with pytest.raises(KdganError, match=r"schema 1 or older; .* has schema 2\. Upgrade"):
        Detector(save(tmp_path / "d.onnx", schema_version="2"))


@pytest.mark.parametrize(
    "changed",
    [{"schema_version": "v1.2"}, {"image_channels": None}, {"image_size": "big"}, {"threshold": "np.float64(1)"}],
)
def test_metadata_of_another_kind(tmp_path, changed):
    with pytest.raises(KdganError, match="metadata"):
        Detector(save(tmp_path / "d.onnx", **changed))
