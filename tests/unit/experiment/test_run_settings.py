"""Which settings tell runs apart."""

import itertools

import pytest

from kdgan_compress.data import DataSettings
from kdgan_compress.experiment.recipe import load_recipe
from kdgan_compress.experiment.run_settings import (
    class_label,
    data_label,
    distinguishing,
    repeat_label,
    run_settings,
    schedule_label,
)


def recipe(**changes):
    return load_recipe().replace({"data": {"source": "mnist", "normal": "5"}}, changes)


def test_a_student_has_its_own_channels_training_and_losses():
    base = recipe(distillation={"teacher": "t", "student": {"width": 1}, "loss": {"w1": 7}, "schedule": "2->3"})
    settings = run_settings(base)
    assert (settings["channels"], settings["structure"], settings["norm"]) == ("1-2-4", "②→③", "batch")
    assert (settings["training.learning_rate"], settings["loss.w1"]) == ("0.004", "7.0")
    teacher = run_settings(recipe())
    assert (teacher["channels"], teacher["structure"], teacher["training.learning_rate"]) == (
        "64-128-256",
        "–",
        "0.001",
    )
    assert "loss.w1" not in teacher


def test_seed_class_and_machine_are_not_settings():
    changes = {"training": {"seed": 3, "threads": 2}, "data": {"normal": "7", "root": "/elsewhere"}}
    assert run_settings(recipe(**changes)) == run_settings(recipe())


def test_the_distillation_section_of_a_teacher_does_not_matter():
    assert run_settings(recipe(distillation={"student": {"width": 8}})) == run_settings(recipe())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_distinguishing_settings_separate_all_that_differ(count):
    choices = {"a": ["1", "2"], "b": ["1", "1", "3"], "c": ["x"], "family": ["ede", "cvgad"]}
    everything = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    settings = everything[:: 5 - count] * 2
    chosen = distinguishing(settings)
    assert len({tuple(s[name] for name in chosen) for s in settings}) == len({tuple(s.values()) for s in settings})
    for left_out in chosen:
        rest = [name for name in chosen if name != left_out]
        assert len({tuple(s[name] for name in rest) for s in settings}) < len({tuple(s.values()) for s in settings})
    assert "c" not in chosen


def test_what_follows_from_another_setting_is_left_out():
    student = {"model": "student", "channels": "2-4-8", "training.learning_rate": "0.004"}
    teacher = {"model": "teacher", "channels": "64-128-256", "training.learning_rate": "0.001"}
    assert distinguishing([student, teacher]) == ["model"]
    assert distinguishing([student, student]) == []
    assert distinguishing([student, teacher], without=["model"]) == ["channels"]


@pytest.mark.parametrize(
    ("data", "label", "class_name"),
    [
        (DataSettings("mnist", "5"), "mnist", "5"),
        (DataSettings("sample"), "sample", "sneaker"),
        (DataSettings("folder:/photos/bottle/"), "bottle", ""),
        (DataSettings("npz:/a/set.npz", "0"), "set", "0"),
        (DataSettings("cifar10", protocol="miso-8020", novel="deer"), "cifar10, miso-8020", "not deer"),
        (
            DataSettings("fashion-mnist", "bag", protocol="gpnd-5fold", outliers=0.1),
            "fashion-mnist, gpnd-5fold, 10 % outliers",
            "bag",
        ),
        (DataSettings("coil100", protocol="coil100"), "coil100, 1 category, 50 % outliers", ""),
        (
            DataSettings("coil100", protocol="coil100", num_categories=7),
            "coil100, 7 categories, 15 % outliers",
            "",
        ),
    ],
)
def test_data_and_class_are_named(data, label, class_name):
    assert (data_label(data), class_label(data)) == (label, class_name)


def test_a_repeat_is_a_seed_and_a_random_split():
    assert repeat_label(recipe(training={"seed": 4})) == "seed 4"
    student = recipe(distillation={"teacher": "t", "training": {"seed": 6}})
    assert repeat_label(student) == "seed 6"
    gpnd = recipe(data={"source": "fashion-mnist", "protocol": "gpnd-5fold", "normal": "bag", "trial": 2})
    assert repeat_label(gpnd) == "seed 0, trial 2"


@pytest.mark.parametrize(
    ("schedule", "label"),
    [("2->3", "②→③"), ("1", "①"), ([{"structure": 2}, {"loss_set": {}}], "②→custom"), ("none", "none")],
)
def test_schedules_have_the_papers_symbols(schedule, label):
    assert schedule_label(schedule) == label
