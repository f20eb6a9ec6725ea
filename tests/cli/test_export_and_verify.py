"""`export` with each of its options, and `verify` of what it wrote, whole and spoilt."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from command_line import Cli, assert_refused, only_json
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score
from tile_detector import write_tile_detector
from traces import trace_once

from kdgan_compress.cli.main import run
from kdgan_compress.data import DataSettings, load_split
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.export import detector_file
from kdgan_compress.export.graph import quantize
from kdgan_compress.export.packaging import web
from kdgan_compress.export.precisions import PRECISIONS, Precision
from kdgan_compress.export.validation.golden import write_golden
from kdgan_compress.runtime import Detector

KEYS = {"path", "precision", "size_bytes", "opset", "threshold", "parity_max_rel"}
MORE_KEYS = {
    "threshold_rule", "rewrites", "latent_lost", "agreement", "rank_agreement", "auc", "usability", "files", "page",
}  # fmt: skip
SIDE = 32


@pytest.fixture(scope="module", autouse=True)
def _one_trace_a_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(detector_file, "trace", trace_once)
        yield


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``npz``, but enough to calibrate on, and of the network's size: nothing is resized."""
    path = tmp_path_factory.mktemp("larger") / "larger.npz"
    rng = np.random.default_rng(3)
    ramp = np.linspace(0, 255, SIDE)

    def images(normal: int, novel: int) -> tuple[np.ndarray, np.ndarray]:
        clean = ramp[None, None] + rng.normal(0, 8, (normal, SIDE, SIDE)) + rng.normal(0, 30, (normal, 1, 1))
        noisy = ramp[None, None] + rng.normal(0, 60, (novel, SIDE, SIDE)) + rng.normal(0, 30, (novel, 1, 1))
        pixels = np.clip(np.concatenate([clean, noisy]), 0, 255).astype(np.uint8)
        return pixels, np.repeat([0, 1], [normal, novel])

    (x_train, y_train), (x_test, y_test) = images(60, 0), images(200, 200)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's detector with its golden vectors, to be copied."""
    folder = tmp_path_factory.mktemp("exported")
    assert run(["export", "--model", str(runs["student"]), "-o", str(folder / "student.onnx")]) == 0
    return folder


@pytest.fixture
def fresh(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return shutil.copytree(exported, tmp_path / "fresh") / "student.onnx"


def test_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Test images (N, H, W, 1) and whether each is novel."""
    with np.load(path) as arrays:
        return arrays["x_test"][..., None], arrays["y_test"] == 1


test_images.__test__ = False  # type: ignore[attr-defined]


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def signature(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Types and shapes of a file's inputs and outputs, as read by ONNX Runtime."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return tuple(
        {one.name: (one.type, one.shape) for one in of} for of in (session.get_inputs(), session.get_outputs())
    )  # type: ignore[return-value]


# Help.


@pytest.mark.parametrize("command", ["export", "profile", "verify", "score"])
def test_help_fits_one_screen(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert len(out.splitlines()) <= 40
    assert max(map(len, out.splitlines())) <= 80


# Export.


def test_the_result_of_a_default_export(
    cli: Cli, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("export", "--model", runs["student"], "--json")
    told = only_json(out)
    assert (code, err) == (0, "")
    assert told.keys() == KEYS | MORE_KEYS
    assert Path(told["path"]) == Path("exports/student/student.onnx")
    folder = Path(told["path"]).parent
    assert names_in(tmp_path) == {
        f"exports/student/{name}" for name in ("student.onnx", "card.md", "golden.npz", "golden.json")
    }
    assert {Path(file) for file in told["files"]} == set(folder.iterdir())
    assert Path(told["files"][-1]) == Path(told["path"])
    checkpoint = load_checkpoint(runs["student"] / "model.safetensors")
    (opset,) = [each.version for each in onnx.load(told["path"]).opset_import if each.domain == ""]
    assert told["opset"] == opset == 18
    assert told["size_bytes"] == Path(told["path"]).stat().st_size
    assert (told["threshold"], told["threshold_rule"]) == (checkpoint.threshold, checkpoint.threshold_rule)
    assert told["auc"] == json.loads((runs["student"] / "result.json").read_text())["auc"]
    assert 0 <= told["parity_max_rel"] <= 1e-4
    nothing = ("agreement", "rank_agreement", "latent_lost", "usability", "page")
    assert [told[key] for key in nothing] == [None] * len(nothing)
    card = (folder / "card.md").read_text()
    assert f"{told['size_bytes']:,} bytes" in card
    assert f"{100 * told['auc']:.2f} % on the test split" in card
    assert "distilled from the teacher `teacher`" in card
    assert "## Latency\n\nNot measured." in card
    golden = json.loads((folder / "golden.json").read_text())
    assert (golden["detector"], golden["threshold"]) == ("student.onnx", checkpoint.threshold)
    assert cli("verify", told["path"])[0] == 0


def test_the_text_of_an_export(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    code, out, _ = cli("export", "--model", runs["student"], "-o", tmp_path / "d.onnx")
    size = (tmp_path / "d.onnx").stat().st_size
    assert code == 0
    assert out.startswith(f"{tmp_path / 'd.onnx'}: {size:,} bytes, fp32, opset 18, threshold ")
    assert "also written: golden.npz, golden.json, card.md\n" in out


def test_profile_measures_the_file_and_fills_its_card(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    assert cli("export", "--model", runs["student"], "-o", tmp_path / "d.onnx")[0] == 0
    command = ["profile", "--model", runs["student"], "--card", tmp_path / "card.md"]
    code, out, err = cli(*command, "--json")
    told = only_json(out)
    assert (code, err) == (0, "")
    latency = {row["name"]: row["latency_us"] for row in told["models"]} | {"an identity graph": told["identity_us"]}
    assert list(latency) == ["this file", "its teacher in fp32", "an identity graph"]
    assert all(0 < each["p10"] <= each["median"] for each in latency.values())
    assert latency["an identity graph"]["median"] < latency["this file"]["median"]
    assert told["slower_than_fp32"] is None
    card = (tmp_path / "card.md").read_text()
    for name, each in latency.items():
        assert f"| {name} | {each['median']:.1f} | {each['p10']:.1f} |" in card
    code, out, _ = cli(*command)
    assert code == 0
    assert re.search(r"^ +[\d.]+ µs  this file +1\.00 times", out, re.MULTILINE)
    assert cli("verify", tmp_path / "d.onnx")[0] == 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_is_held_against_fp32(
    cli: Cli, runs: dict[str, Path], larger: Path, tmp_path: Path, precision: str
) -> None:
    single, lower = tmp_path / "fp32" / "s.onnx", tmp_path / precision / "s.onnx"
    data = ["--data", f"npz:{larger}"]
    model = ["export", "--model", runs["student"], "--json"]
    by_fp32 = only_json(cli(*model, "-o", single, *data, "--quantile", 0.99)[1])
    code, out, err = cli(*model, "-o", lower, *data, "--precision", precision)
    assert (code, err) == (0, "")
    told = only_json(out)
    assert told["precision"] == precision == Detector(lower).metadata["precision"]
    assert told["size_bytes"] < by_fp32["size_bytes"] * (0.75 if precision == "fp16" else 0.9)
    kinds = {tensor.data_type for tensor in onnx.load(lower).graph.initializer}
    assert (onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT16) in kinds

    images, novel = test_images(larger)
    ours, theirs = (Detector(path).score(images) for path in (lower, single))
    found = told["agreement"]
    assert found["auc"] == told["auc"] == pytest.approx(roc_auc_score(novel, ours.score), abs=1e-9)
    assert found["auc_diff"] == pytest.approx(found["auc"] - roc_auc_score(novel, theirs.score), abs=1e-9)
    assert found["label_agreement"] == pytest.approx(np.mean(ours.is_anomaly == theirs.is_anomaly))
    assert found["num_images"] == len(images) == 400
    assert 0.9 < found["spearman"] <= 1
    normals = load_split(DataSettings(f"npz:{larger}", "0"), SIDE, 1).calibration.permute(0, 2, 3, 1).numpy()
    by_numpy = np.quantile(Detector(lower).score(normals).score, 0.99)
    assert told["threshold"] == pytest.approx(by_numpy, rel=1e-5)
    assert told["threshold_rule"] == f"0.99 quantile of {len(normals)} normal images' scores"
    command = ["profile", "--model", runs["student"], "--card", lower.with_name("card.md"), "--json"]
    measured = only_json(cli(*command)[1])
    latency = {row["name"]: row["latency_us"] for row in measured["models"]}
    assert list(latency)[:2] == ["this file", "the same in fp32"]
    ratio = latency["this file"]["median"] / latency["the same in fp32"]["median"]
    assert measured["slower_than_fp32"] == (ratio > 1.05)
    assert cli("verify", lower)[0] == 0
    text = cli(*model[:-1], "-o", lower, *data, "--precision", precision)[1]
    assert "% of decisions equal" in text
    assert "compared with fp32: AUC " in text


def test_a_new_precision_is_one_row(
    cli: Cli, runs: dict[str, Path], larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halve_mantissa(model: Any, _: Any) -> Any:
        for value in model.graph.initializers.values():
            array = value.const_value.numpy()
            if array.dtype == np.float32 and array.ndim > 1:
                value.const_value = onnx_ir.tensor(array.astype(np.float16).astype(np.float32), name=value.name)
        return model

    monkeypatch.setitem(PRECISIONS, "fp16-weights", Precision(halve_mantissa))
    file = tmp_path / "s.onnx"
    options = ["--precision", "fp16-weights", "--data", f"npz:{larger}", "--json"]
    told = only_json(cli("export", "--model", runs["student"], "-o", file, *options)[1])
    assert (told["precision"], told["agreement"]["num_images"]) == ("fp16-weights", 400)
    assert "| precision | fp16-weights |" in (tmp_path / "card.md").read_text()
    assert cli("verify", file, "--against", runs["student"])[0] == 0
    code, out, _ = cli("profile", "--model", runs["student"], "--all", "--json")
    rows = only_json(out)["models"]
    assert code == 0
    assert [row["variant"] for row in rows if row["name"] == "student"][-1] == "fp16-weights"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_no_file_of_a_precision_that_says_something_else(
    cli: Cli, runs: dict[str, Path], larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    def spoilt(model: Any, *more: Any) -> Any:
        made = convert(model, *more)
        for value in (model if made is None else made).graph.initializers.values():
            numbers = value.const_value.numpy()
            if numbers.size > 100:
                shuffled = np.random.default_rng(0).permutation(numbers.ravel()).reshape(numbers.shape)
                value.const_value = onnx_ir.tensor(shuffled, name=value.name)
        return made

    convert = getattr(quantize, f"to_{precision}")
    monkeypatch.setattr(quantize, f"to_{precision}", spoilt)
    result = cli(
        "export", "--model", runs["student"], "-o", tmp_path / "s.onnx", "--data", f"npz:{larger}",
        "--precision", precision, "--web", tmp_path / "page",
    )  # fmt: skip
    assert_refused(result, f"{precision} must keep the AUC of fp32 to 0.005", "400 images", "No file was written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8"], ["at least 32 normal images", "24"]),
        (["--opset", "17"], ["opset 17", "no file was written"]),
        (["--opset", "99"], ["--opset"]),
        (["--rewrites", "nonsense"], ["A rewrite must be one of batch-norm", "nonsense"]),
        (["--rewrites", "batch-norm,"], ["A rewrite must be one of"]),
        (["--latent-rank", "0"], ["latent rank must be 1 to 15", "got 0"]),
        (["--latent-rank", "16"], ["latent rank must be 1 to 15", "got 16"]),
        (["--quantile", "1"], ["between 0 and 1", "1.0"]),
        (["--input-size", "0x64"], ["at least 1×1"]),
        (["--data", "npz:nowhere.npz", "--quantile", "0.9"], ["nowhere.npz"]),
        (["--web", "page", "--ort-web", "nowhere"], ["onnxruntime-web", "nowhere"]),
    ],
)
def test_what_is_refused_leaves_nothing(
    cli: Cli, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str],
    words: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = runs["norm" if "--latent-rank" in options else "student"]
    assert_refused(cli("export", "--model", model, *options), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--best-f1"],
        ["--best-f1", "--quantile", "0.9", "--data", "sample"],
        ["--input-size", "48"],
        ["--input-size", "48x-3"],
        ["--batch", "2"],
        ["--input", "bytes"],
        ["--precision", "int4"],
    ],
)
def test_wrong_usage(cli: Cli, runs: dict[str, Path], tmp_path: Path, options: list[str]) -> None:
    code, out, err = cli("export", "--model", runs["student"], "-o", tmp_path / "s.onnx", *options)
    assert (code, out) == (2, "")
    assert "Error" in err
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out, words in (
        (tmp_path / "file" / "s.onnx", ["writable"]),
        (tmp_path / "s.ONNX", [".onnx"]),
        (tmp_path / "s.ort", [".onnx"]),
    ):
        assert_refused(cli("export", "--model", runs["student"], "-o", out), *words)
    (tmp_path / "s.onnx").mkdir()
    assert_refused(cli("export", "--model", runs["student"], "-o", tmp_path / "s.onnx"), "writable")


def test_a_model_that_is_none(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(runs["student"] / "recipe.yaml", unfinished)
    out = ["-o", tmp_path / "s.onnx"]
    assert_refused(cli("export", "--model", unfinished, *out), "finished", "--resume")
    assert_refused(cli("export", "--model", tmp_path / "none", *out), "none")
    assert_refused(cli("export", "--model", runs["detector"], *out), "damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


def test_the_interface_asked_for(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    plain, other = tmp_path / "plain" / "s.onnx", tmp_path / "other" / "s.onnx"
    model = ["export", "--model", runs["student"], "-o"]
    assert cli(*model, plain, "--reconstruction", "--anomaly-map")[0] == 0
    inputs, outputs = signature(plain)
    assert inputs == {"image": ("tensor(uint8)", ["N", "H", "W", 1])}
    assert outputs == {
        "score": ("tensor(float)", ["N"]),
        "is_anomaly": ("tensor(bool)", ["N"]),
        "reconstruction": ("tensor(uint8)", ["N", SIDE, SIDE, 1]),
        "anomaly_map": ("tensor(float)", ["N", SIDE, SIDE]),
    }
    options = ["--input", "float", "--input-size", "48x64", "--batch", "1", "--anomaly-map"]
    assert cli(*model, other, *options)[0] == 0
    inputs, outputs = signature(other)
    assert inputs == {"image": ("tensor(float)", [1, 1, 48, 64])}
    assert outputs.keys() == {"score", "is_anomaly", "anomaly_map"}
    assert outputs["score"] == ("tensor(float)", [1])
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 1), dtype=np.uint8)
    ours, theirs = (Detector(path).score(images, maps=True) for path in (other, plain))
    np.testing.assert_allclose(ours.score, theirs.score, rtol=1e-4)
    np.testing.assert_allclose(ours.anomaly_map, theirs.anomaly_map, atol=1e-4)
    exact = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 1), dtype=np.uint8)
    maps = Detector(plain).score(exact, maps=True)
    by_hand = np.abs(exact.astype(float) - maps.reconstruction.astype(float))[..., 0] / 255
    np.testing.assert_allclose(maps.anomaly_map, by_hand, atol=0.51 / 255)
    assert cli("verify", plain, "--against", runs["student"])[0] == 0
    assert cli("verify", other, "--against", runs["student"])[0] == 0


def test_only_what_was_asked_for_is_given(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    assert cli("export", "--model", runs["student"], "-o", tmp_path / "s.onnx", "--reconstruction")[0] == 0
    assert signature(tmp_path / "s.onnx")[1].keys() == {"score", "is_anomaly", "reconstruction"}


def test_a_threshold_by_a_quantile_of_other_images(
    cli: Cli, runs: dict[str, Path], larger: Path, tmp_path: Path
) -> None:
    file = tmp_path / "s.onnx"
    model = ["export", "--model", runs["student"], "-o", file, "--json", "--data", f"npz:{larger}"]
    normals = load_split(DataSettings(f"npz:{larger}", "0"), SIDE, 1).calibration.permute(0, 2, 3, 1).numpy()
    found = {}
    for quantile in (0.5, 0.9):
        told = only_json(cli(*model, "--quantile", quantile)[1])
        found[quantile] = told["threshold"]
        scores = Detector(file).score(normals).score
        assert told["threshold"] == pytest.approx(np.quantile(scores, quantile), rel=1e-5)
        assert told["threshold_rule"] == f"{quantile:g} quantile of {len(normals)} normal images' scores"
        assert Detector(file).threshold == told["threshold"]
        assert Detector(file).score(normals).is_anomaly.mean() == pytest.approx(1 - quantile, abs=0.1)
    assert found[0.5] < found[0.9]


def test_a_threshold_by_the_best_f1(cli: Cli, runs: dict[str, Path], npz: Path, larger: Path, tmp_path: Path) -> None:
    for data in (larger, npz):
        file = tmp_path / data.stem / "s.onnx"
        code, out, _ = cli(
            "export", "--model", runs["student"], "-o", file, "--best-f1", "--data", f"npz:{data}", "--json"
        )
        images, novel = test_images(data)
        scores = Detector(file).score(images)
        precision, recall, _ = precision_recall_curve(novel, scores.score)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()
        assert code == 0
        assert only_json(out)["threshold_rule"] == f"best F1 on {len(images)} labelled images"
        assert f1_score(novel, scores.is_anomaly) == pytest.approx(best, abs=0.02 if data == npz else 1e-9)


def test_images_without_labels_have_no_best_f1(cli: Cli, runs: dict[str, Path], larger: Path, tmp_path: Path) -> None:
    with np.load(larger) as arrays:
        known = arrays["y_test"] == 0
        np.savez(
            tmp_path / "normal.npz", x_train=arrays["x_train"], y_train=arrays["y_train"],
            x_test=arrays["x_test"][known], y_test=arrays["y_test"][known],
        )  # fmt: skip
    data = ["--data", f"npz:{tmp_path / 'normal.npz'}", "-o", tmp_path / "s.onnx"]
    assert_refused(cli("export", "--model", runs["student"], *data, "--best-f1"), "labelled images", "200 and 0")
    assert [path.name for path in tmp_path.iterdir()] == ["normal.npz"]
    told = only_json(cli("export", "--model", runs["student"], *data, "--precision", "fp16", "--json")[1])
    assert (told["auc"], told["agreement"]["auc"], told["agreement"]["auc_diff"]) == (None, None, None)
    assert told["agreement"]["label_agreement"] >= 0.99
    assert "not measured: no labelled images" in (tmp_path / "card.md").read_text()


def test_rewrites_by_name(cli: Cli, runs: dict[str, Path], exported: Path, tmp_path: Path) -> None:
    told, operators = {}, {}
    for names in ("none", "batch-norm", "batch-norm,latent"):
        file = tmp_path / names / "s.onnx"
        told[names] = only_json(cli("export", "--model", runs["student"], "-o", file, "--rewrites", names, "--json")[1])
        operators[names] = [node.op_type for node in onnx.load(file).graph.node]
        assert cli("verify", file, "--against", runs["student"])[0] == 0
    assert told["none"]["rewrites"] == {}
    assert told["batch-norm"]["rewrites"].keys() == {"batch-norm"}
    assert told["batch-norm"]["rewrites"]["batch-norm"] == operators["none"].count("BatchNormalization") > 0
    assert "BatchNormalization" not in operators["batch-norm"]
    assert told["batch-norm,latent"]["rewrites"].keys() == {"batch-norm", "latent"}
    default = {node.op_type for node in onnx.load(exported / "student.onnx").graph.node}
    assert "BatchNormalization" not in default


def test_a_shorter_latent(cli: Cli, runs: dict[str, Path], larger: Path, tmp_path: Path) -> None:
    model = ["export", "--model", runs["norm"], "--data", f"npz:{larger}", "--json", "--latent-rank"]
    code, out, err = cli(*model, 15, "-o", tmp_path / "s.onnx")
    assert (code, err) == (0, "")
    told = only_json(out)
    assert 0 <= told["latent_lost"] < 1
    assert told["agreement"]["num_images"] == 400
    assert Detector(tmp_path / "s.onnx").metadata["latent_rank"] == "15"
    images, novel = test_images(larger)
    assert told["auc"] == pytest.approx(roc_auc_score(novel, Detector(tmp_path / "s.onnx").score(images).score))
    assert f"rank 15, {100 * told['latent_lost']:.2f} %" in (tmp_path / "card.md").read_text()
    assert cli("verify", tmp_path / "s.onnx", "--against", runs["norm"])[0] == 0


def test_for_a_phone(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "s.onnx"
    code, out, err = cli("export", "--model", runs["student"], "-o", file, "--mobile", "--json")
    told = only_json(out)
    assert (code, err) == (0, "")
    assert names_in(tmp_path) == {
        "s.onnx", "s.ort", "s.required_operators.config", "card.md", "golden.npz", "golden.json",
    }  # fmt: skip
    assert signature(file)[0] == {"image": ("tensor(uint8)", [1, SIDE, SIDE, 1])}
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 1), dtype=np.uint8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    small = onnxruntime.InferenceSession(str(tmp_path / "s.ort"), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(small.run(["score"], {"image": image})[0], Detector(file).score(image).score, rtol=1e-4)
    needed = (tmp_path / "s.required_operators.config").read_text()
    assert re.search(r"^com\.microsoft;1;.*\bFusedConv\b", needed, re.MULTILINE)
    assert re.search(r"^ai\.onnx;\d+;.*\bGreater\b", needed, re.MULTILINE)
    assert not re.search(r"/tmp|/var|detector\.onnx", needed)
    before, after = told["usability"]
    assert [each["runtime"] for each in before] == [each["runtime"] for each in after] == ["NNAPI", "CoreML"]
    card = (tmp_path / "card.md").read_text().split("## On a phone")[1]
    for old, new in zip(before, after, strict=True):
        assert new["num_supported"] / new["num_nodes"] > old["num_supported"] / old["num_nodes"]
        assert f"| {old['runtime']} | {old['verdict']} ({old['num_supported']} of {old['num_nodes']} nodes" in card
        assert f"| {new['verdict']} ({new['num_supported']} of {new['num_nodes']} nodes" in card
    assert "`s.ort`" in card
    assert cli("verify", file, "--against", runs["student"])[0] == 0


def test_for_a_phone_with_a_fixed_size_of_floats(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "s.onnx"
    options = ["--mobile", "--input-size", "40X48", "--input", "float"]
    code, out, _ = cli("export", "--model", runs["student"], "-o", file, *options)
    assert code == 0
    assert "NNAPI: plain graph " in out
    assert signature(file)[0] == {"image": ("tensor(float)", [1, 1, 40, 48])}


def test_two_detectors_in_one_folder(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("student", "teacher", "student"):
        assert cli("export", "--model", runs[name], "-o", tmp_path / f"{name}.onnx")[0] == 0
    assert names_in(tmp_path) == {
        "student.onnx", "card.md", "golden.npz", "golden.json",
        "teacher.onnx", "teacher.card.md", "teacher.golden.npz", "teacher.golden.json",
    }  # fmt: skip
    assert (tmp_path / "card.md").read_text().startswith("# student.onnx")
    assert (tmp_path / "teacher.card.md").read_text().startswith("# teacher.onnx")
    assert "`teacher.golden.npz`" in (tmp_path / "teacher.card.md").read_text()
    for name in ("student", "teacher"):
        assert cli("verify", tmp_path / f"{name}.onnx", "--against", runs[name])[0] == 0
    # One that had its own name before its files goes on having it, when the other is gone.
    (tmp_path / "student.onnx").unlink()
    assert cli("export", "--model", runs["teacher"], "-o", tmp_path / "teacher.onnx", "--rewrites", "none")[0] == 0
    assert cli("verify", tmp_path / "teacher.onnx")[0] == 0


def test_an_export_in_the_place_of_another(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        assert cli("export", "--model", runs[name], "-o", tmp_path / "d.onnx")[0] == 0
    assert names_in(tmp_path) == {"d.onnx", "card.md", "golden.npz", "golden.json"}
    assert cli("verify", tmp_path / "d.onnx", "--against", runs["teacher"])[0] == 0


def test_a_teacher_out_of_its_students_folder_has_not_the_students_auc(
    cli: Cli, runs: dict[str, Path], tmp_path: Path
) -> None:
    told = only_json(
        cli("export", "--model", runs["student"] / "teacher.safetensors", "-o", tmp_path / "t.onnx", "--json")[1]
    )
    assert told["auc"] is None
    told = only_json(
        cli("export", "--model", runs["student"] / "model.safetensors", "-o", tmp_path / "s.onnx", "--json")[1]
    )
    assert told["auc"] == json.loads((runs["student"] / "result.json").read_text())["auc"]


def test_a_page(cli: Cli, runs: dict[str, Path], tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime-web"
    for name in web.RUNTIME_FILES:
        (package / "dist" / name).parent.mkdir(parents=True, exist_ok=True)
        (package / "dist" / name).write_bytes(name.encode())
    file, page = tmp_path / "out" / "s.onnx", tmp_path / "page"
    model = ["export", "--model", runs["student"], "-o", file, "--web", page, "--ort-web", package]
    told = only_json(cli(*model, "--json")[1])
    assert Path(told["page"]) == page / "index.html"
    assert (page / "detector.onnx").read_bytes() == file.read_bytes()
    assert (page / "golden.json").read_bytes() == (tmp_path / "out" / "golden.json").read_bytes()
    assert {f"ort/{name}" for name in web.RUNTIME_FILES.values()} < names_in(page)
    assert all(not Path(name).is_relative_to(page) for name in told["files"])
    code, out, _ = cli(*model)
    assert code == 0
    assert f"page: {page / 'index.html'}" in out


def test_no_npm_no_page_and_no_file(
    cli: Cli, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(web.shutil, "which", lambda name: None)
    out = ["-o", tmp_path / "out" / "s.onnx", "--web", tmp_path / "page"]
    assert_refused(cli("export", "--model", runs["student"], *out), "npm was not found", "--ort-web")
    assert list(tmp_path.iterdir()) == []


# Verify.


def test_a_fresh_export_holds(cli: Cli, fresh: Path) -> None:
    code, out, err = cli("verify", fresh, "--json")
    told = only_json(out)
    assert (code, err) == (0, "")
    assert told.keys() >= {"ok", "score_max_rel", "auc_diff", "label_agreement"}
    assert told["ok"] is True
    assert told["failed"] == []
    assert 0 <= told["golden_max_rel"] <= told["golden_tolerance"] == 1e-4
    nothing = ("score_max_rel", "worst", "auc", "auc_diff", "label_agreement", "score_spearman", "weights_match")
    assert [told[key] for key in nothing] == [None] * len(nothing)
    assert cli("verify", fresh)[1].splitlines()[-1] == "ok"


def rewrite_golden(fresh: Path, **changed: Any) -> None:
    golden = fresh.with_name("golden.npz")
    with np.load(golden) as arrays:
        np.savez(golden, **{**arrays, **{key: change(arrays[key]) for key, change in changed.items()}})


@pytest.mark.parametrize("spoilt", [1.001, np.nan])
def test_golden_scores_that_differ(cli: Cli, fresh: Path, spoilt: float) -> None:
    rewrite_golden(fresh, score=lambda score: score * np.where(np.arange(len(score)) == 4, np.float32(spoilt), 1))
    code, out, err = cli("verify", fresh, "--json")
    told = only_json(out)
    assert code == 1
    assert told["ok"] is False
    assert told["golden_worst"] == 4
    if np.isfinite(spoilt):
        assert told["golden_max_rel"] == pytest.approx(1 - 1 / 1.001, rel=1e-2)
    code, out, err = cli("verify", fresh)
    assert (code, out.splitlines()[-1]) == (1, "not ok")
    assert re.fullmatch(r"Failed: golden scores differ by \S+, more than 0\.0001\n", err)


def test_golden_vectors_of_another_file(cli: Cli, fresh: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    assert cli("export", "--model", runs["teacher"], "-o", tmp_path / "other" / "t.onnx")[0] == 0
    shutil.copy(tmp_path / "other" / "golden.npz", fresh.parent)
    assert_refused(cli("verify", fresh), "golden.npz is of another", "Keep detector and golden vectors")


@pytest.mark.parametrize("content", [None, b"", b"junk", "cut"])
def test_golden_vectors_that_are_not_whole(cli: Cli, fresh: Path, content: bytes | str | None) -> None:
    golden = fresh.with_name("golden.npz")
    whole = golden.read_bytes()
    golden.unlink()
    if content is not None:
        golden.write_bytes(whole[:2000] if isinstance(content, str) else content)
    assert_refused(cli("verify", fresh), "golden.npz", "Export the model again")


def test_a_file_that_was_changed(cli: Cli, fresh: Path) -> None:
    content = bytearray(fresh.read_bytes())
    for position in (len(content) // 3, len(content) // 2, len(content) - 5):
        changed = content.copy()
        changed[position] ^= 1
        fresh.write_bytes(changed)
        assert_refused(cli("verify", fresh), "student.onnx")
    fresh.write_bytes(content[:-100])
    assert_refused(cli("verify", fresh), "student.onnx")
    fresh.unlink()
    assert_refused(cli("verify", fresh), "must be a file")


def test_against_its_own_run(cli: Cli, fresh: Path, runs: dict[str, Path], npz: Path) -> None:
    told = only_json(cli("verify", fresh, "--against", runs["student"], "--json")[1])
    assert (told["ok"], told["weights_match"], told["auc"]) == (True, True, None)
    assert 0 <= told["score_max_rel"] <= 1e-4
    code, out, _ = cli("verify", fresh, "--against", runs["student"], "--data", f"npz:{npz}", "--json")
    told = only_json(out)
    of_run = only_json(cli("evaluate", "--model", runs["student"], "--json")[1])
    assert code == 0
    assert (told["ok"], told["label_agreement"]) == (True, 1.0)
    assert told["auc_diff"] == pytest.approx(told["auc"] - of_run["auc"], abs=1e-12)
    assert told["score_spearman"] == pytest.approx(1, abs=0.01)
    assert 0 <= told["score_max_rel"] <= 1e-4
    assert re.fullmatch(r"test image \d+|sample images", told["worst"])
    text = cli("verify", fresh, "--against", runs["student"], "--data", f"npz:{npz}")[1]
    assert "100.00 % equal to torch's" in text
    assert text.endswith("\nok\n")


def test_against_another_run(cli: Cli, fresh: Path, runs: dict[str, Path], npz: Path) -> None:
    against = ["--against", runs["teacher"], "--data", f"npz:{npz}"]
    code, out, _ = cli("verify", fresh, *against, "--json")
    told = only_json(out)
    assert code == 1
    assert (told["ok"], told["weights_match"]) == (False, False)
    assert f"it was not exported from the weights of {runs['teacher']}" in told["failed"]
    assert any(reason.startswith("scores differ from torch's") for reason in told["failed"])
    code, out, err = cli("verify", fresh, *against)
    assert (code, out.splitlines()[-1]) == (1, "not ok")
    assert [f"Failed: {reason}" for reason in told["failed"]] == err.splitlines()


def test_the_auc_on_data_is_that_of_the_detectors_own_scores(cli: Cli, fresh: Path, larger: Path) -> None:
    images, novel = test_images(larger)
    code, out, _ = cli("verify", fresh, "--data", f"npz:{larger}", "--normal", 0, "--json")
    told = only_json(out)
    assert code == 0
    assert told["auc"] == pytest.approx(roc_auc_score(novel, Detector(fresh).score(images).score), abs=1e-12)
    assert (told["auc_diff"], told["label_agreement"]) == (None, None)
    reverse = only_json(cli("verify", fresh, "--data", f"npz:{larger}", "--normal", 1, "--json")[1] or "{}")
    assert reverse == {} or reverse["auc"] == pytest.approx(1 - told["auc"])


def test_another_threshold_is_no_disagreement(cli: Cli, runs: dict[str, Path], larger: Path, tmp_path: Path) -> None:
    file, data = tmp_path / "s.onnx", ["--data", f"npz:{larger}"]
    assert cli("export", "--model", runs["student"], "-o", file, *data, "--quantile", 0.5)[0] == 0
    code, out, _ = cli("verify", file, "--against", runs["student"], *data, "--normal", 0, "--json")
    told = only_json(out)
    assert (code, told["failed"], told["label_agreement"]) == (0, [], 1.0)


def test_data_without_labels_cannot_verify(cli: Cli, fresh: Path, photos: Path) -> None:
    shutil.rmtree(photos / "test")
    assert_refused(cli("verify", fresh, "--data", f"folder:{photos}"), "both normal and anomalous")


def test_verify_says_what_the_map_of_a_detector_of_tiles_means(cli: Cli, tmp_path: Path) -> None:
    path = write_tile_detector(tmp_path / "t.onnx", np.full((96, 128, 1), 80.0), 40.0)
    write_golden(tmp_path / "golden.npz", tmp_path / "golden.json", Detector(path), path.name)
    code, out, _ = cli("verify", path)
    assert code == 0
    assert out.splitlines()[0] == "frame           96×128, cut into tiles; the anomaly map is in units of the score"
    found = only_json(cli("verify", path, "--json")[1])
    assert (found["frame"], found["map_unit"], found["golden_decisions_differ"]) == ([96, 128], "score", 0)
