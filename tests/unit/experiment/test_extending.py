"""What docs/extending.md promises: a term of K_l is one recipe entry, a command is one line in the table."""

import sys
import types

import click
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch.nn.functional import mse_loss

from kdgan_compress.api.distill import distill
from kdgan_compress.api.train import train
from kdgan_compress.cli import main
from kdgan_compress.distillation.terms import TERM_LOSSES, Term
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.models import load_model
from kdgan_compress.experiment.recipe import parse_recipe


@pytest.fixture
def recipe(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=np.zeros(40, int), x_test=images[:4], y_test=[0, 0, 1, 1])
    length = {"epochs": 1, "batch_size": 8}
    return parse_recipe(
        {
            "data": {"source": f"npz:{tmp_path / 'set.npz'}", "normal": "0"},
            "model": {"image_size": 16, "channels": [2, 4], "latent_size": 8},
            "training": length,
            "distillation": {"student": {"channels": [1, 2]}, "schedule": "1", "training": length},
        },
        "this test",
    )


def test_a_further_term_of_k_l_is_one_recipe_entry(recipe, tmp_path):
    teacher = train(recipe, tmp_path / "teacher")
    term = {"tap": "encoder.features", "weight": 5, "loss": "l2"}
    recipe = recipe.replace({"distillation": {"loss": {"terms": [term]}}})
    student = distill(teacher.run, recipe, tmp_path / "student")
    line = (tmp_path / "student" / "metrics.jsonl").read_text()
    assert "k_encoder.features" in line
    assert load_model(student.run).architecture.channels == (1, 2)  # the connector (2 → 4 channels) is dropped
    assert (tmp_path / "student" / "recipe.yaml").read_text().count("encoder.features") == 1


@pytest.mark.parametrize("loss", TERM_LOSSES)
def test_every_loss_is_a_name_in_a_recipe(recipe, tmp_path, loss):
    tap = ["encoder.features.2", "encoder.features"] if loss == "fsp" else "encoder.features"
    term = {"tap": tap, "weight": 5, "loss": loss}
    recipe = recipe.replace({"distillation": {"loss": {"terms": [term]}}})
    assert recipe.distillation.loss.terms == (Term(tuple(tap) if loss == "fsp" else tap, 5, loss),)
    reread = parse_recipe(yaml.safe_load(recipe.to_yaml()), "a file")
    assert reread.distillation.loss == recipe.distillation.loss


def test_what_does_not_fit_a_loss_is_refused_before_anything_is_written(recipe, tmp_path):
    teacher = train(recipe, tmp_path / "teacher")
    for term, message in (
        ({"tap": "z1", "loss": "attention"}, "need feature maps"),
        ({"tap": "encoder.feature", "loss": "sp"}, "perhaps 'encoder.features'"),
        ({"tap": "z1", "loss": "rkd_angle"}, "needs batches of at least 3; got 2"),
    ):
        changes = {"distillation": {"loss": {"terms": [term]}, "training": {"batch_size": 2}}}
        with pytest.raises(KdganError, match=message):
            distill(teacher.run, recipe.replace(changes), tmp_path / "student")
        assert not (tmp_path / "student").exists()


def test_a_wrong_name_in_a_recipe_is_one_of_its_problems(recipe):
    terms = [{"tap": "z1", "loss": "rkd"}, {"tap": "z1", "loss": "fsp"}, {"tap": 5}]
    with pytest.raises(KdganError) as caught:
        recipe.replace({"distillation": {"loss": {"terms": terms}}})
    message = str(caught.value)
    assert "distillation.loss.terms.0: A term of K_l needs a known loss; got 'rkd'" in message
    assert "distillation.loss.terms.1: The loss fsp reads 2 taps; got 1: z1" in message
    assert "distillation.loss.terms.2.tap: " in message


def test_the_term_changes_what_the_student_learns(recipe, tmp_path):
    """With equal channels and this term alone, the student's features move towards the teacher's."""
    teacher = train(recipe, tmp_path / "teacher")
    loss = {"w1": 0, "wx": 0, "w2": 0, "terms": [{"tap": "encoder.features", "weight": 1}]}
    distances = []
    for epochs in (1, 40):
        training = {"epochs": epochs, "learning_rate": 0.02}
        student = {"student": {"channels": [2, 4], "norm": "instance"}, "loss": loss, "training": training}
        run = distill(teacher.run, recipe.replace({"distillation": student}), tmp_path / f"student{epochs}").run
        gans = [load_model(model).build() for model in (run, teacher.run)]
        images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            features = [gan.generator.encoder.features(images) for gan in gans]
        distances.append(float(mse_loss(*features)))
    assert distances[1] < 0.8 * distances[0]


def test_a_command_is_one_line_in_the_table(monkeypatch):
    module = types.ModuleType("kdgan_compress.cli.hello")

    @click.command()
    def hello() -> None:
        """Say hello."""
        click.echo("hello")

    module.hello = hello
    monkeypatch.setitem(sys.modules, "kdgan_compress.cli.hello", module)
    monkeypatch.setattr(main, "COMMANDS", (*main.COMMANDS, "hello"))
    assert CliRunner().invoke(main.cli, ["hello"]).output == "hello\n"
    assert "Say hello." in CliRunner().invoke(main.cli, ["--help"]).output
