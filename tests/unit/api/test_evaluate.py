"""Evaluation reads the scores of the run folder if they are of the same weights and images."""

import dataclasses

import numpy as np
import pytest

from kdgan_compress.api import evaluate as module
from kdgan_compress.api.evaluate import evaluate
from kdgan_compress.data import DataSettings, load_split
from kdgan_compress.evaluation import fit_scorer, save_scores, score_images
from kdgan_compress.experiment.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.gans import Architecture, build

ARCHITECTURE = Architecture(channels=(1, 2), image_size=16, latent_size=4, norm="batch")


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 16, 16), dtype=np.uint8)
    labels = np.arange(10) % 2
    np.savez(tmp_path / "set.npz", x_train=images[:10], y_train=labels, x_test=images[10:], y_test=labels)
    return DataSettings(f"npz:{tmp_path / 'set.npz'}", "0")


def test_the_same_source_keeps_the_normal_class(student, data):
    trained_on = dataclasses.replace(data, normal="1")
    assert module._settings(trained_on, data.source, None, None, {}).normal == "1"
    assert module._settings(trained_on, data.source, "0", None, {}).normal == "0"


def save_run(folder, data, seed, provenance=()):
    """A run folder with fresh weights and with the scores of its data."""
    folder = RunFolder(folder)
    weights = {name: network.state_dict() for name, network in build(ARCHITECTURE, seed).networks().items()}
    weights["raw"] = build(ARCHITECTURE, seed + 100).generator.state_dict()
    save_checkpoint(folder.model, Checkpoint(ARCHITECTURE, data, 1.0, "", dict(provenance), weights))
    generator = load_checkpoint(folder.model).build().generator
    split = load_split(data, 16, 1)
    scores = (score_images(generator, part) for part in (split.calibration, split.test))
    save_scores(folder.scores, generator, data, split, *scores)
    return folder


@pytest.fixture
def student(tmp_path, data):
    save_run(tmp_path / "teacher", data, 1)
    return save_run(tmp_path / "student", data, 2, {"teacher": str(tmp_path / "teacher")})


@pytest.fixture
def num_scored(monkeypatch):
    """How many images each call of ``score_images`` scores."""
    counts = []

    def spy(generator, images):
        counts.append(len(images))
        return score_images(generator, images)

    monkeypatch.setattr(module, "score_images", spy)
    return counts


def test_saved_scores_are_read_and_change_nothing(student, num_scored):
    evaluation = evaluate(student.path)
    assert num_scored == []
    assert evaluation == dataclasses.replace(evaluate(student.model), model=evaluation.model)
    assert num_scored == []
    for folder in (student.path, student.path.parent / "teacher"):
        (folder / "scores.npz").unlink()
    assert evaluate(student.path) == evaluation
    assert num_scored == [10, 10]


@pytest.mark.parametrize("content", [b"", b"not a score file"])
def test_a_damaged_score_file_is_ignored(student, num_scored, content):
    evaluation = evaluate(student.path)
    student.scores.write_bytes(content)
    assert evaluate(student.path) == evaluation
    assert num_scored == [10]


def test_scores_of_other_weights_are_not_used(student, num_scored):
    expected = evaluate(student.path.parent / "teacher").auc
    student.scores.write_bytes((student.path.parent / "teacher" / "scores.npz").read_bytes())
    assert evaluate(student.path).auc != expected
    assert num_scored == [10]


def test_scores_of_other_images_are_not_used(student, num_scored, data, tmp_path):
    evaluate(student.path, normal="1")  # the same images with other labels
    assert num_scored == []
    with np.load(tmp_path / "set.npz") as file:
        arrays = dict(file)
    arrays["x_test"] = 255 - arrays["x_test"]
    np.savez(tmp_path / "other.npz", **arrays)
    evaluate(student.path, data=f"npz:{tmp_path / 'other.npz'}", normal="0")
    assert num_scored == [10, 10]


def test_labels_come_from_the_split_and_not_from_the_file(student):
    assert evaluate(student.path, normal="1").auc == pytest.approx(1 - evaluate(student.path).auc)


def test_weights_without_ema_are_scored_on_request(student, num_scored):
    assert evaluate(student.path).auc_raw is None
    checkpoint = load_checkpoint(student.model)
    split = load_split(checkpoint.data, 16, 1)
    scorer = fit_scorer(checkpoint.build_without_ema().generator, split, checkpoint.score).scorer
    expected = module.detection_metrics(score_images(scorer, split.test), split.test_is_anomalous).auc
    assert evaluate(student.path, raw=True).auc_raw == expected
    assert num_scored == [10]


@pytest.mark.parametrize(
    ("protocol", "normal", "expected"),
    [
        ({}, None, ("miso-8020", None, "deer")),
        ({"trial": 2}, None, ("miso-8020", None, "deer")),
        ({"novel": "cat"}, None, ("miso-8020", None, "cat")),
        ({"protocol": "simo"}, "deer", ("simo", "deer", None)),
        ({"protocol": "gpnd-5fold"}, "3", ("gpnd-5fold", "3", None)),
    ],
)
def test_another_protocol_drops_the_novel_class(protocol, normal, expected):
    trained_on = DataSettings("cifar10", protocol="miso-8020", novel="deer")
    settings = module._settings(trained_on, None, normal, None, protocol)
    assert (settings.protocol, settings.normal, settings.novel) == expected
