import numpy as np
import onnx
import pytest
from brightness import brightness
from onnx import TensorProto, helper
from PIL import Image

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY, CHECKSUM_PLACEHOLDER, write_checksum

METADATA = {"schema_version": "2", "image_channels": "3", "image_size": "32", "threshold": "100.5"}


def save(path, channels: int = 3, **changed: str | None):
    metadata = METADATA | {"image_channels": str(channels)} | changed
    model = brightness(channels, 1e9)
    metadata = {key: value for key, value in metadata.items() if value is not None} | {
        CHECKSUM_KEY: CHECKSUM_PLACEHOLDER
    }
    helper.set_model_props(model, metadata)
    path.write_bytes(write_checksum(model.SerializeToString()))
    return path


@pytest.fixture
def detector(tmp_path):
    return Detector(save(tmp_path / "d.onnx"))


def test_what_the_file_says_is_known(detector):
    assert (detector.image_channels, detector.image_size, detector.threshold) == (3, 32, 100.5)
    assert detector.metadata.items() >= METADATA.items()
    assert set(detector.metadata) - set(METADATA) == {CHECKSUM_KEY}
    assert (detector.input, detector.input_size) == ("uint8", None)


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
    with pytest.raises(KdganError, match="must be a readable image"):
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
    assert caught.value.problem == "Images must be uint8 (N, H, W, 3)"
    assert caught.value.found == f"got {images.dtype} {images.shape}"


def test_missing_file(tmp_path):
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(KdganError, match="The detector must be a file; there is no file"):
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
    with pytest.raises(KdganError, match="must be a complete ONNX file"):
        Detector(path)


def test_graph_that_does_not_hang_together(tmp_path):
    model = brightness(3, 1e9)
    model.graph.node[1].input[0] = "nowhere"
    path = tmp_path / "d.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(KdganError, match="must be a complete ONNX file"):
        Detector(path)


def test_loading_prints_nothing(tmp_path, capfd):
    """Stdout belongs to ``--json``; this name is no UTF-8, which ONNX Runtime's fallback remarks on."""
    model = brightness(3, 1e9)
    model.graph.node[0].op_type = "Caat"
    path = tmp_path / "d.onnx"
    path.write_bytes(model.SerializeToString().replace(b"Caat", b"Ca\xa4t"))
    with pytest.raises(KdganError):
        Detector(path)
    assert capfd.readouterr().out == ""


def test_onnx_file_of_another_program(tmp_path):
    with pytest.raises(KdganError, match="needs this package's metadata"):
        Detector(save(tmp_path / "d.onnx", schema_version=None))


@pytest.mark.parametrize(("version", "fix"), [("1", "Export the model again"), ("99", "Upgrade kdgan-compress")])
@pytest.mark.parametrize("with_checksum", [True, False])
def test_other_schema(tmp_path, version, fix, with_checksum):
    path = save(tmp_path / "d.onnx", schema_version=version)
    if not with_checksum:
        model = onnx.load(path)
        del model.metadata_props[-1]
        path.write_bytes(model.SerializeToString())
    with pytest.raises(KdganError, match=rf"schema 2; .* has schema {version}\. {fix}"):
        Detector(path)


@pytest.mark.parametrize(
    "changed",
    [{"schema_version": "v1.2"}, {"image_channels": None}, {"image_size": "big"}, {"threshold": "np.float64(1)"}],
)
def test_metadata_of_another_kind(tmp_path, changed):
    with pytest.raises(KdganError, match="metadata"):
        Detector(save(tmp_path / "d.onnx", **changed))


def refused(path, match="must be"):
    with pytest.raises(KdganError, match=match) as caught:
        Detector(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_changed_byte_is_noticed(tmp_path):
    """Before anything parses them: some would crash ONNX Runtime."""
    content = save(tmp_path / "d.onnx").read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        (tmp_path / "c.onnx").write_bytes(changed)
        refused(tmp_path / "c.onnx")


def test_other_metadata_is_noticed(tmp_path):
    content = save(tmp_path / "d.onnx").read_bytes()
    assert content.count(b"100.5") == 1
    (tmp_path / "d.onnx").write_bytes(content.replace(b"100.5", b"900.5"))
    refused(tmp_path / "d.onnx", r"must be unmodified; .* was changed after its export")


def test_bytes_behind_the_end_are_noticed(tmp_path):
    """A metadata entry more is a whole ONNX file still."""
    content = save(tmp_path / "d.onnx").read_bytes()
    more = onnx.ModelProto()
    helper.set_model_props(more, {"note": "mine"})
    (tmp_path / "d.onnx").write_bytes(content + more.SerializeToString())
    refused(tmp_path / "d.onnx", "was changed after its export")


@pytest.mark.parametrize("key", [None, "none", "", CHECKSUM_PLACEHOLDER, "0" * 63])
def test_file_without_a_checksum(tmp_path, key):
    model = onnx.load(save(tmp_path / "d.onnx"))
    if key is None:
        del model.metadata_props[-1]
    else:
        model.metadata_props[-1].value = key
    (tmp_path / "d.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "d.onnx", "was changed after its export")


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(tmp_path, seed):
    noise = np.random.default_rng(seed)
    (tmp_path / "d.onnx").write_bytes(noise.bytes(int(noise.integers(1, 3000))))
    refused(tmp_path / "d.onnx", "must be a complete ONNX file")


def test_cut_anywhere(tmp_path):
    content = save(tmp_path / "d.onnx").read_bytes()
    for end in range(0, len(content), 13):
        (tmp_path / "d.onnx").write_bytes(content[:end])
        refused(tmp_path / "d.onnx")


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 0, 3), (0, 0, 3)])
def test_images_without_pixels(detector, shape):
    with pytest.raises(KdganError, match=r"must be uint8 \(N, H, W, 3\)"):
        detector.score(np.zeros((2, *shape), np.uint8))


@pytest.mark.parametrize("name", ["anomaly_map", "error_map"])
def test_the_anomaly_map_of_older_files_has_another_name(tmp_path, name):
    model = brightness(1, 100.5)
    model.graph.node.append(helper.make_node("Squeeze", ["levels", "last"], [name]))
    model.graph.initializer.append(helper.make_tensor("last", TensorProto.INT64, [1], [3]))
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "H", "W"]))
    metadata = {"schema_version": "2", "image_channels": "1", "image_size": "32", "threshold": "1"}
    helper.set_model_props(model, metadata | {CHECKSUM_KEY: CHECKSUM_PLACEHOLDER})
    (tmp_path / "d.onnx").write_bytes(write_checksum(model.SerializeToString()))
    images = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1)
    scores = Detector(tmp_path / "d.onnx").score(images, maps=True)
    np.testing.assert_array_equal(scores.anomaly_map, images[..., 0])
    assert scores.reconstruction is None
    assert Detector(tmp_path / "d.onnx").score(images).anomaly_map is None
