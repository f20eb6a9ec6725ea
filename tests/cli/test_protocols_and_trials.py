"""Protocols and trials by the commands: images, random splits and reports."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, assert_refused, only_json

from kdgan_compress.data import load_split
from kdgan_compress.evaluation.baselines import BASELINES
from kdgan_compress.experiment.checkpoint import load_checkpoint

SMALL = ("--width", 1, "--image-size", 16, "--latent", 8, "--batch-size", 8, "--epochs", 1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30, 20 and 10 images of three classes, half of each in either official split."""
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    images = np.random.default_rng(0).integers(0, 150, (60, 16, 16)) + 50 * labels[:, None, None]
    x, path = images.astype(np.uint8), tmp_path_factory.mktemp("pool") / "pool.npz"
    np.savez(path, x_train=x[::2], y_train=labels[::2], x_test=x[1::2], y_test=labels[1::2])
    return path


@pytest.fixture(scope="module")
def coil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with COIL-100 of 12 objects of 10 views."""
    root = tmp_path_factory.mktemp("root")
    images = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)
    np.savez(root / "coil100.npz", images=images, object=np.repeat(range(1, 13), 10), angle=np.tile(range(10), 12))
    return root


@pytest.mark.parametrize(
    ("options", "num_train", "num_normal", "num_novel", "name"),
    [
        # 30 images in folds of 6: three train. Two of five others are novel at 0.25 of 6 + 2.
        (
            ["gpnd-5fold", "--normal", 0, "--trial", 7, "--outliers", 0.25],
            18,
            6,
            2,
            "pool-0-gpnd-5fold-outliers25-trial7",
        ),
        # 80 % of the 20 and of the 10; the other 4 and 2 are tested with all 30.
        (["miso-8020", "--novel", 0, "--trial", 1], 24, 6, 30, "pool-not-0-miso-8020-trial1"),
        # 80 % of 20; 4 and as many novel ones are tested.
        (["ocgan-p1", "--normal", 1], 16, 4, 4, "pool-1-ocgan-p1"),
        # The official splits: 15 train, all 30 of the other one are tested.
        (["simo", "--normal", 0], 15, 15, 15, "pool-0"),
    ],
    ids=str,
)
def test_protocols(
    cli: Cli,
    pool: Path,
    tmp_path: Path,
    options: list[object],
    num_train: int,
    num_normal: int,
    num_novel: int,
    name: str,
) -> None:
    run = tmp_path / "run"
    code, out, _ = cli("train", "--data", f"npz:{pool}", "--protocol", *options, *SMALL, "--out", run, "--json")
    assert code == 0
    assert only_json(out)["num_images"] == num_train
    evaluation = only_json(cli("evaluate", "--model", run, "--json")[1])
    assert (evaluation["num_normal"], evaluation["num_novel"], evaluation["data"]) == (num_normal, num_novel, name)
    assert evaluation["auc"] == only_json(out)["auc"]
    checkpoint = load_checkpoint(run / "model.safetensors")
    assert checkpoint.provenance["split_sha256"] == load_split(checkpoint.data, 16, 1).split_sha256
    distil = ["distill", "--teacher", run, "--schedule", 1, "--width", 1, "--epochs", 1, "--out", tmp_path / "s"]
    assert cli(*distil, "--data", f"npz:{pool}")[0] == 0
    assert load_checkpoint(tmp_path / "s" / "model.safetensors").data == checkpoint.data


def test_coil100(cli: Cli, coil: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", ["--num-categories", 3, "--outliers", 0.4, "--trial", 2]
    code, out, _ = cli(
        "train", "--recipe", "cvgad-coil100", "--data-root", coil, *options, *SMALL, "--out", run, "--json"
    )
    assert code == 0
    assert only_json(out)["num_images"] == 3 * 8
    evaluation = only_json(cli("evaluate", "--model", run, "--json")[1])
    assert (evaluation["num_normal"], evaluation["num_novel"]) == (3 * 2, 4)
    assert evaluation["data"] == "coil100-3-categories-outliers40-trial2"
    checkpoint = load_checkpoint(run / "model.safetensors")
    assert (checkpoint.architecture.family, checkpoint.architecture.image_channels) == ("cvgad", 3)
    moved = tmp_path / "moved"
    coil.rename(moved)
    try:
        assert_refused(cli("evaluate", "--model", run), "coil100.npz")
        assert only_json(cli("evaluate", "--model", run, "--data-root", moved, "--json")[1]) == evaluation
        assert cli("pictures", "--model", run, "--data-root", moved)[0] == 0
    finally:
        moved.rename(coil)


def test_a_pool_that_was_moved_keeps_its_novel_class(cli: Cli, pool: Path, tmp_path: Path) -> None:
    miso = ["--protocol", "miso-8020", "--novel", 2]
    assert cli("train", "--data", f"npz:{pool}", *miso, *SMALL, "--out", tmp_path / "run")[0] == 0
    assert cli("evaluate", "--model", tmp_path / "run", "--data", f"npz:{pool}")[0] == 0


def settings(pool: Path, **changes: object) -> list[object]:
    values = {
        "data.source": f"npz:{pool}", "data.protocol": "gpnd-5fold", "data.normal": 0, "model.width": 1,
        "model.image_size": 16, "model.latent_size": 8, "training.batch_size": 8, "training.epochs": 1,
        "distillation.training.epochs": 1, "distillation.schedule": 1,
    }  # fmt: skip
    return [part for key, value in (values | changes).items() for part in ("--set", f"{key}={value}")]


def test_trials_end_to_end(cli: Cli, pool: Path, tmp_path: Path) -> None:
    call = ["trials", *settings(pool), "--out", tmp_path / "t", "--num-trials", 2]
    code, out, err = cli(*call, "--json")
    report = only_json(out)
    assert code == 0
    assert report.keys() == {"data", "machine", "auc", "best_f1", "trials"}
    assert report["data"] == "pool-0-gpnd-5fold-trial0"
    assert [line.split(":")[0] for line in err.splitlines()] == ["trial 0", "trial 1"]
    for trial in report["trials"]:
        assert trial.keys() == {"trial", "run", "seconds", "figures", "baseline_bytes"}
        evaluation = only_json(cli("evaluate", "--model", trial["run"], "--json")[1])
        assert trial["figures"]["model"] == {"auc": evaluation["auc"], "best_f1": evaluation["best_f1"]}
    values = [trial["figures"]["model"]["auc"] for trial in report["trials"]]
    summary = report["auc"]["model"]
    assert summary.keys() == {"mean", "std", "ci95", "num_trials"}
    assert (summary["mean"], summary["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert json.loads((tmp_path / "t" / "trials.json").read_text()) == report | {
        "trials": [trial | {"run": Path(trial["run"]).name} for trial in report["trials"]]
    }

    models = [Path(trial["run"]) / "model.safetensors" for trial in report["trials"]]
    before = [path.read_bytes() for path in models]
    code, out, _ = cli(*call, "--student", "--json")
    again = only_json(out)
    assert [path.read_bytes() for path in models] == before
    assert again["auc"]["model"] == summary
    assert set(again["auc"]) == {"model", "student", *BASELINES}
    assert (tmp_path / "t" / "trial-1-student" / "model.safetensors").exists()

    code, out, _ = cli(*call)
    assert code == 0
    (row,) = [line for line in out.splitlines() if line.startswith("model")]
    numbers = [float(word) for word in row.replace("%", "").split()[1:]]
    assert numbers[:3] == pytest.approx([100 * summary[key] for key in ("mean", "std", "ci95")], abs=0.006)
    assert "an oracle" in out

    other = settings(pool, **{"training.batch_size": 4})
    assert_refused(cli("trials", *other, "--out", tmp_path / "t"), "need one recipe", "--out")
    assert_refused(cli(*call, "--num-trials", 0), "at least 1")
    assert_refused(cli(*call, "--jobs", 0), "at least 1")


def test_one_trial_of_cvgad_has_no_spread(cli: Cli, coil: Path, tmp_path: Path) -> None:
    small = settings(coil, **{"data.source": "coil100", "data.protocol": "coil100", "model.family": "cvgad"})
    small = [part for part in small if part != "data.normal=0"]
    small = [part for part, after in zip(small, [*small[1:], ""], strict=True) if not part == after == "--set"]
    code, out, _ = cli(
        "trials", "--recipe", "cvgad-coil100", *small, "--data-root", coil, "--num-trials", 1, "--out", tmp_path / "t"
    )
    assert code == 0
    (row,) = [line for line in out.splitlines() if line.startswith("model")]
    assert row.count("–") == 4
    assert load_checkpoint(tmp_path / "t" / "trial-0" / "model.safetensors").architecture.family == "cvgad"
