"""Files for phones: ORT format that scores the same, and ONNX Runtime's own verdict on what runs where."""

import numpy as np
import onnxruntime
import pytest
from tiny_graphs import architecture, by_torch, generator_of, photos

from kdgan_compress.errors import KdganError
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.graph.passes import REWRITES
from kdgan_compress.export.packaging import mobile
from kdgan_compress.export.packaging.mobile import MobileCheck, check_mobile, write_ort
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ValidationData
from kdgan_compress.runtime import Detector

FIXED = IOSpec(input="float", input_size=(16, 16), batch_size=1)
SETTINGS = {
    "for phones": ExportSettings(mobile=True, io=FIXED),
    "all but difference": ExportSettings(rewrites=frozenset(REWRITES) - {"difference"}, io=FIXED),
    "unrewritten": ExportSettings(rewrites=frozenset(), io=FIXED),
    "any size": ExportSettings(mobile=True),
    "fp16": ExportSettings("fp16", mobile=True),
    "int8": ExportSettings("int8"),
}


@pytest.fixture(scope="module")
def files(quick, tmp_path_factory):
    folder, described = tmp_path_factory.mktemp("mobile"), architecture("ede", "batch", 1)
    images = photos(64, 16, 16, 1)
    validation = ValidationData(images, images, images[:0], np.zeros(0, bool))
    found = {}
    for name, settings in SETTINGS.items():
        found[name] = folder / f"{name}.onnx"
        write_detector(
            found[name], generator_of(described), described, 1, "by hand", settings, validation=validation, gate=False
        )
    return found


@pytest.mark.parametrize("name", ["for phones", "all but difference"])
def test_phones_can_run_every_node_of_a_rewritten_batch_norm_net(files, name):
    found = check_mobile(files[name])
    assert [each.runtime for each in found] == ["NNAPI", "CoreML"]
    for each in found:
        assert each.verdict == "YES"
        assert each.num_partitions == 1
        assert each.num_supported >= each.num_nodes - 2
        assert str(each).startswith(f"YES ({each.num_supported} of {each.num_nodes} nodes in 1 part")


def test_phones_cannot_run_an_unrewritten_one(files):
    nnapi, coreml = check_mobile(files["unrewritten"])
    assert nnapi.verdict == "NO"
    assert coreml.verdict != "YES"
    assert "ConvTranspose" in nnapi.unsupported
    assert nnapi.num_supported < nnapi.num_nodes
    assert "without" in str(nnapi)


def test_usability_in_words():
    assert (
        str(MobileCheck("CoreML", "MAYBE", 3, 5, 2, ["Pad", "Erf"]))
        == "MAYBE (3 of 5 nodes in 2 parts, without Pad, Erf)"
    )


@pytest.mark.parametrize("name", ["for phones", "any size", "fp16", "int8"])
def test_ort_format_scores_the_same(files, tmp_path, name, capfd):
    ort, config = tmp_path / "d.ort", tmp_path / "d.config"
    write_ort(files[name], ort, config)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ort.read_bytes(), options, providers=["CPUExecutionProvider"])
    images = photos(1, 16, 16, 1)
    given = images if name in ("any size", "fp16", "int8") else images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    (score,) = session.run(["score"], {"image": given})
    tolerance = 1e-4 if name in ("for phones", "any size") else 2e-2
    np.testing.assert_allclose(score, Detector(files[name]).score(images).score, rtol=tolerance)
    if tolerance == 1e-4:
        np.testing.assert_allclose(score, by_torch(generator_of(architecture("ede", "batch", 1)), images), rtol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.config", "d.ort"]
    assert capfd.readouterr().out == ""


def test_operators_a_small_build_needs(files, tmp_path):
    write_ort(files["for phones"], tmp_path / "d.ort", tmp_path / "d.config")
    text = (tmp_path / "d.config").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.count(";") == 2 for line in lines)
    assert "DepthToSpace" in text
    assert "/tmp" not in text
    assert str(tmp_path) not in text
    write_ort(files["for phones"], tmp_path / "again.ort", tmp_path / "again.config")
    assert (tmp_path / "again.config").read_bytes() == (tmp_path / "d.config").read_bytes()


def test_ort_file_that_scores_otherwise_is_not_written(files, tmp_path, monkeypatch):
    honest = mobile.make_golden

    def shifted(detector):
        golden = honest(detector)
        golden.score[0] *= 1.001
        return golden

    monkeypatch.setattr(mobile, "make_golden", shifted)
    with pytest.raises(KdganError, match=r"must score as the \.onnx file does; they differ by 0\.00"):
        write_ort(files["any size"], tmp_path / "d.ort", tmp_path / "d.config")
    assert list(tmp_path.iterdir()) == []
