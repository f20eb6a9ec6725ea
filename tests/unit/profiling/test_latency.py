import itertools

import numpy as np
import onnx
import pytest
from brightness import write_brightness

from kdgan_compress.profiling import latency
from kdgan_compress.profiling.latency import Latency, detector_call, identity_model_call, measure_latency
from kdgan_compress.runtime import Detector, session


class Clock:
    """A ``time`` whose seconds pass only when somebody says so."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def taking(clock, calls, name, microseconds):
    """A call that is written down and takes the next of these times."""
    times = iter(microseconds)

    def call():
        calls.append(name)
        clock.now += next(times) / 1e6

    return call


def test_figures_are_numpys_over_300_calls_after_ten_that_do_not_count(clock):
    rng = np.random.default_rng(0)
    warm, times = np.full(10, 1e6), rng.lognormal(3, 1, (2, 300))
    calls = []
    found = measure_latency([taking(clock, calls, n, [*warm, *own]) for n, own in enumerate(times)])
    for each, own in zip(found, times, strict=True):
        assert each.median == pytest.approx(np.median(own), rel=1e-5)
        assert each.p10 == pytest.approx(np.percentile(own, 10), rel=1e-5)
    assert isinstance(found[0], Latency)


def test_calls_take_turns_ten_at_a_time(clock):
    calls = []
    measure_latency([taking(clock, calls, name, itertools.repeat(1.0)) for name in "abc"])
    turns = [(name, len(list(group))) for name, group in itertools.groupby(calls)]
    assert turns == [(name, 10) for _ in range(31) for name in "abc"]
    assert {name: calls.count(name) for name in "abc"} == dict.fromkeys("abc", 310)


def test_a_machine_that_slows_down_favours_nobody(clock):
    def call():
        clock.now += clock.now / 1e6  # ever slower

    first, second = measure_latency([call, call])
    assert first.median == pytest.approx(second.median, rel=0.01)


def test_nothing_to_measure():
    assert measure_latency([]) == []


class Session:
    """Keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def run(self, names, feed):
        self.asked.append((names, feed))
        return [None] * len(names)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "input_size"), [("uint8", None), ("uint8", (24, 40)), ("float", None), ("float", (24, 40))]
)
def test_an_image_as_the_file_takes_it(tmp_path, channels, kind, input_size):
    detector = Detector(write_brightness(tmp_path / "d.onnx", channels))
    detector.input, detector.input_size, detector.session = kind, input_size, Session()
    call = detector_call(detector)
    call()
    call()
    (names, feed), (_, again) = detector.session.asked
    height, width = input_size or (32, 32)
    image = feed["image"]
    assert names == ["score", "is_anomaly"]
    assert feed.keys() == {"image"}  # the threshold is the file's own
    assert image is again["image"]
    if kind == "uint8":
        assert (image.dtype, image.shape) == (np.uint8, (1, height, width, channels))
        assert (image.min(), image.max()) >= (0, 250)
    else:
        assert (image.dtype, image.shape) == (np.float32, (1, channels, height, width))
        assert 0 <= image.min() < 0.05 < 0.95 < image.max() <= 1


def test_scoring_runs_the_file(tmp_path):
    path = write_brightness(tmp_path / "d.onnx", 1, 100.5)
    score, is_anomaly = detector_call(Detector(path))()
    assert (100 < score[0] < 155, is_anomaly[0]) == (True, score[0] > 100.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_identity_graph_gives_its_image_out(channels):
    (same,) = identity_model_call((32, 32), channels)()
    assert (same.dtype, same.shape) == (np.uint8, (1, 32, 32, channels))
    assert not same.any()


def test_the_identity_graph_has_one_node(monkeypatch):
    graphs = []
    real = session.onnxruntime.InferenceSession

    def create(content, options, **more):
        graphs.append((onnx.load_from_string(content), options.intra_op_num_threads, options.inter_op_num_threads))
        return real(content, options, **more)

    monkeypatch.setattr(session.onnxruntime, "InferenceSession", create)
    identity_model_call((16, 16), 1)
    ((model, *threads),) = graphs
    assert ([node.op_type for node in model.graph.node], threads) == (["Identity"], [1, 1])
    onnx.checker.check_model(model, full_check=True)
