"""``import``: a checkpoint of another project becomes a run folder that every command takes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli, assert_refused, only_json

from kdgan_compress.cli.main import run
from kdgan_compress.data import DataSettings, load_split
from kdgan_compress.evaluation import score_images
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.runtime import Detector

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
from ganomaly_networks import AnomalibGenerator, PublicNetD, PublicNetG, random_weights


class Foreign:
    """An object whose loading would execute code."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return print, ("executed",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``netG.pth`` and ``netD.pth`` of a small network for 64×64 grey images, as the public code saves them."""
    folder = tmp_path_factory.mktemp("weights")
    network = random_weights(PublicNetG(64, nz=12, nc=1, ngf=4))
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, folder / "netG.pth")
    torch.save({"epoch": 3, "state_dict": PublicNetD(64, nc=1, ngf=4).state_dict()}, folder / "netD.pth")
    return folder / "netG.pth"


@pytest.fixture(scope="module")
def teacher(checkpoint: Path, npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "teacher"
    assert run(["import", str(checkpoint), "--data", f"npz:{npz}", "--normal", "0", "--out", str(out)]) == 0
    return out


def test_the_run_folder_has_the_original_scores(teacher: Path, checkpoint: Path, npz: Path, cli: Cli) -> None:
    original = PublicNetG(64, nz=12, nc=1, ngf=4)
    original.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    model = load_checkpoint(teacher / "model.safetensors")
    split = load_split(DataSettings(f"npz:{npz}", "0"), 64, 1)
    expected = original.score(split.test).numpy()
    np.testing.assert_allclose(score_images(model.scorer(), split.test), expected, rtol=1e-5)
    normals = original.score(split.calibration).numpy()
    assert model.threshold == pytest.approx(np.quantile(normals, 0.99), rel=1e-5)
    assert model.score.type == "norm"
    assert model.provenance["command"] == "import"
    code, out, _ = cli("evaluate", "--model", teacher, "--json")
    assert code == 0
    assert only_json(out)["auc"] == json.loads((teacher / "result.json").read_text())["auc"]


def test_a_student_is_distilled_compared_and_exported(teacher: Path, npz: Path, cli: Cli, tmp_path: Path) -> None:
    student = tmp_path / "student"
    tiny = ["--width", "1", "--epochs", "1", "--batch-size", "4", "--set", "score.type=norm", "--json"]
    assert cli("distill", "--teacher", teacher, *tiny, "--out", student)[0] == 0
    architecture = load_checkpoint(student / "model.safetensors").architecture
    assert (architecture.family, architecture.latent_size, architecture.image_size) == ("ede", 12, 64)
    assert load_checkpoint(student / "teacher.safetensors").architecture.family == "ganomaly"  # trained in stage 3
    evaluation = only_json(cli("evaluate", "--model", student, "--json")[1])
    assert evaluation["auc_gap"] is not None
    profile = only_json(cli("profile", "--model", student, "--against", teacher, "--json")[1])
    assert profile["ratios"]["params"] > 5
    for model, name in ((student, "student.onnx"), (teacher, "teacher.onnx")):
        assert cli("export", "--model", model, "-o", tmp_path / name)[0] == 0
        scores = cli("evaluate", "--model", tmp_path / name, "--data", f"npz:{npz}", "--normal", "0", "--json")[1]
        expected = only_json(cli("evaluate", "--model", model, "--json")[1])
        assert only_json(scores)["auc"] == pytest.approx(expected["auc"], abs=1e-4)


def test_anomaly_maps_of_an_imported_network_are_in_units_of_the_images(
    teacher: Path, cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "maps.onnx"
    assert cli("export", "--model", teacher, "-o", path, "--anomaly-map")[0] == 0
    prediction = Detector(path).score(np.full((1, 64, 64, 1), 200, np.uint8), maps=True)
    assert prediction.anomaly_map is not None
    assert 0 <= prediction.anomaly_map.min() <= prediction.anomaly_map.max() <= 2


def test_without_data_the_missing_is_named(checkpoint: Path, npz: Path, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    code, out, _ = cli("import", checkpoint, "--out", folder)
    assert code == 0
    assert "missing" in out
    assert "--data" in out
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "recipe.yaml"]
    assert_refused(cli("evaluate", "--model", folder), "data are unknown", "--data")
    assert_refused(cli("export", "--model", folder, "-o", tmp_path / "a.onnx"), "no threshold", "--data")
    assert_refused(cli("distill", "--teacher", folder, "--out", tmp_path / "s"), "data are unknown")
    assert cli("profile", "--model", folder, "--json")[0] == 0
    evaluation = only_json(cli("evaluate", "--model", folder, "--data", f"npz:{npz}", "--normal", "0", "--json")[1])
    assert (evaluation["mode"], evaluation["threshold"]) == ("deployed", None)


def test_anomalib_checkpoints_are_imported_with_imagenets_normalisation(cli: Cli, tmp_path: Path) -> None:
    network = random_weights(AnomalibGenerator(32, nz=5, width=2))
    state = {f"model.generator.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"n_features": 2}}, tmp_path / "model.ckpt")
    result = only_json(cli("import", tmp_path / "model.ckpt", "--out", tmp_path / "teacher", "--json")[1])
    assert "anomalib" in result["project"]
    assert result["mean"] == [0.485, 0.456, 0.406]
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    scores = score_images(load_checkpoint(tmp_path / "teacher/model.safetensors").scorer(), images)
    np.testing.assert_allclose(scores, network.score(images).numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state_dict": {"a": torch.ones(1)}, "transform": Foreign()}, ["executes code", "python -c"]),
        ({"state_dict": {"model.backbone.a": torch.ones(1)}}, ["recognised none", "model.backbone"]),
        ({"state_dict": {"encoder1.main.x": torch.ones(1)}}, ["public code", "first and the last convolution"]),
        ([1, 2], ["state dict"]),
    ],
)
def test_what_is_not_a_known_checkpoint_is_refused(content: object, words: list[str], cli: Cli, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "netG.pth")
    assert_refused(cli("import", tmp_path / "netG.pth", "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_colour_images_do_not_fit_a_network_for_grey_ones(checkpoint: Path, photos: Path, cli: Cli) -> None:
    out = photos / "run"
    assert_refused(cli("import", checkpoint, "--data", f"folder:{photos}", "--out", out), "1 channel", "have 3")
    assert not out.exists()


def test_a_normalisation_needs_one_value_per_channel_above_zero(checkpoint: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert_refused(cli("import", checkpoint, "--mean", "0.1,0.2", "--out", out), "--mean needs one number")
    assert_refused(cli("import", checkpoint, "--std", "0", "--out", out), "must be above 0")
    assert cli("import", checkpoint, "--mean", "x", "--out", out)[0] == 2
    assert not out.exists()


def test_a_run_is_not_overwritten(teacher: Path, checkpoint: Path, cli: Cli) -> None:
    assert_refused(cli("import", checkpoint, "--out", teacher), "new folder")


def test_a_student_of_smaller_images_is_distilled_compared_and_exported(
    teacher: Path, npz: Path, cli: Cli, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    tiny = ["--width", "1", "--epochs", "1", "--batch-size", "4", "--json"]
    assert cli("distill", "--teacher", teacher, "--image-size", "16", *tiny, "--out", student)[0] == 0
    architecture = load_checkpoint(student / "model.safetensors").architecture
    assert (architecture.image_size, architecture.channels) == (16, (1, 2))
    assert load_checkpoint(student / "teacher.safetensors").architecture.image_size == 64
    evaluation = only_json(cli("evaluate", "--model", student, "--json")[1])
    of_teacher = only_json(cli("evaluate", "--model", teacher, "--json")[1])
    assert evaluation["auc_gap"] == pytest.approx(of_teacher["auc"] - evaluation["auc"])
    assert cli("export", "--model", student, "-o", tmp_path / "student.onnx")[0] == 0
    assert Detector(tmp_path / "student.onnx").image_size == 16
    assert_refused(cli("distill", "--teacher", teacher, "--image-size", "128", "--out", tmp_path / "s"), "at most")
