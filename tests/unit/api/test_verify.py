import shutil

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from kdgan_compress.api import verify as module
from kdgan_compress.api.export import export_detector
from kdgan_compress.api.verify import verify
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import score_images
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.runtime import Detector

pytestmark = pytest.mark.usefixtures("quick_runs", "traced_once")


@pytest.fixture(scope="module")
def files(pair, traced_once, tmp_path_factory):
    """The student's detector in fp32 and in fp16."""
    folder = tmp_path_factory.mktemp("files")
    export_detector(pair / "student", folder / "fp32" / "s.onnx")
    export_detector(pair / "student", folder / "fp16" / "s.onnx", settings=ExportSettings("fp16"))
    return {name: folder / name / "s.onnx" for name in ("fp32", "fp16")}


def by_hand(pair, detector):
    """Scores of the test images by the file and by torch, and which are novel."""
    with np.load(pair / "set.npz") as arrays:
        images, novel = arrays["x_test"][..., None], arrays["y_test"] == 1
    import torch

    generator = load_checkpoint(pair / "student" / "model.safetensors").scorer()
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()
        theirs = generator.anomaly_score(pixels).numpy().astype(np.float64)
    return Detector(detector).score(images).score.astype(np.float64), theirs, novel


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_figure(files, pair, precision):
    path, source = files[precision], f"npz:{pair / 'set.npz'}"
    found = verify(path, against=pair / "student", data=source)
    ours, theirs, novel = by_hand(pair, path)
    own = load_checkpoint(pair / "student" / "model.safetensors").threshold
    assert (found.ok, found.failed, found.weights_match) == (True, (), True)
    assert found.auc == pytest.approx(roc_auc_score(novel, ours), abs=1e-12)
    assert found.auc_diff == pytest.approx(found.auc - roc_auc_score(novel, theirs), abs=1e-6)
    assert found.score_spearman == pytest.approx(spearmanr(ours, theirs).statistic, abs=1e-3)
    agreement = np.mean((ours > Detector(path).threshold) == (theirs > own))
    assert found.label_agreement == pytest.approx(agreement, abs=1e-9)
    assert found.golden_max_rel <= found.golden_tolerance == (1e-4 if precision == "fp32" else 2e-2)
    relative = np.abs(ours - theirs) / theirs
    assert found.score_max_rel >= relative.max() * 0.99 - 1e-6
    if precision == "fp16":
        assert found.score_max_rel > 1e-4  # of what is not exact it is a figure, not a bound


def test_its_own_data_where_a_root_says_where_they_are(files, pair, tmp_path):
    found = verify(files["fp32"], against=pair / "student", data_root=str(tmp_path))
    assert found.auc == verify(files["fp32"], data=f"npz:{pair / 'set.npz'}", normal="0").auc
    assert verify(files["fp32"], against=pair / "student").auc is None


def test_other_data_keep_no_class(files, pair, tmp_path):
    shutil.copy(pair / "set.npz", tmp_path / "other.npz")
    other = f"npz:{tmp_path / 'other.npz'}"
    with pytest.raises(KdganError, match="normal"):
        verify(files["fp32"], against=pair / "student", data=other)
    assert verify(files["fp32"], against=pair / "student", data=other, normal="0").ok


def test_a_difference_on_samples_is_not_hidden_by_agreement_on_data(files, pair, monkeypatch):
    monkeypatch.setattr(module, "parity", lambda *_: 5e-4)
    found = verify(files["fp32"], against=pair / "student", data=f"npz:{pair / 'set.npz'}")
    assert (found.ok, found.score_max_rel, found.worst) == (False, 5e-4, "sample images")
    assert found.failed == ("scores differ from torch's by 0.0005, more than 0.0001",)
    monkeypatch.setattr(module, "parity", lambda *_: float("nan"))
    assert not verify(files["fp32"], against=pair / "student", data=f"npz:{pair / 'set.npz'}").ok


def disagreeing(monkeypatch, change):
    """Torch's scores of the test images, changed."""
    monkeypatch.setattr(module, "score_images", lambda *arguments: change(score_images(*arguments)))


def swap_best(scores):
    """A normal image becomes the most novel of all."""
    return np.where(np.arange(len(scores)) == 3, scores.max() * 2, scores)


def test_the_image_that_differs_most_is_named(files, pair, monkeypatch):
    disagreeing(monkeypatch, lambda scores: scores * np.where(np.arange(len(scores)) == 17, 1.01, 1))
    found = verify(files["fp32"], against=pair / "student", data=f"npz:{pair / 'set.npz'}")
    assert found.worst == "test image 17"
    assert found.score_max_rel == pytest.approx(1 - 1 / 1.01, rel=1e-2)
    assert not found.ok


def test_an_auc_that_differs_fails_at_any_precision(files, pair, monkeypatch):
    disagreeing(monkeypatch, swap_best)
    for precision in ("fp32", "fp16"):
        found = verify(files[precision], against=pair / "student", data=f"npz:{pair / 'set.npz'}")
        _, theirs, novel = by_hand(pair, files[precision])
        assert found.auc_diff == pytest.approx(found.auc - roc_auc_score(novel, swap_best(theirs)), abs=1e-6)
        assert found.auc_diff > 0.005
        assert [reason for reason in found.failed if "AUC differs from torch's" in reason]
        assert [reason for reason in found.failed if "decisions" in reason] or precision == "fp16"


def test_a_run_of_another_shape_is_another(files, tmp_path):
    from kdgan_compress.data import DataSettings
    from kdgan_compress.experiment.checkpoint import Checkpoint, save_checkpoint
    from kdgan_compress.gans import Architecture, build

    described = Architecture(channels=(1, 2), image_size=16, latent_size=8, image_channels=3)
    weights = {name: network.state_dict() for name, network in build(described).networks().items()}
    save_checkpoint(tmp_path / "rgb.safetensors", Checkpoint(described, DataSettings(), 1.0, "none", {}, weights))
    with pytest.raises(KdganError, match="channel"):
        verify(files["fp32"], against=tmp_path / "rgb.safetensors")
