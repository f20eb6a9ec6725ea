"""Detector files of photos that are cut into tiles: scores and maps against torch, and what they refuse."""

import collections

import numpy as np
import onnx
import pytest
import torch
from fitted import GRID, fitted, normals, trace_once
from torch.nn.functional import interpolate

from kdgan_compress.errors import KdganError
from kdgan_compress.export import detector_file
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ThresholdRule, ValidationData
from kdgan_compress.export.validation.golden import MAP_STEP, make_golden, read_golden, write_golden
from kdgan_compress.export.validation.parity import map_difference, parity
from kdgan_compress.runtime import Detector
from kdgan_compress.scores import FittedScorer
from kdgan_compress.scores.fit import fit_position_gaussian

THRESHOLD = 5.0
RULE = "99 % of normal photos"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(detector_file, "trace", trace_once)


def write(path, scorer, network, settings=None, **more):
    return write_detector(path, scorer, network, THRESHOLD, RULE, settings, x_hat="decoder", **more)


def pictures(height, width, channels, number=3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (number, height, width, channels), dtype=np.uint8)


def by_torch(scorer, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    levels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    photos = interpolate(levels, GRID.frame, mode="bilinear", antialias=True, align_corners=False) / 127.5 - 1
    with torch.no_grad():
        return scorer.anomaly_score(photos).numpy(), scorer.anomaly_map(photos).numpy()


def validation(network, in_fit=True) -> ValidationData:
    inside = normals(40, network).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    test = np.concatenate([inside[:10] // 2 + 60, pictures(*GRID.frame, network.image_channels, 10)])
    return ValidationData(inside, inside, test, np.arange(20) >= 10, in_fit)


@pytest.mark.parametrize("size", [GRID.frame, (17, 90), (100, 31), (5, 5)], ids=str)
def test_photos_of_any_size(tmp_path, size):
    scorer, network = fitted()
    report = write(tmp_path / "d.onnx", scorer, network)
    assert report.parity_max_rel <= 1e-4
    detector = Detector(tmp_path / "d.onnx")
    images = pictures(*size, 1)
    found = detector.score(images, maps=True)
    scores, maps = by_torch(scorer, images)
    np.testing.assert_allclose(found.score, scores, rtol=1e-4)
    assert found.anomaly_map.shape == (3, *GRID.frame)
    assert map_difference(found.anomaly_map, maps) <= 1e-4
    together = detector.session.run(["score"], {"image": images})[0]
    np.testing.assert_allclose(together, scores, rtol=1e-4)


def test_metadata_and_outputs(tmp_path):
    scorer, network = fitted()
    write(tmp_path / "d.onnx", scorer, network)
    detector = Detector(tmp_path / "d.onnx")
    metadata = detector.metadata
    assert (detector.frame, detector.map_unit, detector.image_size) == (GRID.frame, "score", 16)
    assert metadata["score"] == "position-gaussian of residual"
    assert (metadata["tile_stride"], metadata["photo_score"], metadata["threshold_rule"]) == ("8", "max", RULE)
    assert [name for name, _, _ in detector.outputs] == ["score", "is_anomaly", "anomaly_map"]
    assert detector.outputs[2] == ("anomaly_map", "float32", "(N, 24, 40)")
    per_tile = 3 * (64 * (1 * 16 * 1) + 16 * (1 * 2 * 16) + 2 * 16 * 40)
    assert int(metadata["conv_macs"]) == per_tile * GRID.num_tiles
    assert metadata["rewrites"] == "batch-norm, projection, difference, scale"


def test_map_on_request(tmp_path):
    scorer, network = fitted()
    write(tmp_path / "d.onnx", scorer, network, ExportSettings(io=IOSpec(anomaly_map=False)))
    detector = Detector(tmp_path / "d.onnx")
    assert [name for name, _, _ in detector.outputs] == ["score", "is_anomaly"]
    assert (detector.map_unit, detector.frame) == (None, GRID.frame)
    assert "Resize" not in [node.op_type for node in onnx.load(tmp_path / "d.onnx").graph.node][2:]


@pytest.mark.parametrize("kind", [None, "gaussian", "mixture"])
def test_other_scores(tmp_path, kind):
    scorer, network = fitted(kind)
    write(tmp_path / "d.onnx", scorer, network)
    images = pictures(50, 70, 1)
    found = Detector(tmp_path / "d.onnx").score(images, maps=True)
    scores, maps = by_torch(scorer, images)
    np.testing.assert_allclose(found.score, scores, rtol=1e-4)
    assert map_difference(found.anomaly_map, maps) <= 1e-4


def test_fixed_size_and_floats_for_phones(tmp_path):
    scorer, network = fitted()
    settings = ExportSettings(mobile=True, io=IOSpec("float"))
    write(tmp_path / "d.onnx", scorer, network, settings)
    detector = Detector(tmp_path / "d.onnx")
    assert (detector.input_size, detector.image_shape) == (GRID.frame, "(1, 1, 24, 40)")
    images = pictures(*GRID.frame, 1)
    np.testing.assert_allclose(detector.score(images).score, by_torch(scorer, images)[0], rtol=1e-4)


def test_the_whitening_is_stored_as_triangles(tmp_path):
    scorer, network = fitted()
    write(tmp_path / "d.onnx", scorer, network)
    shapes = [tuple(each.dims) for each in onnx.load(tmp_path / "d.onnx").graph.initializer]
    assert (GRID.num_tiles, 6 * 7 // 2 + 1) in shapes
    assert (GRID.num_tiles, 6, 6) not in shapes


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions(tmp_path, precision):
    """int8 stores weights only, as a whitening magnifies rounding errors; its threshold stays that of other photos."""
    scorer, network = fitted()
    data = validation(network)
    report = write(tmp_path / "d.onnx", scorer, network, ExportSettings(precision), validation=data, gate=False)
    assert report.precision == ("int8-weights" if precision == "int8" else "fp16")
    detector = Detector(tmp_path / "d.onnx")
    inside = detector.score(data.normals).score.astype(np.float64)
    exact = by_torch(scorer, data.normals)[0].astype(np.float64)
    ratio = np.quantile(inside, 0.99) / np.quantile(exact, 0.99)
    assert report.threshold == pytest.approx(THRESHOLD * ratio, rel=1e-3)
    assert report.threshold_rule == (
        "0.99 quantile of 40 normal images' scores, raised to the level of images outside the fit"
    )
    assert report.agreement.spearman > 0.95
    types = collections.Counter(each.data_type for each in onnx.load(tmp_path / "d.onnx").graph.initializer)
    wanted = onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT16
    assert types[wanted] >= 1


def test_photos_outside_the_fit_set_the_threshold_themselves(tmp_path):
    scorer, network = fitted()
    data = validation(network, in_fit=False)
    report = write(tmp_path / "d.onnx", scorer, network, validation=data, rule=ThresholdRule(0.9))
    assert report.threshold == pytest.approx(
        np.quantile(by_torch(scorer, data.normals)[0].astype(float), 0.9), rel=1e-4
    )


def test_rank_in_the_file(tmp_path):
    scorer, network = fitted()
    settings = ExportSettings(rank=2)
    report = write(tmp_path / "d.onnx", scorer, network, settings, validation=validation(network))
    assert report.agreement is None
    assert report.rank_agreement.num_images == 20
    assert report.threshold != THRESHOLD
    assert report.threshold_rule == f"{RULE}, for rank 2"
    assert Detector(tmp_path / "d.onnx").metadata["rank"] == "2"
    shapes = [tuple(each.dims) for each in onnx.load(tmp_path / "d.onnx").graph.initializer]
    assert (GRID.num_tiles, 4) in shapes
    with pytest.raises(KdganError, match="fp32 of rank 2 needs normal images to set its threshold; got none"):
        write(tmp_path / "e.onnx", scorer, network, settings)


def test_what_tiles_and_statistics_refuse(tmp_path):
    scorer, network = fitted()
    for settings, match in (
        (ExportSettings(io=IOSpec(reconstruction=True)), "Photos cut into tiles have no reconstruction"),
        (ExportSettings(latent_rank=3), "--latent-rank shortens the code of a score without fitted statistics"),
    ):
        with pytest.raises(KdganError, match=match):
            write(tmp_path / "d.onnx", scorer, network, settings, validation=validation(network))
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_the_same_every_time(tmp_path):
    scorer, network = fitted()
    for name in ("a", "b"):
        write(tmp_path / name, scorer, network, ExportSettings("int8"), validation=validation(network), gate=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_parity_compares_maps_too(tmp_path):
    """Another statistic at a corner that never has the highest score changes the map alone."""
    scorer, network = fitted()
    write(tmp_path / "d.onnx", scorer, network)
    detector = Detector(tmp_path / "d.onnx")
    assert parity(detector, scorer, network) <= 1e-4
    statistic = fit_position_gaussian(np.random.default_rng(0).normal(size=(25, GRID.num_tiles, 40)), 6)
    for name, values in scorer.statistic.state_dict().items():
        getattr(statistic, name).data = values.clone()
    statistic.whitening[0] *= 1.01
    changed = FittedScorer(scorer.generator, statistic, scorer.features, GRID).eval()
    assert parity(detector, changed, network) > 1e-3


def test_golden_vectors_have_maps(tmp_path):
    scorer, network = fitted()
    write(tmp_path / "d.onnx", scorer, network)
    detector = Detector(tmp_path / "d.onnx")
    golden = make_golden(detector)
    assert [image.shape for image in golden.images] == [(15, 25, 1), (31, 60, 1)]
    for image, values in zip(golden.images, golden.maps, strict=True):
        expected = detector.score(image[None], maps=True).anomaly_map[0][::MAP_STEP, ::MAP_STEP]
        np.testing.assert_array_equal(values, expected)
        assert values.shape == (3, 5)
    write_golden(tmp_path / "g.npz", tmp_path / "g.json", detector, "d.onnx", golden)
    again = read_golden(tmp_path / "g.npz")
    assert all(np.array_equal(*pair) for pair in zip(again.maps, golden.maps, strict=True))
