"""CVGAD from training to pictures, and distillation across families, by the commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli, only_json
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MinMaxScaler

from kdgan_compress.data import load_split
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.recipe import load_recipe
from kdgan_compress.runtime import Detector

TINY = ("--batch-size", 4, "--epochs", 1, "--json")
LOSSES = {
    "cvgad": {"wasserstein", "penalty", "ssim", "l1", "latent", "categorical", "negative", "mutual", "adversarial"},
    "ede": {"s_con", "s_adv", "s_enc", "s_ce"},
}
EVALUATION = {
    "model", "data", "auc", "auc_raw", "average_precision", "best_f1", "best_f1_threshold", "num_normal", "num_novel",
    "mode", "threshold", "fpr", "tpr", "auc_gap", "score_spearman", "teacher", "pixel_auc", "aupro", "num_masks",
    "maps",
}  # fmt: skip


def losses_of(run: Path) -> list[set[str]]:
    """The losses of each line of metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    others = {"stage_index", "stage", "epoch", "num_images", "seconds", "images_per_s", "auc", "auc_raw"}
    return [line.keys() - others for line in lines]


def test_train_writes_a_model_with_its_clusters(families: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(families["cvgad"] / "model.safetensors")
    assert (checkpoint.architecture.family, checkpoint.architecture.num_clusters) == ("cvgad", 3)
    assert checkpoint.weights["generator"]["means"].shape == (3, 8)
    assert load_recipe(str(families["cvgad"] / "recipe.yaml")).objective == load_recipe("cvgad").objective
    assert losses_of(families["cvgad"]) == [LOSSES["cvgad"]]
    split = load_split(checkpoint.data, 16, 1)
    for network, gan in (("generator", checkpoint.build()), ("raw", checkpoint.build_without_ema())):
        with torch.no_grad():
            terms = gan.generator.score_terms(split.train.float() / 127.5 - 1).numpy()
        np.testing.assert_allclose(checkpoint.weights[network]["score_scale"], np.ptp(terms, axis=0), rtol=1e-4)


def test_evaluate_in_both_modes(cli: Cli, families: dict[str, Path]) -> None:
    assert only_json(cli("evaluate", "--model", families["cvgad"], "--json")[1])["auc_raw"] is None
    code, out, err = cli("evaluate", "--model", families["cvgad"], "--raw", "--json")
    deployed = only_json(out)
    assert (code, err) == (0, "")
    code, out, err = cli("evaluate", "--model", families["cvgad"], "--mode", "paper", "--json")
    paper = only_json(out)
    assert code == 0
    (warning,) = err.splitlines()
    assert warning.startswith("Warning: --mode paper")
    assert "leak" in warning
    assert deployed.keys() == paper.keys() == EVALUATION
    assert (deployed["mode"], paper["mode"]) == ("deployed", "paper")
    assert deployed["auc_raw"] is not None
    for key in ("auc_raw", "threshold", "fpr", "tpr", "auc_gap"):
        assert paper[key] is None

    checkpoint = load_checkpoint(families["cvgad"] / "model.safetensors")
    generator, split = checkpoint.build().generator, load_split(checkpoint.data, 16, 1)
    with torch.no_grad():
        terms = generator.score_terms(split.test.float() / 127.5 - 1).numpy()
    scales = checkpoint.weights["generator"]["score_scale"].numpy()
    assert deployed["auc"] == pytest.approx(roc_auc_score(split.test_is_anomalous, (terms / scales).sum(1)))
    scaled = MinMaxScaler().fit_transform(terms).sum(1)
    assert paper["auc"] == pytest.approx(roc_auc_score(split.test_is_anomalous, scaled))
    assert 0 < paper["best_f1_threshold"] < 2

    text = cli("evaluate", "--model", families["cvgad"], "--mode", "paper")[1]
    assert "model's threshold" not in text
    assert "model's threshold" in cli("evaluate", "--model", families["cvgad"])[1]


@pytest.mark.parametrize("schedule", ["1", "2->3"])
def test_distil_within_the_family(cli: Cli, families: dict[str, Path], tmp_path: Path, schedule: str) -> None:
    teacher, run = families["cvgad"], tmp_path / "s"
    code, out, _ = cli(
        "distill", "--teacher", teacher, "--recipe", "cvgad", "--schedule", schedule, "--width", 1, *TINY, "--out", run
    )
    result = only_json(out)
    assert code == 0
    assert result["epochs"] == len(schedule.split("->"))
    student, expected = load_checkpoint(run / "model.safetensors"), load_checkpoint(teacher / "model.safetensors")
    described = vars(expected.architecture) | {"channels": (1, 2), "norm": "instance"}
    assert vars(student.architecture) == described
    assert student.data == expected.data
    losses = {
        "1": [{"k1", "kx"}],
        "2->3": [LOSSES["cvgad"] | {"k1", "kx"}, {f"teacher_{x}" for x in LOSSES["cvgad"]} | {"k1", "kx"}],
    }
    assert losses_of(run) == losses[schedule]
    assert (run / "teacher.safetensors").exists() == (schedule == "2->3")
    evaluation = only_json(cli("evaluate", "--model", run, "--json")[1])
    assert evaluation["auc"] == result["auc"]
    of_teacher = only_json(cli("evaluate", "--model", teacher, "--json")[1])
    assert evaluation["auc_gap"] == pytest.approx(of_teacher["auc"] - evaluation["auc"])


@pytest.mark.parametrize("re_encode", [False, True])
@pytest.mark.parametrize(("teacher", "student"), [("cvgad", "ede"), ("ede", "cvgad"), ("cvgad", "ed")])
def test_distil_across_families(
    cli: Cli, families: dict[str, Path], tmp_path: Path, teacher: str, student: str, re_encode: bool
) -> None:
    run = tmp_path / "s"
    code, out, _ = cli(
        "distill", "--teacher", families[teacher], "--set", f"distillation.student.family={student}",
        "--set", f"distillation.loss.re_encode={str(re_encode).lower()}", "--schedule", "2->3", "--width", 1, *TINY,
        "--out", run,
    )  # fmt: skip
    assert code == 0
    result = only_json(out)
    architecture = load_checkpoint(run / "model.safetensors").architecture
    assert (architecture.family, architecture.channels, architecture.latent_size) == (student, (1, 2), 8)
    assert (architecture.norm, architecture.num_clusters) == ("batch", None)
    kinds = {"k1", "kx", "k2"} if re_encode else {"k1", "kx"}
    losses = LOSSES["cvgad"] if student == "cvgad" else LOSSES["ede"] - ({"s_enc"} if student == "ed" else set())
    assert losses_of(run) == [losses | kinds, {f"teacher_{loss}" for loss in LOSSES[teacher]} | kinds]
    trained = load_checkpoint(run / "teacher.safetensors").architecture
    assert vars(trained) == vars(load_checkpoint(families[teacher] / "model.safetensors").architecture)
    evaluation = only_json(cli("evaluate", "--model", run, "--json")[1])
    assert evaluation["auc"] == result["auc"]
    assert -1 <= evaluation["score_spearman"] <= 1
    again = only_json(cli("distill", "--resume", run, "--json")[1])
    assert again == result


def test_a_student_of_another_family_can_have_another_objective(
    cli: Cli, families: dict[str, Path], tmp_path: Path
) -> None:
    settings = ["--set", "distillation.student.family=ede", "--set", "distillation.student.objective.w_con=3"]
    out = ["--schedule", "2", "--width", 1, *TINY, "--out", tmp_path / "s"]
    assert cli("distill", "--teacher", families["cvgad"], "--set", "model.family=cvgad", *settings, *out)[0] == 0
    resolved = load_recipe(str(tmp_path / "s" / "recipe.yaml"))
    assert resolved.student_objective().w_con == 3
    assert type(resolved.objective) is type(load_recipe("cvgad").objective)


def test_profile_export_and_score(cli: Cli, families: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.onnx"
    report = only_json(cli("export", "--model", families["cvgad"], "-o", file, "--json")[1])
    assert report["parity_max_rel"] <= 1e-4
    assert Detector(file).metadata["num_clusters"] == "3"

    profiled = only_json(cli("profile", "--model", file, "--against", families["ede"], "--json")[1])
    detector, teacher = profiled["models"]
    assert (detector["family"], teacher["family"]) == ("cvgad", "ede")
    assert detector["size_bytes"] == file.stat().st_size
    encoder = 16 * 2 + 4 + 16 * 8 + 8 + 16 * 4 * 8  # two blocks of 2 and 4 channels, and μ of 8
    assert (detector["num_params"], teacher["num_params"]) == (2 * encoder - 4 - 8 + 12, 3 * encoder)
    assert profiled["ratios"]["params"] == teacher["num_params"] / detector["num_params"]

    code, out, _ = cli("score", file, photos / "test", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(lines) == 6
    assert all(line["score"] >= 0 for line in lines)
    assert all(line["is_anomaly"] == (line["score"] > report["threshold"]) for line in lines)
    of_run = only_json(cli("evaluate", "--model", families["cvgad"], "--json")[1])
    source = load_checkpoint(families["cvgad"] / "model.safetensors").data.source
    of_file = only_json(cli("evaluate", "--model", file, "--data", source, "--normal", 0, "--json")[1])
    assert of_file["auc"] == pytest.approx(of_run["auc"], abs=0.02)


@pytest.mark.parametrize("family", ["cvgad", "ede"])
def test_pictures(cli: Cli, families: dict[str, Path], tmp_path: Path, family: str) -> None:
    code, out, err = cli("pictures", "--model", families[family], "--out", tmp_path / "p", "--json")
    made = only_json(out)
    assert (code, err) == (0, "")
    names = {"reconstructions", "neighbours"} | ({"clusters"} if family == "cvgad" else set())
    assert {name for name, path in made.items() if path is not None} == names
    assert {path.name for path in (tmp_path / "p").iterdir()} == {f"{name}.png" for name in names}
    for name in names:
        with Image.open(made[name]) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert 300 < picture.size[0] < 3000
            assert 150 < picture.size[1] < 2000
            assert np.ptp(np.asarray(picture.convert("L"))) > 200
    lines = cli("pictures", "--model", families[family], "--out", tmp_path / "p")[1].splitlines()
    assert lines == [path for path in made.values() if path is not None]
