"""A user's own GAN from training to the detector by the commands of docs/own-gan.md, and what is refused."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Cli, assert_refused, only_json

from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.gans import FAMILIES, normalize_images
from kdgan_compress.runtime import Detector

PAGE = Path(__file__).parents[2] / "docs" / "own-gan.md"
TINY = ("--batch-size", 8, "--epochs", 1, "--json")
OBJECTIVE = '''
from dataclasses import dataclass

import mygan
from kdgan_compress import Family, Gan


@dataclass(frozen=True)
class PlainObjective:
    """An autoencoder's loss; it needs no discriminator."""

    w_rec: float = 2.0

    def train_step(self, state, images, weight_g, weight_d, step=0, k_l=None):
        outputs = state.forward(images)
        losses = {"rec": state.reduce((images - outputs["x_hat"]).abs().flatten(1).mean(1))}
        loss = weight_g * self.w_rec * losses["rec"]
        state.update("generator", loss if k_l is None else loss + k_l(outputs))
        return losses


def build(architecture):
    gan = mygan.build(architecture)
    return Gan(gan.generator, gan.taps)


def build_failing(architecture):
    gan = build(architecture)
    gan.generator.decode.register_forward_hook(lambda *_: 1 / 0 if gan.generator.training else None)
    return gan


def build_frozen(architecture):
    gan = mygan.build(architecture)
    gan.generator.encode.requires_grad_(False)
    return gan


plain = Family(build, PlainObjective)
failing = Family(build_failing, PlainObjective)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, npz: Path) -> Iterator[Path]:
    """The current folder, with the module of the page; as in a new process, nothing has been imported from it."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "mygan.py").write_text(
        code + "\nfrom pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
    )
    (tmp_path / "further.py").write_text(OBJECTIVE)
    (tmp_path / "data.npz").write_bytes(npz.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    """As if in a new process."""
    for name in [name for name in FAMILIES if ":" in name]:
        del FAMILIES[name]
    for name in ("mygan", "further"):
        sys.modules.pop(name, None)
    Path("imported").unlink(missing_ok=True)


DATA = ("--data", "npz:data.npz", "--normal", 0, "--image-size", 16, "--latent", 8)


def test_the_commands_of_the_page(cli: Cli, folder: Path) -> None:
    train = ("train", "--family", "mygan:build", *DATA, "--width", 4, *TINY)
    code, out, _ = cli(*train, "--out", "runs/teacher")
    assert code == 0
    assert only_json(out)["score"] == "the generator's own score: it has no method latents for a fitted one"
    checkpoint = load_checkpoint(folder / "runs/teacher/model.safetensors")
    assert checkpoint.architecture.family == "mygan:build"
    assert "family: mygan:build" in (folder / "runs/teacher/recipe.yaml").read_text()

    _forget()
    distill = ("distill", "--teacher", "runs/teacher", "--family", "mygan:build", "--width", 1, *TINY)
    assert cli(*distill, "--out", "runs/student")[0] == 0
    lines = [json.loads(line) for line in (folder / "runs/student/metrics.jsonl").read_text().splitlines()]
    assert [{"k1", "kx", "k2", "s_con"} <= line.keys() for line in lines] == [True, False]

    _forget()
    found = only_json(cli("evaluate", "--model", "runs/student", "--family", "mygan:build", "--json")[1])
    assert found["auc_gap"] is not None
    report = only_json(
        cli("profile", "--model", "runs/student", "--against", "runs/teacher", "--family", "mygan:build", "--json")[1]
    )
    assert [model["family"] for model in report["models"]] == ["mygan:build"] * 2
    assert report["ratios"]["params"] > 3

    _forget()
    export = ("export", "--model", "runs/student", "--family", "mygan:build", "-o", "student.onnx", "--json")
    assert only_json(cli(*export)[1])["parity_max_rel"] < 1e-4
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 16, 16), dtype=np.uint8)
    generator = load_checkpoint(folder / "runs/student/model.safetensors").build().generator
    with torch.no_grad():
        x = normalize_images(torch.from_numpy(images))
        expected = (x - generator.decode(generator.encode(x))).abs().mean((1, 2, 3))
    scores = Detector("student.onnx").score(images.transpose(0, 2, 3, 1)).score
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5)
    verify = ("verify", "student.onnx", "--against", "runs/student", "--family", "mygan:build", "--json")
    assert only_json(cli(*verify)[1])["ok"]
    assert cli("pictures", "--model", "runs/student", "--family", "mygan:build")[0] == 0
    fresh = only_json(cli("profile", "--family", "mygan:build", "--width", 2, "--image-size", 16, "--json")[1])
    assert fresh["models"][0]["name"] == "mygan:build 2-4"


def test_nothing_imports_code_that_is_not_named(cli: Cli, folder: Path) -> None:
    assert cli("train", "--family", "mygan:build", *DATA, "--width", 1, *TINY, "--out", "run")[0] == 0
    assert cli("export", "--model", "run", "--family", "mygan:build", "-o", "d.onnx")[0] == 0
    (folder / "run/result.json").unlink()
    _forget()
    for command in (
        ("evaluate", "--model", "run"),
        ("pictures", "--model", "run"),
        ("profile", "--model", "run"),
        ("profile", "--model", "run", "--all"),
        ("export", "--model", "run", "-o", "e.onnx"),
        ("verify", "d.onnx", "--against", "run"),
        ("distill", "--teacher", "run", "--width", 1, "--out", "s"),
        ("distill", "--teacher", "run", "--width", 1, "--family", "ede", "--out", "s"),
        ("train", "--resume", "run"),
        ("train", "--recipe", "run/recipe.yaml", "--out", "t"),
        ("train", "--set", "model.family=mygan:build", *DATA, "--out", "t"),
        ("recipes", "check", "run/recipe.yaml"),
    ):
        assert_refused(cli(*command), "mygan:build", "--family mygan:build")
        assert not (folder / "imported").exists(), command
        assert "mygan" not in sys.modules
    assert not (folder / "s").exists()
    assert not (folder / "t").exists()
    assert cli("recipes", "check", "run/recipe.yaml", "--family", "mygan:build")[0] == 0
    assert cli("train", "--resume", "run", "--family", "mygan:build")[0] == 0
    code, _, err = cli("train", "--resume", "run", "--family", "ede")
    assert (code, "leave out --family" in err) == (2, True)
    code, _, err = cli("evaluate", "--model", "run", "--family", "ede")
    assert (code, "not a module and its attribute" in err) == (2, True)


def test_an_objective_of_its_own_without_a_discriminator(cli: Cli, folder: Path) -> None:
    train = ("train", "--family", "further:plain", *DATA, "--width", 2, *TINY)
    assert cli(*train, "--set", "objective.w_rec=3", "--out", "teacher")[0] == 0
    assert "w_rec: 3" in (folder / "teacher/recipe.yaml").read_text()
    checkpoint = load_checkpoint(folder / "teacher/model.safetensors")
    assert checkpoint.weights.keys() == {"generator", "raw"}
    distill = ("distill", "--teacher", "teacher", "--width", 1, *TINY)
    assert cli(*distill, "--schedule", "2->3", "--family", "further:plain", "--out", "student")[0] == 0
    families = ("--family", "further:plain", "--family", "ede")  # the teacher's code, and the student's family
    assert cli(*distill, "--schedule", "2", *families, "--norm", "instance", "--out", "other")[0] == 0
    assert load_checkpoint(folder / "other/model.safetensors").architecture.family == "ede"
    refused = cli(*train, "--set", "objective.w_rek=3", "--out", "t")
    assert_refused(refused, "w_rek is not a key")


def test_mistakes_appear_before_a_run_folder_is_made(cli: Cli, folder: Path) -> None:
    train = ("train", *DATA, "--width", 1, *TINY, "--out", "run", "--family")
    assert_refused(cli(*train, "further:build"), "needs a discriminator", "structure 1")
    assert_refused(cli(*train, "further:build_frozen"), "require a gradient", "encode.", "register_buffer")
    assert_refused(cli(*train, "further:failing"), "first training step of further:failing", "further.py, line ")
    assert_refused(cli(*train, "further:nothing"), "defines no 'nothing'")
    assert_refused(cli(*train, "nowhere:build"), "no module 'nowhere'")
    assert cli("train", *DATA, "--width", 1, *TINY, "--out", "teacher")[0] == 0
    distill = ("distill", "--teacher", "teacher", "--width", 1, *TINY, "--out", "run")
    assert_refused(cli(*distill, "--family", "further:build"), "needs a discriminator", "structure 1")
    assert not (folder / "run").exists()
    assert cli(*distill, "--family", "further:build", "--schedule", "1")[0] == 0


def test_a_method_latents_gives_a_fitted_score(cli: Cli, folder: Path) -> None:
    text = (folder / "mygan.py").read_text()
    method = "    def latents(self, x):\n        return self.encode(x), self(x)\n\n"
    (folder / "mygan.py").write_text(text.replace("    def anomaly_score", f"{method}    def anomaly_score", 1))
    code, out, _ = cli("train", "--family", "mygan:build", *DATA, "--width", 1, *TINY, "--out", "run")
    assert code == 0
    assert only_json(out)["score"] == "one Gaussian"
    assert load_checkpoint(folder / "run/model.safetensors").statistic is not None
