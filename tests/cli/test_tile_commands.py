"""From photos larger than the network to heat maps: train, distil and evaluate by tiles."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, assert_refused, only_json
from PIL import Image

from kdgan_compress.api.train import train
from kdgan_compress.evaluation.metrics import detection_metrics
from kdgan_compress.evaluation.score_file import load_scores
from kdgan_compress.experiment.recipe import load_recipe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part at the same place in 36 good photos of 96×72 pixels, and in 8 with a bright spot and its mask."""
    folder = tmp_path_factory.mktemp("photos") / "part"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:72, :96]
    part = 120 + 60 * np.sin(x / 7) * np.cos(y / 5)
    for number in range(44):
        pixels = part + rng.normal(0, 4, size=part.shape)
        name = f"train/good/{number}.png" if number < 30 else f"test/good/{number}.png"
        if number >= 36:
            top, left = int(rng.integers(8, 54)), int(rng.integers(8, 78))
            pixels[top : top + 10, left : left + 10] += 90
            mask = np.zeros(part.shape, dtype=np.uint8)
            mask[top : top + 10, left : left + 10] = 255
            name = f"test/spot/{number}.png"
            save(folder / f"ground_truth/spot/{number}_mask.png", mask)
        save(folder / name, pixels)
    return folder


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    changes = {
        "data": {"source": f"folder:{photos}", "tiles": {"photo_size": 96, "num_crops": 400}},
        "model": {"width": 2},
        "training": {"num_images": 800},
    }
    train(load_recipe().replace(changes), run)
    return run


def test_what_is_chosen_is_printed(cli: Cli, photos: Path, tmp_path: Path) -> None:
    command = ("train", "--data", f"folder:{photos}", "--width", 1, "--set", "data.tiles.num_crops=32", "--epochs", 1)
    code, out, err = cli(*command, "--photo-size", 96, "--tile", 32, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert "photos: about 72×96 pixels, brought to 64×96 (as given); 3×5 tiles of 32×32 per photo" in err
    assert only_json(out)["score"].startswith("one Gaussian per grid position (held-out log-likelihood +")


def test_defects_are_found_and_located(cli: Cli, teacher: Path, tmp_path: Path) -> None:
    code, out, _ = cli("evaluate", "--model", teacher, "--maps", tmp_path / "maps", "--json")
    found = only_json(out)
    assert code == 0
    assert found["auc"] > 0.95
    assert found["auc"] == json.loads((teacher / "result.json").read_text())["auc"]
    assert found["pixel_auc"] > 0.85
    assert 0.3 < found["aupro"] <= 1
    assert found["num_masks"] == 8
    assert found["fpr"] < 0.4
    files = sorted(str(path.relative_to(tmp_path / "maps")) for path in (tmp_path / "maps").rglob("*.*"))
    assert len(files) == 15
    assert files[0] == "cases.png"
    assert "spot/36.map.jpg" in files


def test_a_student_is_scored_by_its_own_statistics(cli: Cli, teacher: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    code, out, err = cli(
        *("distill", "--teacher", teacher, "--width", 1, "--schedule", "1", "--norm", "instance", "--num-images", 400),
        *("--out", student, "--json"),
    )
    assert code == 0, err
    scores = load_scores(student / "scores.npz")
    assert scores is not None
    assert len(scores.calibration_scores) == 30
    assert only_json(out)["auc"] == detection_metrics(scores.test_scores, scores.test_is_anomalous).auc
    code, out, _ = cli("evaluate", "--model", student, "--json")
    assert code == 0
    assert only_json(out)["auc_gap"] is not None


def test_an_interrupted_run_keeps_its_tiles(cli: Cli, teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(teacher, run)
    (run / "result.json").unlink()
    before = (run / "model.safetensors").read_bytes()
    code, _, err = cli("train", "--resume", run, "--json")
    assert code == 0, err
    assert (run / "model.safetensors").read_bytes() == before


def test_whole_photos_stay_possible(cli: Cli, photos: Path, tmp_path: Path) -> None:
    code, _, err = cli(
        *("train", "--data", f"folder:{photos}", "--tile", "off", "--width", 1, "--num-images", 60),
        *("--out", tmp_path / "run", "--json"),
    )
    assert code == 0, err
    assert "tiles" not in err
    code, out, _ = cli("evaluate", "--model", tmp_path / "run", "--json")
    assert only_json(out)["pixel_auc"] is None
    assert_refused(cli("evaluate", "--model", tmp_path / "run", "--maps", tmp_path / "maps"), "need a model of tiles")


def test_what_does_not_fit_is_refused(cli: Cli, photos: Path, teacher: Path, tmp_path: Path) -> None:
    command = ("train", "--data", f"folder:{photos}", "--width", 1, "--out", tmp_path / "run")
    assert_refused(cli(*command, "--photo-size", 300), "must be at least", "got 72×96", "--photo-size")
    assert_refused(cli(*command, "--photo-size", 96, "--set", "data.tiles.stride=12"), "must divide the tile's side")
    assert_refused(cli(*command, "--set", "score.rank=0"), "score.rank must be 1 or more")
    assert_refused(cli("pictures", "--model", teacher), "evaluate --maps")
    assert not (tmp_path / "run").exists()


def test_one_file_scores_photos_of_any_size(cli: Cli, teacher: Path, photos: Path, tmp_path: Path) -> None:
    detector = tmp_path / "part.onnx"
    code, out, err = cli("export", "--model", teacher, "-o", detector, "--json")
    assert code == 0, err
    assert only_json(out)["parity_max_rel"] <= 1e-4
    code, out, _ = cli("verify", detector, "--against", teacher, "--data", f"folder:{photos}", "--json")
    found = only_json(out)
    assert (code, found["ok"], found["frame"], found["map_unit"]) == (0, True, [64, 96], "score")
    assert abs(found["auc_diff"]) < 1e-9
    assert found["golden_map_max_rel"] == 0
    code, out, _ = cli("verify", detector, "--data", f"folder:{photos}", "--json")
    assert only_json(out)["auc"] == found["auc"]
    golden = tmp_path / "golden.npz"
    arrays = dict(np.load(golden))
    np.savez(golden, **arrays | {"map_0": arrays["map_0"] * 1.01})
    code, out, _ = cli("verify", detector, "--json")
    assert (code, only_json(out)["failed"]) == (1, ["golden maps differ by 0.0099, more than 0.0001"])


def test_a_lower_rank_says_what_it_loses(cli: Cli, photos: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "run"
    small = ("--photo-size", 96, "--width", 1, "--num-images", 60, "--set", "score.positions=per-position")
    assert cli("train", "--data", f"folder:{photos}", *small, "--out", teacher)[0] == 0
    for rank, precision in ((8, "fp32"), (4, "int8")):
        detector = tmp_path / str(rank) / "part.onnx"
        command = ("export", "--model", teacher, "-o", detector, "--rank", rank, "--precision", precision)
        code, out, err = cli(*command)
        assert code == 0, err
        assert "compared with the model's full rank: AUC" in out
        assert f"| rank {rank}, compared with the model's | AUC" in (detector.parent / "card.md").read_text()
        code, out, _ = cli("verify", detector, "--against", teacher, "--json")
        assert (code, only_json(out)["weights_match"]) == (0, True)
    assert_refused(cli("export", "--model", teacher, "--reconstruction"), "have no reconstruction")
    assert_refused(cli("export", "--model", teacher, "--rank", 0), "The rank must be 1 to")
