import json
import shutil

import numpy as np
import pytest

from kdgan_compress.api import export
from kdgan_compress.api.export import export_detector, load_validation_data
from kdgan_compress.data import load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.export.packaging import sidecars
from kdgan_compress.export.packaging.sidecar_names import golden_sidecar
from kdgan_compress.export.settings import ExportSettings

pytestmark = pytest.mark.usefixtures("quick_runs", "traced_once")


def checkpoint_of(folder):
    return load_checkpoint(folder / "model.safetensors")


def test_validation_data_are_the_models_own_images_unless_others_are_given(pair, tmp_path):
    checkpoint = checkpoint_of(pair / "student")
    own = load_validation_data(checkpoint)
    split = load_split(checkpoint.data, 16, 1)
    for images, expected in ((own.train, split.train), (own.normals, split.calibration), (own.test, split.test)):
        np.testing.assert_array_equal(images, expected.numpy().transpose(0, 2, 3, 1))
        assert images.flags.c_contiguous
    assert own.has_labels
    with np.load(pair / "set.npz") as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "x_test": arrays["x_test"][:30], "y_test": arrays["y_test"][:30]})
    other = load_validation_data(checkpoint, f"npz:{tmp_path / 'other.npz'}")
    assert (len(own.test), len(other.test)) == (40, 30)
    assert own.in_fit is (checkpoint.statistic is not None and not split.has_holdout)
    assert not other.in_fit
    np.testing.assert_array_equal(other.test_is_anomalous, [False] * 20 + [True] * 10)


def test_a_folder_has_its_own_normal_class(pair, tmp_path):
    for part, count in (("train/good", 5), ("test/good", 2), ("test/hole", 3)):
        (tmp_path / part).mkdir(parents=True)
        for number in range(count):
            (tmp_path / part / f"{number}.pgm").write_bytes(b"P5 16 16 255\n" + bytes([20 * number] * 256))
    validation = load_validation_data(checkpoint_of(pair / "student"), f"folder:{tmp_path}")
    assert (len(validation.train), validation.test_is_anomalous.tolist()) == (5, [False] * 2 + [True] * 3)


def test_a_teacher_that_is_gone_is_still_named(pair, tmp_path):
    shutil.copytree(pair / "teacher", tmp_path / "gone")
    student = checkpoint_of(pair / "student")
    from kdgan_compress.experiment.checkpoint import save_checkpoint

    student.provenance["teacher"] = str(tmp_path / "gone")
    save_checkpoint(tmp_path / "student.safetensors", student)
    shutil.rmtree(tmp_path / "gone")
    without = export_detector(tmp_path / "student.safetensors", tmp_path / "b" / "s.onnx")
    assert "the teacher `gone`" in (tmp_path / "b" / "card.md").read_text()
    assert without.auc is None


def test_a_model_trained_alone_has_no_teacher(pair, tmp_path):
    result = export_detector(pair / "teacher", tmp_path / "t.onnx")
    assert "distilled" not in (tmp_path / "card.md").read_text()
    assert result.auc == json.loads((pair / "teacher" / "result.json").read_text())["auc"]


def test_an_export_measures_no_latency(pair, tmp_path, monkeypatch):
    from kdgan_compress.profiling import latency

    monkeypatch.delattr(latency.time, "perf_counter")
    export_detector(pair / "student", tmp_path / "s.onnx", settings=ExportSettings("fp16"))
    assert "Not measured" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize(
    ("module", "step"),
    [(sidecars, "write_golden"), (sidecars, "write_card"), (sidecars, "write_ort"), (export, "check_mobile")],
)
def test_whatever_fails_leaves_nothing(pair, tmp_path, monkeypatch, module, step):
    def fail(*_, **__):
        raise KdganError("This must not fail", "it did", "Try again")

    monkeypatch.setattr(module, step, fail)
    with pytest.raises(KdganError, match="it did"):
        export_detector(pair / "student", tmp_path / "s.onnx", settings=ExportSettings(mobile=True))
    assert list(tmp_path.iterdir()) == []


def test_the_detector_comes_last(pair, tmp_path):
    """Where it is, all that belongs to it is."""
    (tmp_path / "card.md").mkdir()
    with pytest.raises(KdganError, match="writable"):
        export_detector(pair / "student", tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()


def test_the_same_export_is_the_same_file(pair, tmp_path):
    for folder in "ab":
        export_detector(pair / "student", tmp_path / folder / "s.onnx")
    for name in ("s.onnx", "golden.npz", "golden.json", "card.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("owner", ["gone.onnx", "../s.onnx", "", 3, None])
def test_only_a_detector_that_is_there_keeps_its_card(pair, tmp_path, owner):
    (tmp_path / "golden.json").write_text(json.dumps({"detector": owner}))
    (tmp_path / "s.onnx").touch()
    result = export_detector(pair / "student", tmp_path / "d.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"s.onnx", "d.onnx", "golden.json", "golden.npz", "card.md"}
    assert len(result.files) == 4


def test_golden_vectors_by_the_detectors_name_come_first(tmp_path):
    assert golden_sidecar(tmp_path / "d.onnx") == tmp_path / "golden.npz"
    (tmp_path / "d.golden.npz").touch()
    assert golden_sidecar(tmp_path / "d.onnx") == tmp_path / "d.golden.npz"
    assert golden_sidecar(tmp_path / "e.onnx") == tmp_path / "golden.npz"
