"""Fleets of runs: each member is what its training alone makes, what is finished stays, what fails is told."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from interruption import stop_after
from safetensors.torch import load_file

from kdgan_compress.api.distill import _fresh, distill, distill_fleet, resume_distill, resume_distill_fleet
from kdgan_compress.api.train import _prepare, resume_train, resume_train_fleet, train, train_fleet
from kdgan_compress.distillation import train_log as meter
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment import fleets as fleet_module
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.recipe import parse_recipe
from kdgan_compress.gans import build
from kdgan_compress.gans import ganomaly_objective as ganomaly

pytestmark = pytest.mark.usefixtures("quick_runs")

SIZES = (30, 13, 55)
"""Of the classes; the last one has 5 images held out. At batch 8 their epochs have 4, 2 and 7 steps."""

NUM_TRAIN = (30, 13, 50)
MEMBERS = [("0", 0), ("1", 0), ("2", 0), ("0", 1)]
NAMES = [f"set-{normal}-ede-1-2-seed{seed}" for normal, seed in MEMBERS]
TEACHERS = NAMES[:3]
TOLERANCE = 2e-5
"""Of weights that Adam moved by hundreds of times that: a fleet adds in another order than a model alone."""

MODEL = {"width": 1, "image_size": 16, "latent_size": 8}
TRAINING = {"batch_size": 8, "epochs": 2, "threads": 1}
FILES = {"recipe.yaml", "model.safetensors", "state.pt", "metrics.jsonl", "result.json", "curves.png", "scores.png"}
OF_THE_CLOCK = ("seconds", "images_per_s")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three classes of different sizes and levels."""
    path = tmp_path_factory.mktemp("data") / "set.npz"
    rng = np.random.default_rng(0)

    def split(sizes):
        labels = np.repeat(range(3), sizes)
        return (rng.integers(0, 120, (len(labels), 16, 16)) + 60 * labels[:, None, None]).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = split(SIZES), split((8, 9, 7))
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{path}"


def make_recipe(source, normal="0", seed=0, schedule="2->3", model=(), **training):
    training = TRAINING | {"seed": seed} | training
    return parse_recipe(
        {
            "data": {"source": source, "normal": normal},
            "model": MODEL | dict(model),
            "training": training,
            "distillation": {"student": {"width": 1, "norm": "instance"}, "schedule": schedule, "training": training},
        },
        "test",
    )


def student_recipe(schedule="2->3", seed=0, **training):
    return make_recipe("sample", None, seed, schedule, **training)


@pytest.fixture(scope="module")
def recipes(source):
    return [make_recipe(source, normal, seed) for normal, seed in MEMBERS]


@pytest.fixture(scope="module")
def alone(recipes, tmp_path_factory):
    """A folder with each member trained by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for recipe, name in zip(recipes, NAMES, strict=True):
        train(recipe, folder / name, track_auc=True)
    return folder


@pytest.fixture(scope="module")
def together(recipes, tmp_path_factory):
    """The folder and the result of all members trained as one."""
    folder = tmp_path_factory.mktemp("together")
    return folder, train_fleet(recipes, folder, fleet=len(recipes), track_auc=True)


@pytest.fixture(scope="module")
def students(alone, tmp_path_factory):
    """Distils one of the trained members by itself; the same one only once."""
    folder, made = tmp_path_factory.mktemp("students"), set()

    def distilled(schedule, name, seed=0):
        place = folder / f"{len(schedule)}-{schedule[0]}" / f"{name}-student-1-2-seed{seed}"
        if place not in made:
            distill(alone / name, student_recipe(schedule, seed), place, track_auc=True)
            made.add(place)
        return place

    return distilled


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def close(value):
    return pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value


def assert_weights_alike(ours, theirs):
    for name in ("model.safetensors", "teacher.safetensors"):
        assert (ours / name).exists() == (theirs / name).exists()
        if (theirs / name).exists():
            torch.testing.assert_close(load_file(ours / name), load_file(theirs / name), rtol=0, atol=TOLERANCE)


def assert_alike(ours, theirs):
    """Two run folders are of the same training, to float rounding."""
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()} >= FILES
    assert (ours / "recipe.yaml").read_text() == (theirs / "recipe.yaml").read_text()
    assert_weights_alike(ours, theirs)
    for name in ("model.safetensors", "teacher.safetensors"):
        if (theirs / name).exists():
            own, other = load_checkpoint(ours / name), load_checkpoint(theirs / name)
            assert own.threshold == pytest.approx(other.threshold, rel=1e-3)
            for field in ("architecture", "data", "threshold_rule", "provenance"):
                assert getattr(own, field) == getattr(other, field)
    for own, other in zip(lines_of(ours), lines_of(theirs), strict=True):
        assert own.keys() == other.keys()
        assert {k: v for k, v in own.items() if k not in OF_THE_CLOCK} == {
            k: pytest.approx(v, abs=0.05) if k.startswith("auc") else close(v)
            for k, v in other.items()
            if k not in OF_THE_CLOCK
        }
    own, other = (json.loads((run / "result.json").read_text()) for run in (ours, theirs))
    assert own.keys() == other.keys()
    for key in ("epochs", "num_images", "seed", "threads", "machine"):
        assert own[key] == other[key]
    for key in ("auc", "auc_raw", "best_epoch_auc_oracle"):
        assert own[key] == pytest.approx(other[key], abs=0.05)  # 2 pairs of 63 or more in another order


def nothing_at(folder):
    return not folder.exists() or list(folder.iterdir()) == []


def test_the_comparison_tells_trainings_apart(alone):
    weights = [load_file(alone / name / "model.safetensors") for name in NAMES]
    for other in weights[1:]:  # of one start and other images, or of another start
        assert max(float((weights[0][name] - other[name]).abs().max()) for name in other) > 50 * TOLERANCE
    start = build(load_checkpoint(alone / NAMES[0] / "model.safetensors").architecture, seed=0).generator
    moved = [
        float((start.state_dict()[n] - weights[0][f"raw.{n}"]).abs().max()) for n in dict(start.named_parameters())
    ]
    assert max(moved) > 100 * TOLERANCE


def test_each_member_is_what_train_makes_of_its_recipe(together, alone):
    folder, result = together
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert [member.run for member in result.members] == [str(folder / name) for name in NAMES]
    for name, member in zip(NAMES, result.members, strict=True):
        assert_alike(folder / name, alone / name)
        assert json.loads((folder / name / "result.json").read_text()) == dataclasses.asdict(member)
        assert member.fleet == len(NAMES)
        assert member.model == str(folder / name / "model.safetensors")
        assert json.loads((alone / name / "result.json").read_text())["fleet"] == 1


def test_a_fleets_result_sums_up_its_members(together):
    _, result = together
    assert result.failed == {}
    assert result.fleet == len(NAMES)
    expected = [2 * NUM_TRAIN[int(normal)] for normal, _ in MEMBERS]
    assert [member.num_images for member in result.members] == expected
    assert result.num_images == sum(expected)
    assert all(member.seconds > 0 for member in result.members)
    assert result.seconds == pytest.approx(sum(member.seconds for member in result.members))
    assert result.images_per_s == pytest.approx(result.num_images / result.seconds)


@pytest.mark.parametrize(("width", "widths"), [(1, [1, 1, 1]), (2, [2, 2, 1]), (3, [3, 3, 3])])
def test_a_narrower_width_makes_several_fleets_and_the_same_models(recipes, alone, tmp_path, width, widths):
    result = train_fleet(recipes[:3], tmp_path / "out", fleet=width, track_auc=True)
    assert result.fleet == width
    assert [member.fleet for member in result.members] == widths
    for name in NAMES[:3]:
        assert_alike(tmp_path / "out" / name, alone / name)


def test_a_width_beyond_the_number_of_models_is_told_as_that_number(recipes, tmp_path):
    result = train_fleet(recipes[1:3], tmp_path / "out", fleet=50)
    assert [member.fleet for member in result.members] == [2, 2]
    assert result.fleet == 2


def test_without_a_width_one_is_chosen_and_the_models_are_the_same(recipes, alone, tmp_path):
    before = torch.get_rng_state()
    result = train_fleet(recipes[:2], tmp_path / "out", track_auc=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.fleet in (1, 2)
    for name in NAMES[:2]:
        assert_alike(tmp_path / "out" / name, alone / name)


def test_members_may_differ_in_length_rates_and_weights(source, tmp_path):
    recipes = [
        make_recipe(source, "0", epochs=1),
        make_recipe(source, "1", epochs=5, learning_rate=4e-3, learning_rate_decay="constant"),
        make_recipe(source, "2", seed=3, batch_size=5).replace({"objective": {"w_con": 3, "w_adv": 0.5}}),
    ]
    result = train_fleet(recipes, tmp_path / "out", fleet=3, track_auc=True)
    assert [member.epochs for member in result.members] == [1, 5, 2]
    for recipe, member in zip(recipes, result.members, strict=True):
        by_itself = train(recipe, tmp_path / f"alone-{recipe.data.normal}", track_auc=True)
        assert_alike(Path(member.run), Path(by_itself.run))


def test_images_of_a_folder_and_a_set_train_together(source, tmp_path):
    good = tmp_path / "photos" / "train" / "good"
    good.mkdir(parents=True)
    for number in range(4):
        (good / f"{number}.pgm").write_bytes(b"P5 20 20 255\n" + bytes([60 * number] * 400))
    folder = make_recipe(f"folder:{tmp_path / 'photos'}", None)
    result = train_fleet([folder, make_recipe(source, "1")], tmp_path / "out", fleet=2)
    assert [member.auc is None for member in result.members] == [True, False]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "photos-ede-1-2-seed0",
        "set-1-ede-1-2-seed0",
    ]


@pytest.mark.parametrize("schedule", ["1", "2", "2->3"])
def test_each_student_is_what_distill_makes_of_its_teacher(schedule, alone, students, tmp_path):
    out = tmp_path / "out"
    result = distill_fleet(
        [alone / name for name in TEACHERS], [student_recipe(schedule)], out, fleet=3, track_auc=True
    )
    names = [f"{name}-student-1-2-seed0" for name in TEACHERS]
    assert [member.run for member in result.members] == [str(out / name) for name in names]
    assert [(member.fleet, member.epochs) for member in result.members] == [(3, 4 if "->" in schedule else 2)] * 3
    for teacher, name in zip(TEACHERS, names, strict=True):
        assert (out / name / "teacher.safetensors").exists() == ("3" in schedule)
        assert_alike(out / name, students(schedule, teacher))
        assert load_checkpoint(out / name / "model.safetensors").provenance["teacher"] == str(alone / teacher)


def test_a_moved_teacher_is_its_own_and_has_moved(alone, students):
    for name in TEACHERS:
        moved = load_file(students("2->3", name) / "teacher.safetensors")
        before = load_file(alone / name / "model.safetensors")
        assert max(float((moved[f"raw.{n}"] - before[f"raw.{n}"]).abs().max()) for n in ("decoder.head.weight",)) > 0


@pytest.mark.parametrize("width", [4, 3])
def test_teachers_times_seeds(width, alone, students, tmp_path):
    out, teachers = tmp_path / "out", TEACHERS[:2]
    recipes = [student_recipe("2", seed) for seed in (0, 1)]
    result = distill_fleet([alone / name for name in teachers], recipes, out, fleet=width, track_auc=True)
    pairs = [(name, seed) for name in teachers for seed in (0, 1)]
    assert [member.run for member in result.members] == [
        str(out / f"{name}-student-1-2-seed{seed}") for name, seed in pairs
    ]
    for (name, seed), member in zip(pairs, result.members, strict=True):
        assert_alike(out / f"{name}-student-1-2-seed{seed}", students("2", name, seed))
        assert member.teacher_cache.startswith("computed" if seed == 0 else "shared with another run")


def test_students_of_other_schedules_are_distilled_together(alone, students, tmp_path):
    recipes = [student_recipe("2->3"), student_recipe("1", seed=1)]
    distill_fleet([alone / TEACHERS[0]], recipes, tmp_path / "out", fleet=2, track_auc=True)
    for schedule, seed in (("2->3", 0), ("1", 1)):
        ours = tmp_path / "out" / f"{TEACHERS[0]}-student-1-2-seed{seed}"
        assert_alike(ours, students(schedule, TEACHERS[0], seed))


@pytest.mark.parametrize(("number", "num_finished"), [(1, 0), (2, 0), (3, 1), (5, 2), (6, 3)])
def test_an_interrupted_fleet_is_finished_as_if_it_was_not(number, num_finished, recipes, alone, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_fleet(recipes[:3], out, fleet=3, track_auc=True, show_progress=stop_after(number))
    finished = {path.parent: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    assert len(finished) == num_finished
    result = resume_train_fleet(out, fleet=3, track_auc=True)
    assert [member.run for member in result.members] == [str(out / name) for name in NAMES[:3]]
    assert result.failed == {}
    for name in NAMES[:3]:
        assert_alike(out / name, alone / name)
    for run, time in finished.items():
        assert (run / "model.safetensors").stat().st_mtime_ns == time


def test_an_interrupted_fleet_is_finished_by_any_width(recipes, alone, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_fleet(recipes[:3], out, fleet=3, track_auc=True, show_progress=stop_after(2))
    with pytest.raises(KeyboardInterrupt):  # and again
        resume_train_fleet(out, fleet=3, track_auc=True, show_progress=stop_after(1))
    assert {name: len(lines_of(out / name)) for name in NAMES[:3]} == {NAMES[0]: 1, NAMES[1]: 2, NAMES[2]: 0}
    result = resume_train_fleet(out, fleet=2, track_auc=True)
    assert [member.epochs for member in result.members] == [2, 2, 2]
    for name in NAMES[:3]:
        assert_alike(out / name, alone / name)


def test_an_epoch_that_was_broken_off_is_done_again(recipes, alone, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(meter, "RECORD_EVERY_IMAGES", 8)
        with pytest.raises(KeyboardInterrupt):
            train_fleet(recipes[:3], out, fleet=3, track_auc=True, show_progress=stop_after(6, NAMES[0]))
    assert len(lines_of(out / NAMES[0])) == 1  # of 4 records an epoch
    resume_train_fleet(out, fleet=3, track_auc=True)
    for name in NAMES[:3]:
        assert_alike(out / name, alone / name)


def test_a_member_resumed_by_itself(recipes, alone, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_fleet(recipes[:3], out, fleet=3, track_auc=True, show_progress=stop_after(3))
    assert not (out / NAMES[0] / "model.safetensors").exists()
    result = resume_train(out / NAMES[0], track_auc=True)
    assert (result.fleet, result.epochs) == (1, 2)
    assert_alike(out / NAMES[0], alone / NAMES[0])
    time = (out / NAMES[0] / "model.safetensors").stat().st_mtime_ns
    rest = resume_train_fleet(out, fleet=3, track_auc=True)
    assert [member.fleet for member in rest.members] == [1, 3, 1]  # the middle one had finished before the interruption
    assert (out / NAMES[0] / "model.safetensors").stat().st_mtime_ns == time
    assert_alike(out / NAMES[2], alone / NAMES[2])


@pytest.mark.parametrize(("number", "num_finished"), [(2, 0), (6, 0), (8, 0), (11, 2)])
def test_an_interrupted_fleet_of_students_is_finished_as_if_it_was_not(number, num_finished, alone, students, tmp_path):
    out, names = tmp_path / "out", [f"{name}-student-1-2-seed0" for name in TEACHERS]
    with pytest.raises(KeyboardInterrupt):
        distill_fleet(
            [alone / name for name in TEACHERS],
            [student_recipe("2->3")],
            out,
            fleet=3,
            track_auc=True,
            show_progress=stop_after(number),
        )
    finished = {path.parent: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    assert len(finished) == num_finished
    result = resume_distill_fleet(out, fleet=3, track_auc=True)
    assert [member.run for member in result.members] == [str(out / name) for name in names]
    for teacher, name in zip(TEACHERS, names, strict=True):
        assert_alike(out / name, students("2->3", teacher))
    for run, time in finished.items():
        assert (run / "model.safetensors").stat().st_mtime_ns == time


def test_a_student_of_an_interrupted_fleet_resumed_by_itself(alone, students, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        distill_fleet(
            [alone / name for name in TEACHERS], [student_recipe("2->3")], out, fleet=3, show_progress=stop_after(7)
        )
    run = out / f"{TEACHERS[2]}-student-1-2-seed0"
    assert not (run / "model.safetensors").exists()
    resume_distill(run)
    assert_weights_alike(run, students("2->3", TEACHERS[2]))


def test_a_finished_fleet_is_left_as_it_is(together):
    folder, result = together
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")}
    again = resume_train_fleet(folder, fleet=4)
    assert again.members == sorted(result.members, key=lambda member: member.run)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")} == before


def test_models_that_had_not_begun_are_trained_too(recipes, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_fleet(recipes[:3], out, fleet=1, show_progress=stop_after(1))
    result = resume_train_fleet(out, fleet=1)
    assert [member.run for member in result.members] == [str(out / name) for name in NAMES[:3]]


@pytest.mark.parametrize("what", ["its images are gone", "it is of another shape"])
def test_a_finished_run_does_not_hinder_the_others(what, recipes, source, tmp_path):
    out = tmp_path / "out"
    moved = tmp_path / "moved.npz"
    shutil.copy(source.removeprefix("npz:"), moved)
    model = {} if what == "its images are gone" else {"width": 2}
    train(make_recipe(f"npz:{moved}", "0", model=model), out / "finished")
    with pytest.raises(KeyboardInterrupt):
        train_fleet(recipes[:2], out, fleet=2, show_progress=stop_after(1))
    if what == "its images are gone":
        moved.unlink()
    assert len(resume_train_fleet(out, fleet=2).members) == 3


def spoil(monkeypatch, step, how):
    """Do something to the fleet's L_d at one step, from 1."""
    original, calls = ganomaly.discriminator_cross_entropy, []

    def loss(*arguments):
        calls.append(1)
        return how(original(*arguments)) if len(calls) == step else original(*arguments)

    monkeypatch.setattr(ganomaly, "discriminator_cross_entropy", loss)


@pytest.mark.parametrize("width", [1, 3])
def test_a_member_that_diverges_is_told_and_the_others_finish(width, source, recipes, alone, tmp_path):
    out = tmp_path / "out"
    wild = make_recipe(source, "1", learning_rate=1e30)
    result = train_fleet([recipes[0], wild, recipes[2]], out, fleet=width, track_auc=True)
    assert [member.run for member in result.members] == [str(out / NAMES[0]), str(out / NAMES[2])]
    ((run, message),) = result.failed.items()
    assert run == str(out / NAMES[1])
    assert "is nan at step 2 of stage alone (epoch 1). Lower the learning rate" in message
    assert message.endswith("it happened before anything was saved.")
    assert [path.name for path in (out / NAMES[1]).iterdir()] == ["recipe.yaml"]
    assert result.num_images == sum(member.num_images for member in result.members) == 160
    for name in (NAMES[0], NAMES[2]):
        assert_alike(out / name, alone / name)


def test_a_member_that_diverges_later_keeps_its_last_good_model(recipes, alone, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        # The second member is done after step 4; the first one's second epoch ends with step 8.
        spoil(patched, 8, lambda loss: loss * torch.tensor([torch.nan, 1]))
        result = train_fleet(recipes[:3], out, fleet=3, track_auc=True)
    message = result.failed[str(out / NAMES[0])]
    assert message.startswith("Losses must stay finite; s_ce is nan at step 8 of stage alone (epoch 2). ")
    model = out / NAMES[0] / "model.safetensors"
    assert message.endswith(f"; {model} holds the last good model, that of epoch 1 of stage 1.")
    assert [member.run for member in result.members] == [str(out / name) for name in NAMES[1:3]]
    assert not (out / NAMES[0] / "result.json").exists()
    for tensors in load_checkpoint(model).weights.values():
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    again = resume_train_fleet(out, fleet=3, track_auc=True)  # what spoiled it is gone
    assert [member.fleet for member in again.members] == [1, 3, 3]
    for name in NAMES[:3]:
        assert_alike(out / name, alone / name)


@pytest.mark.parametrize("to", [math.nan, math.inf])
def test_a_member_that_diverges_within_its_epoch_is_told_so(to, recipes, tmp_path, monkeypatch):
    # Step 7 closes the third member's epoch, not the first one's, whose loss was spoiled at step 6. A bare inf leaves
    # the weights as they are: the run must not be passed off as finished.
    out = tmp_path / "out"
    spoil(monkeypatch, 6, lambda loss: loss + torch.tensor([to, 0]) * (loss.detach() if math.isnan(to) else 1))
    result = train_fleet(recipes[:3], out, fleet=3, track_auc=True)
    assert [member.run for member in result.members] == [str(out / name) for name in NAMES[1:3]]
    assert f"s_ce is {to} at step 6 of stage alone (epoch 2)" in result.failed[str(out / NAMES[0])]


def test_a_student_that_diverges_is_told_and_the_others_finish(alone, students, tmp_path):
    recipes = [student_recipe("2"), student_recipe("2", seed=1, learning_rate=1e30)]
    result = distill_fleet([alone / name for name in TEACHERS[:2]], recipes, tmp_path / "out", fleet=4)
    assert [member.seed for member in result.members] == [0, 0]
    assert list(result.failed) == [str(tmp_path / "out" / f"{name}-student-1-2-seed1") for name in TEACHERS[:2]]
    for name in TEACHERS[:2]:
        assert_weights_alike(tmp_path / "out" / f"{name}-student-1-2-seed0", students("2", name))


@pytest.mark.parametrize("width", [0, -1])
def test_a_fleet_has_a_member(width, recipes, alone, tmp_path):
    with pytest.raises(KdganError, match=rf"at least 1 model; got {width}\. Give --fleet 1 or more"):
        train_fleet(recipes[:2], tmp_path / "out", fleet=width)
    with pytest.raises(KdganError, match=rf"at least 1 model; got {width}\."):
        distill_fleet([alone / name for name in TEACHERS], [student_recipe()], tmp_path / "out", fleet=width)
    assert nothing_at(tmp_path)


def give_memory_for(number, job, monkeypatch):
    """Let just so many models like this job's fit."""
    monkeypatch.setattr(fleet_module, "_free_bytes", lambda device: 10**15)
    for_one = 10**15 / fleet_module.num_that_fit(job)
    monkeypatch.setattr(fleet_module, "_free_bytes", lambda device: int((number + 0.5) * for_one))
    assert fleet_module.num_that_fit(job) == number


def test_a_fleet_must_fit_into_memory(recipes, alone, tmp_path, monkeypatch):
    give_memory_for(2, _prepare(recipes[0], None), monkeypatch)
    with pytest.raises(KdganError, match=r"half of the free memory; got 3, 2 fit\. Give --fleet 2 or less"):
        train_fleet(recipes[:3], tmp_path / "out", fleet=3)
    assert nothing_at(tmp_path)
    assert len(train_fleet(recipes[:2], tmp_path / "out", fleet=3).members) == 2  # more are allowed than there are
    monkeypatch.setattr(fleet_module, "_free_bytes", lambda device: 1)
    with pytest.raises(KdganError, match=r"got 2, 1 fit\. Give --fleet 1 or less"):
        distill_fleet([alone / name for name in TEACHERS], [student_recipe()], tmp_path / "students", fleet=2)
    assert nothing_at(tmp_path / "students")


def test_memory_counts_what_is_trained(alone, recipes, monkeypatch):
    monkeypatch.setattr(fleet_module, "_free_bytes", lambda device: 10**12)
    fits = {
        schedule: fleet_module.num_that_fit(
            _fresh(alone / NAMES[0], student_recipe(schedule), None, data=None, data_root=None)
        )
        for schedule in ("2", "2->3")
    }
    assert fits["2"] > fits["2->3"]  # which trains the teacher too
    small, large = (
        fleet_module.num_that_fit(_prepare(recipes[0].replace({"training": {"batch_size": size}}), None))
        for size in (8, 16)
    )
    assert small > large


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data": {"normal": "7"}}, "found none of class 7. Classes with images are 0, 1, 2"),
        ({"data": {"source": "npz:/nowhere.npz"}}, "found none at /nowhere.npz"),
        ({"model": {"width": 2}}, "differ in channels .architecture."),
        ({"model": {"latent_size": 4}}, "differ in latent_size .architecture."),
        ({"training": {"device": "cuda"}}, "The device must be there; torch finds no CUDA GPU. Leave --device out"),
    ],
    ids=str,
)
def test_what_is_wrong_with_one_of_several_is_told_before_anything_is_written(
    changes, match, recipes, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bad = recipes[1].replace(changes)
    for several in ([recipes[0], bad], [bad, recipes[0]]):
        with pytest.raises(KdganError, match=match) as info:
            train_fleet(several, tmp_path / "out", fleet=2)
        assert "\n" not in str(info.value)
    assert nothing_at(tmp_path)


def test_teachers_must_be_of_one_shape(source, alone, tmp_path):
    wide = tmp_path / "wide"
    train(make_recipe(source, "1", model={"width": 2}), wide)
    with pytest.raises(KdganError, match=r"and .*wide-student-1-2-seed0 differ in channels \(teacher architecture\)"):
        distill_fleet([alone / NAMES[0], wide], [student_recipe("2")], tmp_path / "out", fleet=2)
    assert nothing_at(tmp_path / "out")


@pytest.mark.parametrize("teacher", ["missing", "unfinished"])
def test_a_teacher_that_is_not_there_is_told_before_anything_is_written(teacher, alone, tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "recipe.yaml").write_text((alone / NAMES[0] / "recipe.yaml").read_text())
    match = (
        "must be a file; found none at .*missing" if teacher == "missing" else "must be finished; .*unfinished has no"
    )
    with pytest.raises(KdganError, match=match):
        distill_fleet([alone / NAMES[0], tmp_path / teacher], [student_recipe()], tmp_path / "out", fleet=2)
    assert nothing_at(tmp_path / "out")


@pytest.mark.parametrize("width", [None, 1, 3])
def test_a_folder_with_one_of_the_runs_takes_none_of_them(width, recipes, tmp_path):
    out = tmp_path / "out"
    train(recipes[1], out / NAMES[1])
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.*")}
    with pytest.raises(KdganError, match=f"needs a new folder; found a run in .*{NAMES[1]}"):
        train_fleet(recipes[:3], out, fleet=width, show_progress=lambda _: pytest.fail("trained"))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.*")} == before


def test_a_place_that_cannot_be_written_to(recipes, tmp_path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(KdganError, match="must be writable"):
        train_fleet(recipes[:2], tmp_path / "file", fleet=2, show_progress=lambda _: pytest.fail("trained"))
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"betas": [0.6, 0.9]}},
        {"training": {"ema_decay": 0}},
        {"objective": {"reduction": "norm"}},
        {"model": {"norm": "batch"}},
        {"model": {"family": "cvgad", "num_clusters": 2}},
    ],
    ids=str,
)
def test_what_can_be_no_fleet_is_told_before_anything_is_written(changes, recipes, tmp_path):
    others = recipes[0].replace(changes) if "model" in changes else recipes[0]
    with pytest.raises(KdganError):
        train_fleet([others, recipes[1].replace(changes)], tmp_path / "out", fleet=2)
    assert nothing_at(tmp_path / "out")


@pytest.mark.parametrize("width", [1, 2])
def test_two_runs_of_one_name_are_told_before_anything_is_written(width, alone, recipes, tmp_path):
    other = tmp_path / "elsewhere" / NAMES[0]
    train(recipes[1], other)
    with pytest.raises(KdganError):
        distill_fleet([alone / NAMES[0], other], [student_recipe("1")], tmp_path / "out", fleet=width)
    assert nothing_at(tmp_path / "out")


def test_there_must_be_something_to_train(alone, tmp_path):
    for start in (lambda: train_fleet([], tmp_path / "out"), lambda: distill_fleet([], None, tmp_path / "out")):
        with pytest.raises(KdganError):
            start()


@pytest.mark.parametrize("resume", [resume_train_fleet, resume_distill_fleet])
def test_there_must_be_runs_to_resume(resume, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(KdganError, match=rf"a folder of runs; found no run in {folder}\. Check the path"):
            resume(folder)
    assert nothing_at(tmp_path)


def test_runs_are_resumed_by_their_own_command(together, alone, students):
    with pytest.raises(KdganError, match=r"given a distillation; .* is a training\. Use train --resume instead"):
        resume_distill_fleet(together[0])
    with pytest.raises(KdganError, match=r"given a training; .* is a distillation\. Use distill --resume instead"):
        resume_train_fleet(students("2", TEACHERS[0]).parent)


def test_families_without_a_fleet_form_train_one_after_the_other(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_module, "_seconds_a_model", lambda jobs: pytest.fail("there is nothing to measure"))
    cvgad = [recipe.replace({"model": {"family": "cvgad", "num_clusters": 2}}) for recipe in recipes[:2]]
    result = train_fleet(cvgad, tmp_path / "out", track_auc=True)
    assert (result.fleet, [member.fleet for member in result.members]) == (1, [1, 1])
    for recipe, member in zip(cvgad, result.members, strict=True):
        again = train(recipe, tmp_path / "alone" / recipe.data.normal, track_auc=True)
        ours, theirs = (load_file(result.model) for result in (member, again))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    batch = [_prepare(recipe.replace({"model": {"norm": "batch"}}), None) for recipe in recipes[:2]]
    assert fleet_module._fastest_width(batch, 2) == 1


@pytest.mark.parametrize("width", [None, 2])
def test_a_teacher_without_a_fleet_form_that_moves_allows_no_fleet(width, source, tmp_path, monkeypatch):
    teacher = tmp_path / "cvgad"
    train(make_recipe(source, "1", model={"family": "cvgad", "num_clusters": 2}), teacher)
    monkeypatch.setattr(fleet_module, "_seconds_a_model", lambda jobs: 1 / len(jobs))  # the more the better
    section = {"student": {"width": 1, "family": "ede"}, "schedule": "2->3"}
    recipes = [
        parse_recipe({"distillation": section | {"training": TRAINING | {"seed": seed}}}, "test") for seed in (0, 1)
    ]
    if width is None:
        result = distill_fleet([teacher], recipes, tmp_path / "out")
        assert [member.epochs for member in result.members] == [4, 4]
    else:
        with pytest.raises(KdganError):
            distill_fleet([teacher], recipes, tmp_path / "out", fleet=width)
        assert nothing_at(tmp_path / "out")


def fastest(jobs, most, seconds, monkeypatch):
    """What is chosen where a model takes so long in a fleet of each width, and the widths that were tried."""
    tried = []

    def measure(some):
        tried.append(len(some))
        return seconds(len(some))

    monkeypatch.setattr(fleet_module, "_seconds_a_model", measure)
    return fleet_module._fastest_width(jobs, most), tried


@pytest.mark.parametrize(
    ("num_jobs", "most", "seconds", "chosen", "tried"),
    [
        (60, 1000, lambda width: 1 / width, 60, [1, 2, 5, 10, 20, 30, 50, 60]),
        (60, 7, lambda width: 1 / width, 7, [1, 2, 5, 7]),
        (4, 1000, lambda width: 1 / width, 4, [1, 2, 4]),
        (5, 5, lambda width: 1 / width, 5, [1, 2, 5]),
        (1, 1000, lambda width: 1 / width, 1, []),
        (60, 1, lambda width: 1 / width, 1, [1]),
        (60, 1000, lambda width: 1.0, 1, [1, 2]),
        (60, 1000, lambda width: 1 - 0.02 * width, 1, [1, 2]),  # each must gain 5 %
        (60, 1000, lambda width: abs(width - 10) + 1, 10, [1, 2, 5, 10, 20]),
    ],
)
def test_the_width_that_was_fastest_is_taken_and_never_more_than_fit(
    num_jobs, most, seconds, chosen, tried, recipes, monkeypatch
):
    jobs = [_prepare(recipes[0], None)] * num_jobs
    assert fastest(jobs, most, seconds, monkeypatch) == (chosen, tried)


def test_measuring_changes_nothing(recipes):
    jobs = [_prepare(recipe, None) for recipe in recipes[:2]]
    states = [{n: w.clone() for n, w in job.schedule.student.gan.generator.state_dict().items()} for job in jobs]
    before = torch.get_rng_state(), torch.get_num_threads()
    assert fleet_module._fastest_width(jobs, 2) in (1, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    for job, state in zip(jobs, states, strict=True):
        torch.testing.assert_close(job.schedule.student.gan.generator.state_dict(), state, rtol=0, atol=0)
        assert job.schedule.position == (0, 0)
        assert job.schedule.student.state_dict()["optimizers"] == {}


def test_progress_is_that_of_all_fleets(recipes, tmp_path):
    shown = []
    train_fleet(recipes[:3], tmp_path / "out", fleet=2, track_auc=True, show_progress=shown.append)
    total = 2 * sum(NUM_TRAIN)
    assert {progress.images_total for progress in shown} == {total}
    done = [progress.images_done for progress in shown]
    assert done == sorted(done)
    assert done[-1] == total
    assert all(progress.images_per_s > 0 for progress in shown)
    assert all(0 <= progress.auc <= 1 for progress in shown if progress.record.epoch_done)
    assert [(p.run, p.record.epoch) for p in shown[:4]] == [
        (NAMES[1], 1), (NAMES[0], 1), (NAMES[1], 2), (NAMES[0], 2),
    ]  # fmt: skip


@pytest.mark.parametrize("width", [1, 2])
def test_every_record_says_whose_it_is(width, recipes, tmp_path):
    shown = []
    train_fleet(recipes[:3], tmp_path / "out", fleet=width, show_progress=shown.append)
    assert {progress.run for progress in shown} == set(NAMES[:3])


def test_progress_counts_on_after_a_resumption(recipes, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_fleet(recipes[:3], out, fleet=3, show_progress=stop_after(3))
    shown = []
    resume_train_fleet(out, fleet=3, show_progress=shown.append)
    # The middle one is finished; of the first one epoch is done.
    assert {progress.images_total for progress in shown} == {2 * (30 + 50)}
    assert shown[0].images_done > 30
    assert shown[-1].images_done == 2 * (30 + 50)


def test_one_model_has_a_run_without_a_name(recipes, tmp_path):
    shown = []
    train(recipes[1], tmp_path / "run", show_progress=shown.append)
    assert [progress.run for progress in shown] == [None, None]


@pytest.mark.parametrize("content", ["", "[]", '{"auc": 1}', '{"run": '])
def test_a_damaged_result_is_told(content, recipes, tmp_path):
    train(recipes[1], tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(content)
    with pytest.raises(KdganError, match=r"result\.json must be one that train or distill wrote"):
        resume_train(tmp_path / "run")


def test_a_result_tells_the_threads_it_was_trained_with(recipes, tmp_path):
    several = [recipes[0].replace({"training": {"threads": 1}}), recipes[1].replace({"training": {"threads": 2}})]
    result = train_fleet(several, tmp_path / "out", fleet=2)
    assert [member.threads for member in result.members] == [1, 1]
