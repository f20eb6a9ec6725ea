"""Golden vectors: the same bytes every time, one truth in two formats, and one clear line for a broken file."""

import base64
import json
import zipfile

import numpy as np
import pytest
from tiny_graphs import architecture, generator_of

from kdgan_compress.errors import KdganError
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.golden import make_golden, read_golden, sample_images, sample_sizes, write_golden
from kdgan_compress.runtime import Detector

INTERFACES = {
    "any size": IOSpec(),
    "frame": IOSpec(input_size=(20, 31)),
    "floats one by one": IOSpec(input="float", batch_size=1),
}


@pytest.fixture(scope="module", params=INTERFACES)
def written(request, quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    described = architecture("ede", "batch", 3)
    settings = ExportSettings(io=INTERFACES[request.param])
    write_detector(folder / "d.onnx", generator_of(described), described, 1.5, "by hand", settings)
    detector = Detector(folder / "d.onnx")
    golden = write_golden(folder / "g.npz", folder / "g.json", detector, "d.onnx")
    return folder, detector, golden


def test_bytes_are_the_same_every_time(written, tmp_path):
    folder, detector, _ = written
    write_golden(tmp_path / "g.npz", tmp_path / "g.json", detector, "d.onnx")
    for name in ("g.npz", "g.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.json", "g.npz"]
    with zipfile.ZipFile(tmp_path / "g.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # no clock has a say


def test_both_formats_say_the_same(written):
    folder, detector, _ = written
    golden, told = read_golden(folder / "g.npz"), json.loads((folder / "g.json").read_text())
    assert golden.file_sha256 == told["file_sha256"] == detector.metadata["file_sha256"]
    assert golden.tolerance == told["tolerance"] == 1e-4
    assert (told["detector"], told["precision"], told["input"]) == ("d.onnx", "fp32", detector.input)
    assert (told["threshold"], told["threshold_rule"]) == (1.5, "by hand")
    assert (told["image_channels"], told["image_size"]) == (3, 16)
    assert told["frame"] == (None if detector.input_size is None else [20, 31])
    assert len(told["cases"]) == len(golden.images) == len(golden.score) == len(golden.is_anomaly)
    for case, image, score, is_anomaly in zip(
        told["cases"], golden.images, golden.score, golden.is_anomaly, strict=True
    ):
        pixels = np.frombuffer(base64.b64decode(case["pixels"]), np.uint8)
        np.testing.assert_array_equal(pixels.reshape(case["height"], case["width"], case["channels"]), image)
        assert np.float32(case["score"]) == score
        assert case["is_anomaly"] == is_anomaly == (score > 1.5)


def test_replay_gives_the_same_scores(written):
    folder, _, golden = written
    detector, read = Detector(folder / "d.onnx"), read_golden(folder / "g.npz")
    for image, score, first in zip(read.images, read.score, golden.score, strict=True):
        assert detector.score(image[None]).score[0] == score == first
    assert read.score.dtype == np.float32
    assert read.is_anomaly.dtype == np.bool_
    assert np.ptp(read.score) > 0.01 * read.score.mean()


def test_sizes_are_the_input_size_or_unusual_ones(written):
    _, detector, golden = written
    sizes = {image.shape[:2] for image in golden.images}
    assert sizes == ({(20, 31)} if detector.input_size else {(16, 16), (13, 21), (49, 32)})
    assert sample_sizes((16, 16), detector.input_size) == tuple(
        sorted(sizes, key=[(16, 16), (13, 21), (49, 32), (20, 31)].index)
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2), ("int8", 2e-2)])
def test_tolerance_by_precision(written, precision, tolerance):
    detector = Detector(written[0] / "d.onnx")
    detector.metadata["precision"] = precision
    assert make_golden(detector).tolerance == tolerance


@pytest.mark.parametrize("shape", [(16, 16, 1), (7, 40, 3), (1, 1, 1), (1, 1, 3), (2, 1, 1)])
def test_sample_images(shape):
    images = sample_images(*shape, number=5)
    assert (images.shape, images.dtype) == ((5, *shape), np.uint8)
    np.testing.assert_array_equal(images, sample_images(*shape, number=5))
    if images[0].size > 20:
        assert images.min() == 0
        assert images.max() == 255
        steps = np.abs(np.diff(images.astype(int), axis=2)).mean()
        assert steps < 40  # no noise: neighbours are alike
        assert len({image.tobytes() for image in images}) == 5


def test_missing(tmp_path):
    with pytest.raises(KdganError, match=r"golden vectors of the detector are missing; there is no .*g\.npz"):
        read_golden(tmp_path / "g.npz")


def refused(path):
    with pytest.raises(KdganError, match="Golden vectors must be complete") as caught:
        read_golden(path)
    assert "\n" not in str(caught.value)
    assert str(path) in caught.value.found


def test_cut_anywhere(written, tmp_path):
    content = (written[0] / "g.npz").read_bytes()
    for end in range(0, len(content), 97):
        (tmp_path / "g.npz").write_bytes(content[:end])
        refused(tmp_path / "g.npz")


def test_changed_anywhere(written, tmp_path):
    """Zip's checksums notice it, or it is nothing that is read."""
    content, expected = (written[0] / "g.npz").read_bytes(), read_golden(written[0] / "g.npz")
    num_refused = 0
    for position in range(0, len(content), 41):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        (tmp_path / "g.npz").write_bytes(changed)
        try:
            found = read_golden(tmp_path / "g.npz")
        except KdganError:
            num_refused += 1
        else:
            assert found.score.tolist() == expected.score.tolist()
            assert all(np.array_equal(*pair) for pair in zip(found.images, expected.images, strict=True))
    assert num_refused > 0.8 * len(content) / 41


@pytest.mark.parametrize("kind", ["other arrays", "scalar score", "missing image", "array", "text", "empty", "folder"])
def test_other_files(tmp_path, kind):
    path = tmp_path / "g.npz"
    whole = {"score": np.ones(1), "is_anomaly": np.ones(1), "image_0": np.ones(1), "tolerance": 1, "file_sha256": "a"}
    match kind:
        case "other arrays":
            np.savez(path, x=np.ones(3))
        case "scalar score":
            np.savez(path, **whole | {"score": np.float32(1)})
        case "missing image":
            np.savez(path, **whole | {"score": np.ones(2)})
        case "array":
            with path.open("wb") as file:
                np.save(file, np.ones(3))
        case "text":
            path.write_text("not a zip\n" * 20)
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
    refused(path)


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "g.npz", score=np.array([{"a": 1}], dtype=object))
    refused(tmp_path / "g.npz")
