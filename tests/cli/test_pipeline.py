"""Every command end to end on a tiny data set, with the JSON keys that programs rely on."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from command_line import Cli, only_json
from PIL import Image
from sklearn.metrics import roc_auc_score

from kdgan_compress.data.prepare import resize
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.runtime import Detector

RUN_KEYS = {"run", "model", "auc", "auc_raw", "epochs", "num_images", "seconds", "images_per_s"}


def test_train_reports_its_run_as_json(cli: Cli, npz: Path, tmp_path: Path) -> None:
    code, out, err = cli(
        "train", "--data", f"npz:{npz}", "--normal", 0, "--width", 1, "--latent", 8,
        "--epochs", 2, "--track-auc", "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    result = only_json(out)
    assert code == 0
    assert result.keys() >= RUN_KEYS
    assert (result["epochs"], result["num_images"]) == (2, 48)
    assert "epoch 2" in err
    assert result["best_epoch_auc_oracle"] >= result["auc"]
    assert result["auc_raw"] is None
    written = {path.name for path in (tmp_path / "run").iterdir()}
    names = {"recipe.yaml", "model.safetensors", "state.pt", "metrics.jsonl", "result.json"}
    names |= {"curves.png", "scores.png", "scores.npz"}
    assert written == names
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result | {
        "run": ".",
        "model": "model.safetensors",
    }


def test_train_without_json_prints_text(cli: Cli, npz: Path, tmp_path: Path) -> None:
    options = ("--data", f"npz:{npz}", "--normal", 0, "--width", 1, "--epochs", 1, "--out")
    code, out, _ = cli("train", *options, tmp_path / "run")
    assert code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    auc = f"AUC          {100 * result['auc']:.2f} %"
    assert auc in out.splitlines()
    assert "seed 0" in out
    _, out, _ = cli("train", *options, tmp_path / "raw", "--raw")
    raw = json.loads((tmp_path / "raw" / "result.json").read_text())
    assert raw["auc"] == result["auc"]
    assert f"{auc}, {100 * raw['auc_raw']:.2f} % without EMA" in out.splitlines()


def test_the_students_checkpoint_has_family_data_and_teacher(runs: dict[str, Path], npz: Path) -> None:
    student = load_checkpoint(runs["student"] / "model.safetensors")
    assert student.architecture.channels == (1, 2, 4)
    assert student.architecture.latent_size == 16
    assert student.data.source == f"npz:{npz}"
    assert student.provenance["schedule"] == "2->3"
    assert (runs["student"] / "teacher.safetensors").exists()


def test_evaluate_agrees_with_the_exported_file_scored_by_onnxruntime(
    cli: Cli, runs: dict[str, Path], npz: Path
) -> None:
    code, out, _ = cli("evaluate", "--model", runs["student"], "--json")
    result = only_json(out)
    assert code == 0
    assert result.keys() >= {
        "auc", "auc_raw", "average_precision", "best_f1", "best_f1_threshold", "num_normal", "num_novel",
        "auc_gap", "score_spearman",
    }  # fmt: skip
    with np.load(npz) as data:
        images, labels = data["x_test"][..., None], data["y_test"]
    session = onnxruntime.InferenceSession(str(runs["detector"]), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["score"], {"image": images})
    assert result["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=0.02)
    assert (result["num_normal"], result["num_novel"]) == (10, 10)
    teacher = only_json(cli("evaluate", "--model", runs["teacher"], "--json")[1])
    assert teacher["auc_gap"] is None
    assert result["auc_gap"] == pytest.approx(teacher["auc"] - result["auc"])


def test_evaluate_accepts_a_detector_file(cli: Cli, runs: dict[str, Path], npz: Path) -> None:
    arguments = ("evaluate", "--model", runs["detector"], "--data", f"npz:{npz}", "--normal", 0, "--json")
    of_file = only_json(cli(*arguments)[1])
    of_run = only_json(cli("evaluate", "--model", runs["student"], "--json")[1])
    assert of_file["auc"] == pytest.approx(of_run["auc"], abs=1e-6)
    assert of_file["threshold"] == of_run["threshold"]
    assert of_file["auc_raw"] is None


@pytest.mark.parametrize("name", ["student", "norm"])
def test_run_and_file_agree_on_images_of_another_size(
    cli: Cli, runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    rng = np.random.default_rng(3)
    ramps = np.clip(np.linspace(0, 255, 61) + rng.normal(0, 8, (12, 47, 61)), 0, 255)
    images, labels = np.concatenate([ramps, rng.uniform(0, 255, (12, 47, 61))]).astype(np.uint8), np.repeat([0, 1], 12)
    np.savez(tmp_path / "other.npz", x_train=images[:12], y_train=labels[:12], x_test=images, y_test=labels)
    assert cli("export", "--model", runs[name], "-o", tmp_path / "d.onnx")[0] == 0
    data = ("--data", f"npz:{tmp_path / 'other.npz'}", "--normal", 0, "--json")
    of_run, of_file = (
        only_json(cli("evaluate", "--model", model, *data)[1]) for model in (runs[name], tmp_path / "d.onnx")
    )
    same = ("auc", "average_precision", "best_f1", "threshold", "fpr", "tpr")
    assert [of_file[key] for key in same] == [pytest.approx(of_run[key], abs=1e-6) for key in same]
    assert of_file["best_f1_threshold"] == pytest.approx(of_run["best_f1_threshold"], rel=1e-3)
    # The file's own resize does not round to whole grey levels: scores differ a little, and in no direction.
    detector = Detector(tmp_path / "d.onnx")
    resized = resize(images[..., None], (32, 32)).permute(0, 2, 3, 1).contiguous().numpy()
    ratios = detector.score(images[..., None]).score / detector.score(resized).score
    assert np.abs(ratios - 1).max() < (
        0.1 if name == "student" else 0.01
    )  # a fitted score of smooth ramps magnifies it
    assert abs(ratios.mean() - 1) < 0.01


def test_profile_of_an_architecture_is_exact(cli: Cli) -> None:
    code, out, _ = cli("profile", "--family", "ede", "--channels", "1,2,4", "--json")
    (model,) = only_json(out)["models"]
    assert code == 0
    assert (model["num_params"], model["conv_macs"]) == (49_722, 73_728)
    assert model["latency_us"]["p10"] <= model["latency_us"]["median"]
    # 11 kernels of 4×4 and 7 channels' norms, three times; the latent of 256 by its coordinates: 64 features on either
    # side of it give z1, and together with the 64 of the second encoder z1 − z2.
    num_weights = 3 * (11 * 16 + 7 * 2) + 64 * 64 + 64 * 64 + 128 * 64
    assert 0 < model["size_bytes"] - 4 * num_weights < 8000  # the graph itself


def test_profile_against_the_teacher_gives_ratios(cli: Cli, runs: dict[str, Path]) -> None:
    report = only_json(cli("profile", "--model", runs["detector"], "--against", runs["teacher"], "--json")[1])
    student, teacher = report["models"]
    assert report["ratios"]["params"] == teacher["num_params"] / student["num_params"]
    assert report["ratios"]["macs"] == teacher["conv_macs"] / student["conv_macs"]
    assert report["ratios"].keys() == {"params", "macs", "bytes", "latency"}


def test_export_reports_and_score_prints_one_line_per_image(
    cli: Cli, runs: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    out_file = tmp_path / "sub" / "d.onnx"
    report = only_json(cli("export", "--model", runs["student"] / "model.safetensors", "-o", out_file, "--json")[1])
    assert report.keys() >= {"path", "precision", "size_bytes", "opset", "threshold", "parity_max_rel"}
    assert report["size_bytes"] == out_file.stat().st_size
    assert report["parity_max_rel"] <= 1e-4
    code, out, _ = cli("score", out_file, photos / "test", photos / "train" / "good" / "0.png", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [Path(line["path"]).name for line in lines] == ["0.png", "1.png", "2.png"] * 2 + ["0.png"]
    assert all(line["is_anomaly"] == (line["score"] > report["threshold"]) for line in lines)


def test_score_continues_after_a_bad_file_and_exits_with_1(cli: Cli, runs: dict[str, Path], photos: Path) -> None:
    bad = photos / "test" / "good" / "0.png"
    bad.write_text("no image")
    code, out, _ = cli("score", runs["detector"], photos / "test" / "good", "--json")
    first, *others = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert first.keys() == {"path", "error"}
    assert len(others) == 2
    code, out, err = cli("score", runs["detector"], photos / "test" / "good")
    assert code == 1
    assert len(out.splitlines()) == 2
    assert "not an image" in err


def test_a_folder_of_photos_from_training_to_score(cli: Cli, photos: Path, tmp_path: Path) -> None:
    run, student, file = tmp_path / "t", tmp_path / "s", tmp_path / "s.onnx"
    assert cli("train", "--data", f"folder:{photos}", "--width", 2, "--epochs", 1, "--out", run)[0] == 0
    assert cli("distill", "--teacher", run, "--width", 1, "--schedule", "1", "--epochs", 1, "--out", student)[0] == 0
    assert cli("export", "--model", student, "-o", file)[0] == 0
    assert cli("score", file, photos / "test")[0] == 0
    assert load_checkpoint(student / "model.safetensors").architecture.image_channels == 3


def test_a_folder_of_good_parts_is_enough_to_train(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "photos/train/good").mkdir(parents=True)
    for number in range(3):
        Image.new("L", (64, 48), 60 * number).save(tmp_path / f"photos/train/good/{number}.png")
    code, out, _ = cli(
        "train", "--data", f"folder:{tmp_path / 'photos'}", "--width", 1, "--epochs", 1,
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert code == 0
    assert only_json(out)["auc"] is None
    code, _, err = cli("evaluate", "--model", tmp_path / "run")
    assert code == 1
    assert "both normal and anomalous" in err


def test_recipes_are_listed_shown_and_checked(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("recipes", "list", "--json")
    assert code == 0
    assert {"default", "paper", "from-scratch"} <= only_json(out).keys()
    mine = tmp_path / "mine.yaml"
    mine.write_text(cli("recipes", "show", "paper")[1])
    assert cli("recipes", "check", mine)[0] == 0


def test_demo_quick_makes_picture_detector_and_table(cli: Cli, tmp_path: Path) -> None:
    code, out, err = cli("demo", "--quick", "--out", tmp_path / "demo")
    assert code == 0
    assert "QUICK" in out
    assert "distilled" in out
    with Image.open(tmp_path / "demo" / "reconstructions.png") as picture:
        assert picture.size[0] > 600
    assert cli("score", tmp_path / "demo" / "student.onnx", tmp_path / "demo" / "images")[0] == 0
    assert "5/5" in err
