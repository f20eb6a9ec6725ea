import copy
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.export import detector_file, write_detector
from kdgan_compress.export.graph import detector_graph
from kdgan_compress.gans import Architecture, build
from kdgan_compress.runtime import Detector

THRESHOLD = 0.1 + 0.2


def architecture(family: str) -> Architecture:
    return Architecture(family=family, channels=(1, 2, 4), latent_size=16)


def write(path, family: str, threshold: float = THRESHOLD):
    described = architecture(family)
    return write_detector(path, build(described, seed=5).generator, described, threshold, "99 % of training normals")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "new" / "folder"
    return {family: write(folder / f"{family}.onnx", family) for family in ("ede", "ed", "ed_ehat")}


def read(report) -> bytes:
    return Path(report.path).read_bytes()


@pytest.fixture(scope="module")
def ed_graph():
    described = architecture("ed")
    return detector_graph(build(described, seed=5).generator.eval(), described, THRESHOLD)


@pytest.fixture
def ready_graph(monkeypatch, ed_graph):
    """Saves the seconds that torch's exporter takes."""
    monkeypatch.setattr(detector_file, "detector_graph", lambda *_: copy.deepcopy(ed_graph))


@pytest.mark.parametrize("family", ["ede", "ed", "ed_ehat"])
def test_report(reports, family):
    report = reports[family]
    assert (report.precision, report.opset, report.threshold) == ("fp32", 18, THRESHOLD)
    assert report.size_bytes == len(read(report))
    assert 0 <= report.parity_max_rel <= 1e-4


def test_only_the_files_are_there(reports):
    folder = Path(reports["ede"].path).parent
    assert {path.name for path in folder.iterdir()} == {"ede.onnx", "ed.onnx", "ed_ehat.onnx"}


def test_bytes_are_the_same_every_time(reports, tmp_path):
    write(tmp_path / "again.onnx", "ede")
    assert (tmp_path / "again.onnx").read_bytes() == read(reports["ede"])


def test_metadata_is_complete(reports):
    """An encoder has 16 + 2 + 32 + 4 + 128 + 8 + 1024 parameters and 9216 MACs, and so has a decoder."""
    metadata = {prop.key: prop.value for prop in onnx.load(reports["ede"].path).metadata_props}
    digest = hashlib.sha256()
    weights = build(architecture("ede"), seed=5).generator.state_dict()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    versions = metadata.pop("versions")
    flops = metadata.pop("fvcore_flops")
    assert metadata == {
        "schema_version": "1",
        "family": "ede",
        "channels": "1-2-4",
        "image_channels": "1",
        "image_size": "32",
        "latent_size": "16",
        "norm": "per_image",
        "preprocessing": "antialiased bilinear resize, x / 127.5 - 1",
        "precision": "fp32",
        "threshold": "0.30000000000000004",
        "threshold_rule": "99 % of training normals",
        "num_params": str(3 * 1214),
        "conv_macs": str(3 * 9216),
        "weights_sha256": digest.hexdigest(),
    }
    assert int(flops) > 3 * 9216
    assert f"torch {torch.__version__}" in versions
    assert f"onnx {onnx.__version__}" in versions


def test_counts_are_those_of_the_deployed_graph(reports):
    metadata = Detector(reports["ed_ehat"].path).metadata
    assert (metadata["num_params"], metadata["conv_macs"]) == (str(2 * 1214), str(2 * 9216))


def test_second_encoder_of_ed_ehat_stays_behind(reports):
    generator = build(architecture("ed_ehat"), seed=5).generator
    content = read(reports["ed_ehat"])
    assert generator.encoder.head.weight.detach().numpy().tobytes() in content
    assert generator.encoder2.head.weight.detach().numpy().tobytes() not in content
    assert reports["ed_ehat"].size_bytes <= reports["ed"].size_bytes + 100
    assert reports["ede"].size_bytes > reports["ed"].size_bytes + 4 * 1024


def test_runtime_scores_are_torchs(reports):
    generator = build(architecture("ede"), seed=5).generator
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
    with torch.no_grad():
        expected = generator.anomaly_score(torch.from_numpy(images.transpose(0, 3, 1, 2)) / 127.5 - 1)
    scores = Detector(reports["ede"].path).score(images)
    np.testing.assert_allclose(scores.score, expected.numpy(), rtol=1e-4)


@pytest.mark.usefixtures("ready_graph")
def test_numpys_threshold_is_a_number_too(tmp_path):
    write(tmp_path / "d.onnx", "ed", np.float64(2.5))
    assert Detector(tmp_path / "d.onnx").threshold == 2.5


@pytest.mark.usefixtures("ready_graph")
def test_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KdganError, match="output path must be writable"):
        write(tmp_path / "file" / "d.onnx", "ed")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("ready_graph")
def test_place_that_is_a_folder(tmp_path):
    (tmp_path / "d.onnx").mkdir()
    with pytest.raises(KdganError, match="output path must be writable"):
        write(tmp_path / "d.onnx", "ed")
    assert [path.name for path in tmp_path.iterdir()] == ["d.onnx"]


@pytest.mark.parametrize("difference", [1.0, float("nan")])
@pytest.mark.usefixtures("ready_graph")
def test_scores_that_disagree_leave_no_file(tmp_path, monkeypatch, difference):
    monkeypatch.setattr(detector_file, "parity", lambda *_: difference)
    with pytest.raises(KdganError, match=r"must agree to 0\.0001 relative; they differ by"):
        write(tmp_path / "d.onnx", "ed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ready_graph")
def test_scores_that_disagree_keep_the_older_file(tmp_path, monkeypatch):
    (tmp_path / "d.onnx").write_text("older")
    monkeypatch.setattr(detector_file, "parity", lambda *_: 1.0)
    with pytest.raises(KdganError, match="must agree"):
        write(tmp_path / "d.onnx", "ed")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_parity_notices_other_weights(reports):
    described = architecture("ede")
    detector = Detector(reports["ede"].path)
    assert detector_file.parity(detector, build(described, seed=5).generator, described) < 1e-4
    assert detector_file.parity(detector, build(described, seed=6).generator, described) > 1e-2
