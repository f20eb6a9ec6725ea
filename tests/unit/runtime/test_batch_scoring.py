import itertools
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from brightness import write_brightness
from PIL import Image

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import Detector, FileScore, Scores, batch_scoring, score_files


class Fake:
    """Reads a path named ``12x20-7`` as an image of 12×20 of level 7, scores that level, and keeps count.

    A path named ``bad`` can't be read, and an image of level 13 can't be scored.
    """

    frame = None
    has_anomaly_map = True

    def __init__(self, threshold=100.0):
        self.threshold = threshold
        self.num_read = self.held = self.most_held = 0
        self.batches = []
        self.lock = threading.Lock()

    def read(self, path):
        if path.name == "bad":
            raise KdganError("An image must be good", f"{path} is bad", "Give another")
        size, level = path.name.split("-")
        height, width = map(int, size.split("x"))
        pixels = np.full((height, width, 1), int(level), np.uint8)
        with self.lock:
            self.num_read += 1
            self.held += 1
            self.most_held = max(self.most_held, self.held)
        weakref.finalize(pixels, self._let_go)
        return pixels

    def _let_go(self):
        with self.lock:
            self.held -= 1

    def score(self, images, maps=False):
        assert len({image.shape for image in images}) == 1
        score = images.mean((1, 2, 3)).astype(np.float32)
        if 13 in score:
            raise KdganError("Scores must be numbers", f"{len(images)} images", "Leave it out")
        self.batches.append((len(images), images[0].size))
        relative = score.astype(float) / self.threshold
        return Scores(score, score > self.threshold, relative, anomaly_map=images[..., 0] if maps else None)


def expected(names, threshold=100.0):
    """Of good ones, by their names."""
    for name in names:
        level = float(name.split("-")[1])
        yield FileScore(Path(name), level, level > threshold, relative=level / threshold)


SIZES = ("6x8", "6x8", "8x6", "6x8", "5x5")


def many(count):
    return [f"{SIZES[number % 7 % 5]}-{number % 251}" for number in range(20, 20 + count)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 2, 7, 1000])
def test_each_file_is_scored_once_and_in_its_place(batch, threads):
    names, detector = many(100), Fake()
    assert list(score_files(detector, map(Path, names), batch, threads)) == list(expected(names))
    assert detector.num_read == sum(count for count, _ in detector.batches) == 100
    assert max(count for count, _ in detector.batches) <= batch


def test_neighbours_of_one_size_go_together():
    names = ["4x4-1"] * 10 + ["4x5-2"] * 3 + ["4x4-3"]
    detector = Fake()
    list(score_files(detector, map(Path, names), batch=4))
    assert [count for count, _ in detector.batches] == [4, 4, 2, 3, 1]


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("batch", [1, 5])
def test_memory_does_not_grow_with_the_number_of_files(batch, threads):
    detector = Fake()
    for number, found in enumerate(score_files(detector, (Path("9x9-3") for _ in range(300)), batch, threads)):
        assert found.score == 3
        # A batch is scored as soon as the image behind it is there, and that many more are being read at most.
        assert detector.num_read <= number + 1 + batch + threads
    assert detector.most_held <= batch + threads + 1
    assert number == 299


def test_a_list_without_an_end_can_be_left():
    detector = Fake()
    endless = score_files(detector, (Path(f"4x4-{number % 10}") for number in itertools.count()), batch=3, threads=2)
    assert [found.score for found in itertools.islice(endless, 5)] == [0, 1, 2, 3, 4]
    endless.close()
    assert detector.num_read < 5 + 3 + 2 + 3


def test_large_images_are_not_piled_up(monkeypatch):
    monkeypatch.setattr(batch_scoring, "MAX_BATCH_BYTES", 1000)
    names = ["10x10-1"] * 25 + ["20x30-2"] * 3 + ["40x40-3"] * 3 + ["10x10-4"] * 2
    detector = Fake()
    assert list(score_files(detector, map(Path, names), batch=32)) == list(expected(names))
    assert [count for count, _ in detector.batches] == [10, 10, 5, 1, 1, 1, 1, 1, 1, 2]
    assert all(count == 1 or count * size <= 1000 for count, size in detector.batches)


@pytest.mark.parametrize("threads", [1, 4])
def test_unreadable_files_are_reported_in_order(threads):
    names = ["bad", "4x4-1", "4x4-200", "bad", "bad", "4x4-3", "bad"]
    found = list(score_files(Fake(), map(Path, names), batch=10, threads=threads))
    assert [each.path.name for each in found] == names
    assert [each.score for each in found] == [None, 1, 200, None, None, 3, None]
    assert [each.is_anomaly for each in found] == [None, False, True, None, None, False, None]
    told = "An image must be good; bad is bad. Give another."
    assert [each.error for each in found] == [told, None, None, told, told, None, told]


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_an_image_that_cannot_be_scored_costs_no_other_image(batch):
    names = ["4x4-1", "4x4-13", "4x4-200", "4x4-3", "4x4-13"]
    found = list(score_files(Fake(), map(Path, names), batch=batch))
    assert [each.score for each in found] == [1, None, 200, 3, None]
    told = "Scores must be numbers; 1 images. Leave it out."
    assert [each.error for each in found] == [None, told, None, None, told]


def test_pixels_and_maps_come_only_if_requested():
    names = ["4x5-1", "4x5-2", "bad", "6x3-4"]
    for each in score_files(Fake(), map(Path, names)):
        assert (each.pixels, each.anomaly_map) == (None, None)
    shapes = {(4, 5), (6, 3)}
    for each in score_files(Fake(), map(Path, names), maps=True):
        if each.error is None:
            assert each.anomaly_map.shape in shapes
            assert each.pixels.shape == (*each.anomaly_map.shape, 1)
            assert (each.pixels == each.score).all()
            assert (each.anomaly_map == each.score).all()


def test_memory_does_not_grow_with_maps():
    detector = Fake()
    for _ in score_files(detector, (Path("9x9-3") for _ in range(300)), batch=5, threads=2, maps=True):
        pass
    assert detector.most_held <= 5 + 2 + 2


def test_a_detector_without_a_map_is_refused_before_anything_is_read(tmp_path):
    detector = Detector(write_brightness(tmp_path / "d.onnx"))
    with pytest.raises(KdganError, match="has no anomaly map; its outputs are score, is_anomaly"):
        score_files(detector, [tmp_path / "none.png"], maps=True)


def test_photos_in_tiles_are_not_batched(tmp_path):
    """A photo's tiles are a batch already, and its map has the frame's size."""
    detector = Fake()
    detector.frame = (100, 100)
    list(score_files(detector, map(Path, ["4x4-1"] * 5)))
    assert [count for count, _ in detector.batches] == [1] * 5


def test_the_number_of_readers_is_bounded():
    detector = Fake()
    next(score_files(detector, (Path("4x4-1") for _ in range(10_000)), batch=1, threads=100_000))
    assert detector.num_read <= batch_scoring.MAX_READERS + 2


def test_no_files():
    assert list(score_files(Fake(), [])) == []


def test_a_bug_is_not_reported_as_an_unreadable_file(monkeypatch):
    detector = Fake()
    monkeypatch.setattr(detector, "read", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(score_files(detector, [Path("x")]))


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (4, 1), (64, 3)])
def test_real_files_get_what_the_detector_says_of_each(tmp_path, batch, threads):
    rng = np.random.default_rng(0)
    paths = []
    for number in range(20):
        height, width = ((9, 14), (9, 14), (14, 9))[number % 3]
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    detector = Detector(write_brightness(tmp_path / "d.onnx", 3, 127.0))
    found = list(score_files(detector, paths, batch, threads))
    assert [(each.score, each.is_anomaly) for each in found] == [detector.score_file(path) for path in paths]
    means = [np.asarray(Image.open(path)).mean() for path in paths]
    np.testing.assert_allclose([each.score for each in found], means, rtol=1e-5)
    assert {each.is_anomaly for each in found} == {True, False}
