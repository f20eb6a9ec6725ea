import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import onnx
import pytest
from brightness import brightness
from onnx import TensorProto, helper
from PIL import Image
from tile_detector import write_tile_detector

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


FRAME = (6, 10)


@pytest.fixture
def tiles(tmp_path):
    """The map is the difference from mid-grey, at 6×10."""
    return Detector(write_tile_detector(tmp_path / "t.onnx", np.full((*FRAME, 1), 128.0), 40.0))


def test_a_detector_with_a_frame_gives_a_map_of_it_in_units_of_the_score(tiles):
    assert (tiles.frame, tiles.map_unit, tiles.image_size, tiles.has_anomaly_map) == (FRAME, "score", 8, True)
    images = np.full((3, *FRAME, 1), 128, np.uint8)
    images[1, 2, 3] = 200
    images[2, 4:] = 100
    scores = tiles.score(images, maps=True)
    assert scores.score.tolist() == [0, 72, 28]
    assert scores.is_anomaly.tolist() == [False, True, False]
    assert scores.relative.tolist() == pytest.approx([0, 72 / 40, 28 / 40])
    np.testing.assert_array_equal(scores.anomaly_map, np.abs(images[..., 0].astype(float) - 128))
    assert (scores.anomaly_map[1] > tiles.threshold).sum() == 1


def test_photos_of_any_size_are_scored_one_by_one(tiles, monkeypatch):
    """A photo's tiles are a batch, so memory does not grow with the number of photos in a call."""
    from kdgan_compress.runtime import detector as module

    sizes = []
    run = module.run_session
    monkeypatch.setattr(module, "run_session", lambda s, n, feed: sizes.append(len(feed["image"])) or run(s, n, feed))
    images = np.random.default_rng(0).integers(0, 256, (4, 30, 20, 1), dtype=np.uint8)
    together = tiles.score(images, maps=True)
    assert sizes == [1, 1, 1, 1]
    assert together.anomaly_map.shape == (4, *FRAME)
    np.testing.assert_array_equal(together.score, [tiles.score(image[None]).score[0] for image in images])
    with pytest.raises(KdganError, match="Images must be uint8"):
        tiles.score(images[:0])


@pytest.mark.parametrize("frame", ["", "6", "0x10", "6x10x3", "6 x 10", "-6x10", "6x1e3", "999999x1"])
def test_a_frame_that_is_none(tmp_path, frame):
    with pytest.raises(KdganError, match=r"metadata; .* has no valid frame"):
        Detector(write_tile_detector(tmp_path / "t.onnx", np.zeros((6, 10, 1)), 1.0, frame=frame))


def test_a_map_of_another_size_than_the_frame(tmp_path):
    detector = Detector(write_tile_detector(tmp_path / "t.onnx", np.zeros((6, 10, 1)), 1.0, frame="10x6"))
    image = np.zeros((1, 6, 10, 1), np.uint8)
    assert detector.score(image).score == [0]
    with pytest.raises(KdganError, match=r"needs the frame's size; it has shape \(1, 6, 10\), the frame is \(10, 6\)"):
        detector.score(image, maps=True)


@pytest.mark.parametrize("threshold", [100.5, 0.25, 1e-30])
def test_the_relative_score_is_above_1_exactly_where_there_is_an_anomaly(tmp_path, threshold):
    images = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, 3)
    scores = Detector(save(tmp_path / "d.onnx"), threshold=threshold).score(images)
    np.testing.assert_allclose(scores.relative, scores.score / np.float64(np.float32(threshold)), rtol=1e-12)
    np.testing.assert_array_equal(scores.relative > 1, scores.is_anomaly)


@pytest.mark.parametrize("threshold", [0.0, -3.0, 1e-60])
def test_without_a_positive_threshold_there_is_no_relative_score(tmp_path, threshold):
    """The last one is 0 as float32, in which the file compares."""
    scores = Detector(save(tmp_path / "d.onnx"), threshold=threshold).score(np.zeros((2, 3, 3, 3), np.uint8))
    assert scores.relative is None
    assert scores.is_anomaly.tolist() == [threshold < 0] * 2


@pytest.mark.parametrize("threshold", ["nan", "inf", "-inf", "1e39"])
def test_a_threshold_above_which_nothing_can_be(tmp_path, threshold):
    problem = "The threshold must be a finite number"
    with pytest.raises(KdganError, match=rf"{problem}; .*d\.onnx has "):
        Detector(save(tmp_path / "d.onnx", threshold=threshold))
    path = save(tmp_path / "d.onnx")
    with pytest.raises(KdganError, match=f"{problem}; got "):
        Detector(path, threshold=float(threshold))
    assert Detector(save(tmp_path / "d.onnx", threshold=threshold), threshold=2).threshold == 2


@pytest.mark.parametrize("threads", [0, -1])
def test_too_few_threads(tmp_path, threads):
    with pytest.raises(KdganError, match=rf"threads must be at least 1; got {threads}"):
        Detector(save(tmp_path / "d.onnx"), threads=threads)


def test_more_threads_than_processors_are_not_started(tmp_path):
    options = Detector(save(tmp_path / "d.onnx"), threads=100_000).session.get_session_options()
    assert 1 <= options.intra_op_num_threads <= os.cpu_count()


def test_a_detector_can_be_pickled(tmp_path, monkeypatch):
    path = save(tmp_path / "d.onnx")
    monkeypatch.chdir(tmp_path)
    detector = Detector("d.onnx", threshold=7.5)
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(detector))
    image = np.full((1, 4, 4, 3), 99, np.uint8)
    assert (copy.threshold, copy.score(image).score) == (7.5, [99])
    pickled = pickle.dumps(detector)
    save(path, threshold="1")
    with pytest.raises(KdganError, match="another detector now"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(KdganError, match="must be a file"):
        pickle.loads(pickled)


def test_a_detector_goes_to_another_process(tmp_path):
    image = np.full((1, 4, 4, 3), 99, np.uint8)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        relative = pool.submit(score_elsewhere, Detector(save(tmp_path / "d.onnx")), image).result(timeout=60)
    assert relative == pytest.approx(99 / 100.5)


def score_elsewhere(detector, image):
    return detector.score(image).relative[0]


def seal(path, model, **changed):
    metadata = METADATA | {"image_channels": "1"} | changed | {CHECKSUM_KEY: CHECKSUM_PLACEHOLDER}
    helper.set_model_props(model, metadata)
    path.write_bytes(write_checksum(model.SerializeToString()))
    return path


def test_weights_in_another_file_are_refused(tmp_path, monkeypatch):
    """ONNX Runtime would look for them in the current folder."""
    model = brightness(1, 1.0)
    axes = model.graph.initializer[0]
    (tmp_path / "axes.bin").write_bytes(np.array([1, 2, 3], np.int64).tobytes())
    axes.ClearField("int64_data")
    axes.data_location = TensorProto.EXTERNAL
    axes.external_data.add(key="location", value="axes.bin")
    path = seal(tmp_path / "d.onnx", model)
    monkeypatch.chdir(tmp_path)
    refused(path, "must be a complete ONNX file; .* it keeps weights in another file")


def test_one_score_for_several_images_is_refused(tmp_path):
    model = brightness(1, 1.0)
    model.graph.node.append(helper.make_node("Concat", ["score", "score"], ["twice"], axis=0))
    model.graph.node.append(helper.make_node("Greater", ["twice", "threshold"], ["is_anomaly"]))
    del model.graph.node[2]
    model.graph.node[1].output[0] = "one"
    model.graph.node[2].input[:] = ["one", "one"]
    model.graph.node[2].output[0] = "score"
    model.graph.node[3].input[0] = "score"
    detector = Detector(seal(tmp_path / "d.onnx", model))
    with pytest.raises(KdganError, match=r"one result per image; score has shape \(6,\) for 3 images"):
        detector.score(np.zeros((3, 4, 4, 1), np.uint8))


def test_a_score_that_is_not_a_number_is_no_good_image(tmp_path):
    model = brightness(1, 1.0)
    model.graph.node[1].output[0] = "mean"
    model.graph.node.insert(2, helper.make_node("Sqrt", ["less"], ["score"]))
    model.graph.node.insert(2, helper.make_node("Sub", ["mean", "hundred"], ["less"]))
    model.graph.initializer.append(helper.make_tensor("hundred", TensorProto.FLOAT, [], [100.0]))
    detector = Detector(seal(tmp_path / "d.onnx", model))
    images = np.stack([np.full((2, 2, 1), level, np.uint8) for level in (200, 50, 150)])
    with pytest.raises(KdganError, match="Scores must be numbers; the score of image 1 is NaN"):
        detector.score(images)
    assert detector.score(images[::2]).score.tolist() == pytest.approx([10, 50**0.5])


def two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def no_decision(model):
    del model.graph.output[1], model.graph.node[2], model.graph.input[1]


def a_flat_input(model):
    del model.graph.input[0].type.tensor_type.shape.dim[3]
    model.graph.node[1].input[1] = "two"
    model.graph.initializer.append(helper.make_tensor("two", TensorProto.INT64, [2], [1, 2]))


def an_integer_input(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


@pytest.mark.parametrize("change", [two_inputs, no_decision, a_flat_input, an_integer_input])
def test_other_inputs_and_outputs_are_refused(tmp_path, change):
    model = brightness(1, 1.0)
    change(model)
    refused(seal(tmp_path / "d.onnx", model), "needs the inputs and outputs of an export")


def test_an_error_of_onnx_runtime_is_one_line(tmp_path):
    model = brightness(1, 1.0)
    model.graph.node[0].output[0] = "any size"
    model.graph.node.insert(1, helper.make_node("Sub", ["any size", "five by five"], ["levels"]))
    model.graph.initializer.append(helper.make_tensor("five by five", TensorProto.FLOAT, [1, 5, 5, 1], [0.0] * 25))
    detector = Detector(seal(tmp_path / "d.onnx", model))
    assert detector.score(np.zeros((2, 5, 5, 1), np.uint8)).score.tolist() == [0, 0]
    with pytest.raises(KdganError, match="ONNX Runtime cannot run the detector") as caught:
        detector.score(np.zeros((1, 6, 10, 1), np.uint8))
    assert "\n" not in str(caught.value)
