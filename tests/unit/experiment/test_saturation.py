"""Numbers that go wrong: a discriminator that saturates, a constant score, test images of one kind."""

import functools
import json
import logging
import os
import signal

import numpy as np
import pytest
import torch

from kdgan_compress.api.distill import distill
from kdgan_compress.api.evaluate import evaluate
from kdgan_compress.api.resume import resume
from kdgan_compress.api.train import train
from kdgan_compress.distillation import train_log
from kdgan_compress.distillation.train_log import TrainRecord
from kdgan_compress.errors import Interrupted, KdganError
from kdgan_compress.experiment import saturation, training_run
from kdgan_compress.experiment.recipe import parse_recipe
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.gans import Architecture, ede
from kdgan_compress.gans.blocks import init_weights

pytestmark = pytest.mark.usefixtures("quick_runs")

LOGGER = "kdgan_compress.gans.ede"


@pytest.fixture(autouse=True)
def frequent_records(monkeypatch):
    """A record, at which a run can be stopped, every 8 images."""
    monkeypatch.setattr(train_log, "RECORD_EVERY_IMAGES", 8)


@pytest.fixture
def make_recipe(tmp_path):
    def make(labels=None, **objective):
        rng = np.random.default_rng(0)
        images, zeros = rng.integers(0, 256, (16, 16, 16), dtype=np.uint8), np.zeros(16, int)
        labels = np.arange(16) % 2 if labels is None else labels
        np.savez(tmp_path / "set.npz", x_train=images, y_train=zeros, x_test=images, y_test=labels)
        training = {"batch_size": 4, "epochs": 2, "threads": 1}
        small = {"channels": [1, 1], "norm": "instance"}
        return parse_recipe(
            {
                "data": {"source": f"npz:{tmp_path / 'set.npz'}", "normal": "0"},
                "model": small | {"image_size": 16, "latent_size": 4},
                "objective": objective,
                "training": training,
                "distillation": {"student": small, "schedule": "2->4", "training": training},
            },
            "test",
        )

    return make


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_the_weights_after_a_reinitialisation(one_thread, caplog):
    architecture = Architecture(channels=(2, 4), image_size=16, latent_size=4, norm="batch")
    gan, other = ede.build(architecture), ede.build(architecture)
    before = {name: tensor.clone() for name, tensor in gan.discriminator.state_dict().items()}
    objective = ede.GanomalyObjective(reinit_discriminator=1e-5)
    objective._reinit_if_saturated(gan, 1e-5, 7)  # not below
    assert messages(caplog) == []
    assert all(torch.equal(gan.discriminator.state_dict()[name], tensor) for name, tensor in before.items())
    objective._reinit_if_saturated(gan, 9e-6, 7)
    assert messages(caplog) == ["The discriminator is re-initialised after step 8: s_ce was 9e-06, below 1e-05"]
    random = torch.Generator().manual_seed(7)
    other.discriminator.apply(functools.partial(init_weights, generator=random))
    for name, tensor in other.discriminator.state_dict().items():
        assert torch.equal(gan.discriminator.state_dict()[name], tensor), name
        assert not name.endswith("weight") or not torch.equal(tensor, before[name])


def test_each_time_is_reported_with_its_step_and_off_changes_nothing(make_recipe, tmp_path, monkeypatch, caplog):
    train(make_recipe(), tmp_path / "off")
    assert messages(caplog) == []
    train(make_recipe(reinit_discriminator=1e-9), tmp_path / "never")
    assert messages(caplog) == []
    states = [RunFolder(tmp_path / name).load_state()["student"]["networks"] for name in ("off", "never")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    recipe = make_recipe(reinit_discriminator=0.1)
    monkeypatch.setattr(ede, "discriminator_cross_entropy", lambda real, fake: 0 * real + 0.05)
    train(recipe, tmp_path / "always")
    assert [text.partition(":")[0] for text in messages(caplog)] == [
        f"The discriminator is re-initialised after step {step}" for step in range(1, 9)
    ]


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_resumed_run_reinitialises_alike(kind, make_recipe, tmp_path, monkeypatch):
    recipe = make_recipe(reinit_discriminator=0.1)
    cross_entropy = ede.discriminator_cross_entropy
    monkeypatch.setattr(ede, "discriminator_cross_entropy", lambda real, fake: 0.05 * cross_entropy(real, fake))
    train(recipe, tmp_path / "teacher")
    start = functools.partial(distill, tmp_path / "teacher") if kind == "distill" else train
    start(recipe, tmp_path / "whole")
    number = 0

    def stop(_progress):
        nonlocal number
        number += 1
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        start(recipe, tmp_path / "stopped", show_progress=stop)
    resume(tmp_path / "stopped")
    for name in ("model.safetensors", "state.pt"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_of_a_version_without_it_can_be_resumed(make_recipe, tmp_path):
    train(make_recipe(), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    state = folder.load_state()
    settings = json.loads(state["experiment"]["recipe"])
    assert settings.pop("objective.reinit_discriminator") == 0
    state["experiment"]["recipe"] = json.dumps(settings)
    folder.save_state(state)
    folder.result.unlink()
    resume(tmp_path / "run")
    folder.result.unlink()
    folder.recipe.write_text(
        folder.recipe.read_text().replace("reinit_discriminator: 0.0", "reinit_discriminator: 0.1")
    )
    with pytest.raises(KdganError, match=r"objective\.reinit_discriminator was None and is 0\.1"):
        resume(tmp_path / "run")


def test_such_models_train_one_after_the_other(make_recipe, tmp_path):
    recipe = make_recipe(reinit_discriminator=1e-5)
    recipes = [recipe, recipe.replace({"training": {"seed": 1}})]
    with pytest.raises(KdganError, match="trains alone; got 2 models"):
        train(recipes, tmp_path / "fleet", fleet_size=2)
    assert not (tmp_path / "fleet").exists()
    result = train(recipes, tmp_path / "fleet")
    assert (result.fleet, len(result.members)) == (1, 2)
    assert "trains alone" in result.note


@pytest.mark.parametrize("value", [-1, 0.2, float("nan")])
def test_values_that_make_no_sense_are_refused(value):
    with pytest.raises(KdganError, match="re-initialises a discriminator is out of range"):
        ede.GanomalyObjective(reinit_discriminator=value)


def test_a_saturated_discriminator_is_named_with_its_step(tmp_path, caplog):
    losses = {"s_con": 0.0, "s_ce": 2e-4, "teacher_s_ce": 0.5}
    record = TrainRecord("2", 3, True, 12, losses, 1.0, steps=9)
    saturation.warn_of(record, tmp_path / "run")
    (message,) = [each.getMessage() for each in caplog.records]
    assert "(s_ce is 0.0002 on average over epoch 3 of stage 2, up to step 9)" in message
    saturation.warn_of(TrainRecord("2", 3, False, 12, losses, 1.0), tmp_path)  # within an epoch
    saturation.warn_of(TrainRecord("2", 3, True, 12, {"s_ce": 0.69}, 1.0), tmp_path)
    assert len(caplog.records) == 1


def test_records_count_the_steps_of_their_stage(make_recipe, tmp_path):
    steps = []
    train(make_recipe(), tmp_path / "run", show_progress=lambda each: steps.append(each.record.steps))
    assert steps == [2, 4, 6, 8]


def test_a_constant_score_is_reported(make_recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training_run, "quantile_threshold", lambda scores: float(scores[0]))
    fit = training_run.fit_scorer

    def constant(*arguments):
        fitted = fit(*arguments)
        fitted.normal_scores[:] = 0.5
        return fitted

    monkeypatch.setattr(training_run, "fit_scorer", constant)
    caplog.set_level(logging.WARNING)
    train(make_recipe(), tmp_path / "run")
    assert [each.getMessage() for each in caplog.records if "the same score, 0.5" in each.getMessage()]


@pytest.mark.parametrize("labels", [np.zeros(16, int), np.ones(16, int)])
def test_without_both_kinds_of_test_images_there_is_no_auc(labels, make_recipe, tmp_path):
    result = train(make_recipe(labels), tmp_path / "run", track_auc=True)
    assert (result.auc, result.best_epoch_auc_oracle) == (None, None)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["auc"] is None
    with pytest.raises(KdganError, match="needs both normal and anomalous test images"):
        evaluate(tmp_path / "run")


@pytest.mark.parametrize(("batch_size", "num_images"), [(1, 16), (4, 1)])
def test_batch_norm_on_one_image_is_refused(batch_size, num_images, make_recipe, tmp_path):
    recipe = make_recipe().replace({"model": {"norm": "batch"}, "training": {"batch_size": batch_size}})
    with np.load(tmp_path / "set.npz") as data:
        arrays = dict(data)
    arrays["x_train"], arrays["y_train"] = arrays["x_train"][:num_images], arrays["y_train"][:num_images]
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(KdganError, match=f"needs batches of at least 2 images; got a batch size of {batch_size}"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
