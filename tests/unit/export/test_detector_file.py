"""Detector files: the same bytes every time, complete metadata, and no file where anything is amiss."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tiny_graphs import architecture, by_torch, generator_of, photos

import kdgan_compress
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import weights_sha256
from kdgan_compress.export import detector_file
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ThresholdRule, ValidationData
from kdgan_compress.export.validation.parity import parity, relative_difference
from kdgan_compress.gans import Architecture, build
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_PLACEHOLDER

THRESHOLD = 0.1 + 0.2
PAPERS = Architecture(family="ede", channels=(1, 2, 4), latent_size=16)


def write(path: Path, family="ede", norm="batch", settings=None, **more):
    described = architecture(family, norm)
    generator = generator_of(described)
    rule = "99 % of training normals"
    return write_detector(path, generator, described, THRESHOLD, rule, settings, x_hat="decoder", **more)


def validation(count=64) -> ValidationData:
    images = photos(count, 16, 16, 1)
    return ValidationData(images, images, photos(count, 16, 16, 1, seed=1), np.arange(count) % 2 == 0)


KINDS = {
    "fp32": ExportSettings(),
    "fp16": ExportSettings("fp16"),
    "int8": ExportSettings("int8"),
    "without rewrites": ExportSettings(rewrites=frozenset()),
    "mobile with maps": ExportSettings(mobile=True, io=IOSpec("float", (20, 24), 1, True, True)),
}


@pytest.fixture(scope="module")
def written(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "new" / "folder"
    found = {}
    for norm in ("batch", "instance"):
        for kind, settings in KINDS.items():
            path = folder / f"{norm} {kind}.onnx"
            found[norm, kind] = (write(path, "ede", norm, settings, validation=validation(), gate=False), path)
    return found


@pytest.fixture(scope="module", params=[(norm, kind) for norm in ("batch", "instance") for kind in KINDS], ids=str)
def each(request, written):
    return written[request.param]


def test_report(each):
    report, path = each
    assert (report.path, report.opset, report.size_bytes) == (str(path), 18, path.stat().st_size)
    assert 0 <= report.parity_max_rel <= (1e-4 if report.precision == "fp32" else 0.3)
    assert report.latent_lost is None


def test_only_the_files_are_there(written):
    folders = {path.parent for _, path in written.values()}
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == [
        sorted(path.name for _, path in written.values())
    ]


def test_file_is_whole_and_opens(each):
    report, path = each
    onnx.checker.check_model(onnx.load(path), full_check=True)
    detector = Detector(path)
    assert detector.metadata["precision"] == report.precision
    assert detector.threshold == report.threshold


def test_the_checksum_is_the_hash_of_the_rest(each):
    content = each[1].read_bytes()
    digest = Detector(each[1]).metadata["file_sha256"]
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), CHECKSUM_PLACEHOLDER.encode())).hexdigest() == digest


def test_nothing_tells_where_it_was_made(each):
    """Neither paths and source lines nor the names that torch gives values; random weights may look like anything."""
    model = onnx.load(each[1])
    graph = model.graph
    parts = [graph, *graph.node, *graph.initializer, *graph.input, *graph.output]
    assert all(part.doc_string == "" for part in [model, *parts])
    assert all(len(part.metadata_props) == 0 for part in parts)
    assert all(attribute.doc_string == "" for node in graph.node for attribute in node.attribute)
    assert len(graph.value_info) == len(model.functions) == 0
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.initializer)
    for tensor in graph.initializer:
        tensor.ClearField("raw_data")
    text = model.SerializeToString()
    for word in (
        b".py",
        b"generator",
        b"encoder",
        b"torch.",
        b"pkg.",
        b"/tmp",
        b"/work",
        str(Path.home()).encode() + b"/",
    ):
        assert word not in text, word
    assert re.search(rb"(/[\w.-]+){2}", text) is None
    kept = {"image", "threshold", "score", "is_anomaly", "reconstruction", "anomaly_map"}
    names = {name for node in graph.node for name in (*node.input, *node.output, node.name) if name}
    assert all(re.fullmatch(r"[nvw]\d+", name) for name in names - kept)


@pytest.mark.parametrize("kind", list(KINDS))
def test_bytes_are_the_same_every_time(written, tmp_path, kind):
    write(tmp_path / "elsewhere.onnx", "ede", "batch", KINDS[kind], validation=validation(), gate=False)
    assert (tmp_path / "elsewhere.onnx").read_bytes() == written["batch", kind][1].read_bytes()


OTHER_PROCESS = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_detector_file import KINDS, validation, write
for kind in ("fp32", "int8"):
    write(Path({folder!r}, kind), "ede", "batch", KINDS[kind], validation=validation(), gate=False)
"""


def test_bytes_are_the_same_in_another_process(written, tmp_path):
    """Whose sets have another order."""
    script = OTHER_PROCESS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(kdgan_compress.__file__).parents[1]), "PATH": "",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=environment, check=True, capture_output=True)
    for kind in ("fp32", "int8"):
        assert (tmp_path / kind).read_bytes() == written["batch", kind][1].read_bytes()


@pytest.mark.parametrize("opset", [19, 21])
def test_other_opsets(tmp_path, opset):
    settings = ExportSettings(opset=opset, io=IOSpec(reconstruction=True, anomaly_map=True))
    report = write(tmp_path / "d.onnx", settings=settings)
    (found,) = onnx.load(tmp_path / "d.onnx").opset_import
    assert (report.opset, found.domain, found.version) == (opset, "", opset)
    images = photos(5, 21, 13, 1)
    scores = Detector(tmp_path / "d.onnx").score(images).score
    np.testing.assert_allclose(scores, by_torch(generator_of(architecture()), images), rtol=1e-4)


@pytest.mark.parametrize("opset", [17, 30])
def test_opsets_that_cannot_be_had(tmp_path, opset):
    with pytest.raises(KdganError) as caught:
        write(tmp_path / "d.onnx", settings=ExportSettings(opset=opset))
    assert "\n" not in str(caught.value)
    assert "opset" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_ir_version_is_the_oldest_that_does(written):
    model = onnx.load(written["batch", "fp32"][1])
    assert model.ir_version == 8
    assert (model.producer_name, model.producer_version, model.graph.name) == ("kdgan-compress", "", "detector")


@pytest.fixture(scope="module")
def papers(quick, tmp_path_factory):
    """A 1-2-4 of Table II with a short latent, and its metadata."""
    path = tmp_path_factory.mktemp("papers") / "d.onnx"
    write_detector(path, build(PAPERS, seed=5).generator, PAPERS, THRESHOLD, "99 % of training normals")
    return path, {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def test_metadata_is_complete(papers):
    """An encoder has 16 + 2 + 32 + 4 + 128 + 8 + 1024 parameters and 9216 MACs, and so has a decoder."""
    _, metadata = papers
    metadata = dict(metadata)
    digest = hashlib.sha256()
    weights = build(PAPERS, seed=5).generator.state_dict()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    versions = metadata.pop("versions")
    assert int(metadata.pop("fvcore_flops")) > 3 * 9216
    assert int(metadata.pop("num_weights")) >= 3 * 1214
    assert re.fullmatch("[0-9a-f]{64}", metadata.pop("file_sha256"))
    assert metadata == {
        "schema_version": "2",
        "family": "ede",
        "channels": "1-2-4",
        "image_channels": "1",
        "image_size": "32",
        "latent_size": "16",
        "norm": "instance",
        "preprocessing": "antialiased bilinear resize, scaled to -1 ... 1",
        "precision": "fp32",
        "rewrites": "heads, opening, difference, scale",
        "threshold": "0.30000000000000004",
        "threshold_rule": "99 % of training normals",
        "num_params": str(3 * 1214),
        "conv_macs": str(3 * 9216),
        "weights_sha256": digest.hexdigest(),
    }
    assert f"torch {torch.__version__}" in versions
    assert f"onnx {onnx.__version__}" in versions


def test_hash_of_weights_is_of_every_weight(papers):
    generator = build(PAPERS, seed=5).generator
    before = weights_sha256(generator)
    assert before == papers[1]["weights_sha256"]
    with torch.no_grad():
        generator.encoder2.head.weight[3, 2, 1, 0] += 1e-3
    assert weights_sha256(generator) != before


@pytest.mark.usefixtures("quick")
def test_second_encoder_of_ed_ehat_stays_behind(tmp_path):
    settings = ExportSettings(rewrites=frozenset())
    write(tmp_path / "d.onnx", "ed_ehat", "instance", settings)
    content = (tmp_path / "d.onnx").read_bytes()
    generator = generator_of(architecture("ed_ehat", "instance"))
    assert generator.encoder.head.weight.detach().numpy().tobytes() in content
    assert generator.encoder2.head.weight.detach().numpy().tobytes() not in content


@pytest.mark.usefixtures("quick")
def test_generator_is_left_as_it_was_but_for_its_mode(tmp_path):
    described = architecture()
    generator = generator_of(described).train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    write_detector(tmp_path / "d.onnx", generator, described, 1, "by hand")
    assert not any(module.training for module in generator.modules())
    assert generator.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert all(parameter.requires_grad for parameter in generator.parameters())


@pytest.mark.usefixtures("quick")
def test_numpys_threshold_is_a_number_too(tmp_path):
    described = architecture()
    write_detector(tmp_path / "d.onnx", generator_of(described), described, np.float64(2.5), "by hand")
    assert Detector(tmp_path / "d.onnx").threshold == 2.5


@pytest.mark.usefixtures("quick")
def test_threshold_by_a_rule_for_fp32(tmp_path):
    report = write(tmp_path / "d.onnx", validation=validation(), rule=ThresholdRule(0.9))
    expected = np.quantile(by_torch(generator_of(architecture()), validation().normals).astype(float), 0.9)
    assert report.threshold == pytest.approx(expected, rel=1e-5)
    assert report.threshold_rule == "0.9 quantile of 64 normal images' scores"
    assert report.agreement is None


@pytest.mark.usefixtures("quick")
def test_images_without_a_rule_leave_the_threshold_of_fp32(tmp_path):
    assert write(tmp_path / "d.onnx", validation=validation()).threshold == THRESHOLD


@pytest.mark.usefixtures("quick")
def test_maps_need_a_reconstruction(tmp_path):
    described = architecture()
    settings = ExportSettings(io=IOSpec(anomaly_map=True))
    with pytest.raises(KdganError, match="Maps need a reconstruction; the model has no tap x_hat"):
        write_detector(tmp_path / "d.onnx", generator_of(described), described, 1, "by hand", settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "d.onnx").mkdir()
    for path in (tmp_path / "file" / "d.onnx", tmp_path / "d.onnx"):
        with pytest.raises(KdganError, match="output path must be writable"):
            write(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.onnx", "file"]


@pytest.mark.parametrize("difference", [1.0, 1.01e-4, float("nan")])
@pytest.mark.usefixtures("quick")
def test_scores_that_disagree_leave_no_file_and_keep_the_older(tmp_path, monkeypatch, difference):
    monkeypatch.setattr(detector_file, "parity", lambda *_: difference)
    (tmp_path / "older.onnx").write_text("older")
    for name in ("d.onnx", "older.onnx"):
        with pytest.raises(KdganError, match=r"must agree to 0\.0001 relative; they differ by"):
            write(tmp_path / name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("older.onnx", "older")]


def test_parity_notices_other_weights(papers):
    detector = Detector(papers[0])
    assert parity(detector, build(PAPERS, seed=5).generator.eval(), PAPERS) < 1e-4
    assert parity(detector, build(PAPERS, seed=6).generator.eval(), PAPERS) > 1e-2


def test_relative_difference():
    assert relative_difference(np.array([1.0, 2.2]), np.array([1.0, 2.0])) == pytest.approx(0.1)
    assert relative_difference(np.array([-1.0]), np.array([-2.0])) == pytest.approx(0.5)
    assert relative_difference(np.array([1e-9]), np.array([0.0])) == pytest.approx(1e-3)


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.usefixtures("quick")
def test_input_size_and_maps_through_the_runtime(tmp_path, kind):
    """Files are resized to the input size by Pillow."""
    io = IOSpec(input=kind, input_size=(24, 40), batch_size=1, reconstruction=True, anomaly_map=True)
    write(tmp_path / "d.onnx", settings=ExportSettings(io=io))
    detector = Detector(tmp_path / "d.onnx")
    assert (detector.input, detector.input_size) == (kind, (24, 40))
    photo = photos(1, 50, 70, 1)[0]
    Image.fromarray(photo[..., 0]).save(tmp_path / "a.png")
    by_pillow = np.array(Image.fromarray(photo[..., 0]).resize((40, 24), Image.Resampling.BILINEAR))[..., None]
    np.testing.assert_array_equal(detector.read(tmp_path / "a.png"), by_pillow)
    generator = generator_of(architecture())
    expected = by_torch(generator, by_pillow[None])
    score, is_anomaly = detector.score_file(tmp_path / "a.png")
    assert score == pytest.approx(expected[0], rel=1e-4)
    assert is_anomaly == (score > THRESHOLD)
    images = photos(3, 24, 40, 1)
    scores = detector.score(images, maps=True)
    np.testing.assert_allclose(scores.score, by_torch(generator, images), rtol=1e-4)
    assert scores.anomaly_map.shape == (3, 16, 16)
    assert scores.reconstruction.shape == ((3, 16, 16, 1) if kind == "uint8" else (3, 1, 16, 16))
    assert scores.reconstruction.dtype == (np.uint8 if kind == "uint8" else np.float32)
    assert detector.score(images).reconstruction is None
    with pytest.raises(
        KdganError, match=r"must be uint8 \(N, 24, 40, 1\); got uint8 \(3, 40, 24, 1\)\..* of that size"
    ):
        detector.score(images.swapaxes(1, 2))


def test_file_without_maps(papers):
    with pytest.raises(KdganError, match="has no maps; its outputs are score, is_anomaly"):
        Detector(papers[0]).score(photos(1, 32, 32, 1), maps=True)
