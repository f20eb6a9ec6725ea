"""Fleets of runs: each member equals its single run, finished runs are kept, failures are reported per member."""

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

from kdgan_compress.accel import engine, teacher_cache
from kdgan_compress.api.distill import distill
from kdgan_compress.api.resume import resume
from kdgan_compress.api.train import train
from kdgan_compress.distillation import stage_run, train_log, trainer
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import scoring
from kdgan_compress.experiment import fleet_size as fleet_module
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.job import distillation_job, training_job
from kdgan_compress.experiment.recipe import load_recipe, parse_recipe
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.gans import build, ede

pytestmark = pytest.mark.usefixtures("float64", "quick_runs")

SIZES = (30, 13, 55)
"""Images per class; 5 of the last one are held out. At batch size 8 their epochs have 4, 2 and 7 steps."""

NUM_TRAIN = (30, 13, 50)
MEMBERS = [("0", 0), ("1", 0), ("2", 0), ("0", 1)]
NAMES = [f"set-{normal}-ede-1-2-seed{seed}" for normal, seed in MEMBERS]
TEACHERS = NAMES[:3]
TOLERANCE = 1e-8
"""Largest difference of weights: a fleet adds in another order."""

MODEL = {"width": 1, "image_size": 16, "latent_size": 8}
BATCH_SIZE = 8
TRAINING = {"batch_size": BATCH_SIZE, "epochs": 2, "threads": 1}
FILES = {
    *("recipe.yaml", "model.safetensors", "state.pt", "metrics.jsonl"),
    *("result.json", "curves.png", "scores.png", "scores.npz"),
}
TIMES = ("seconds", "images_per_s")


@pytest.fixture(scope="module")
def float64():
    """Float64 throughout, since Adam and L1 amplify rounding differences of tiny gradients."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (trainer, stage_run, engine, teacher_cache, scoring):
            patched.setattr(module, "normalize_images", lambda images: images.double() / 127.5 - 1)
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory, float64):
    """Three classes that differ in size and brightness."""
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
            "score": {"type": "norm"},  # a fitted statistic amplifies rounding differences
        },
        "test",
    )


def student_recipe(schedule="2->3", seed=0, **training):
    return make_recipe("sample", None, seed, schedule, **training)


@pytest.fixture(scope="module")
def recipes(source):
    return [make_recipe(source, normal, seed) for normal, seed in MEMBERS]


@pytest.fixture(scope="module")
def single(recipes, tmp_path_factory):
    """A folder with each member trained as a single run."""
    folder = tmp_path_factory.mktemp("single")
    for recipe, name in zip(recipes, NAMES, strict=True):
        train(recipe, folder / name, track_auc=True, raw=True)
    return folder


@pytest.fixture(scope="module")
def together(recipes, tmp_path_factory):
    """The folder and the result of all members trained together."""
    folder = tmp_path_factory.mktemp("together")
    return folder, train(recipes, folder, fleet_size=len(recipes), track_auc=True, raw=True)


@pytest.fixture(scope="module")
def students(single, tmp_path_factory):
    """Distils one of the trained members as a single run; the same one only once."""
    folder, made = tmp_path_factory.mktemp("students"), set()

    def distilled(schedule, name, seed=0, **student):
        recipe = student_recipe(schedule, seed).replace({"distillation": {"student": student}})
        run = folder / "-".join([str(len(schedule)), schedule[0], *student.values()]) / f"{name}-student-1-2-seed{seed}"
        if run not in made:
            distill(single / name, recipe, run, track_auc=True, raw=True)
            made.add(run)
        return run

    return distilled


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def close(value):
    return pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value


def assert_weights_alike(actual, expected):
    for name in ("model.safetensors", "teacher.safetensors"):
        assert (actual / name).exists() == (expected / name).exists()
        if (expected / name).exists():
            torch.testing.assert_close(load_file(actual / name), load_file(expected / name), rtol=0, atol=TOLERANCE)


def assert_alike(actual, expected):
    """Two run folders have the same training, to float rounding."""
    names = {path.name for path in actual.iterdir()} - {"fleet.json"}
    assert names == {path.name for path in expected.iterdir()} >= FILES
    a, b = (load_recipe(str(run / "recipe.yaml")).model_dump(mode="json") for run in (actual, expected))
    assert a == b
    assert_weights_alike(actual, expected)
    for name in ("model.safetensors", "teacher.safetensors"):
        if (expected / name).exists():
            a, b = load_checkpoint(actual / name), load_checkpoint(expected / name)
            assert a.threshold == pytest.approx(b.threshold, rel=1e-6)
            for field in ("architecture", "data", "threshold_rule", "provenance"):
                assert getattr(a, field) == getattr(b, field)
    for a, b in zip(lines_of(actual), lines_of(expected), strict=True):
        assert a.keys() == b.keys()
        assert {k: v for k, v in a.items() if k not in TIMES} == {k: close(v) for k, v in b.items() if k not in TIMES}
    a, b = (json.loads((run / "result.json").read_text()) for run in (actual, expected))
    assert a.keys() == b.keys()
    for key in ("epochs", "num_images", "seed", "threads", "machine"):
        assert a[key] == b[key]
    for key in ("auc", "auc_raw", "best_epoch_auc_oracle"):
        assert a[key] == pytest.approx(b[key])


def nothing_at(folder):
    return not folder.exists() or list(folder.iterdir()) == []


def test_the_comparison_distinguishes_trainings(single):
    weights = [load_file(single / name / "model.safetensors") for name in NAMES]
    for other in weights[1:]:  # the same start and other images, or another start
        assert max(float((weights[0][name] - other[name]).abs().max()) for name in other) > 50 * TOLERANCE
    start = build(load_checkpoint(single / NAMES[0] / "model.safetensors").architecture, seed=0).generator
    moved = [
        float((start.state_dict()[n] - weights[0][f"raw.{n}"]).abs().max()) for n in dict(start.named_parameters())
    ]
    assert max(moved) > 100 * TOLERANCE


def test_each_member_equals_its_single_run(together, single):
    folder, result = together
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    assert [member.run for member in result.members] == [str(folder / name) for name in NAMES]
    for name, member in zip(NAMES, result.members, strict=True):
        assert_alike(folder / name, single / name)
        assert json.loads((folder / name / "result.json").read_text()) == dataclasses.asdict(
            dataclasses.replace(member, run=".", model="model.safetensors")
        )
        assert member.fleet == len(NAMES)
        assert member.model == str(folder / name / "model.safetensors")
        assert json.loads((single / name / "result.json").read_text())["fleet"] == 1


def test_a_fleet_result_has_the_totals_of_its_members(together):
    _, result = together
    assert result.failed == {}
    assert result.fleet == len(NAMES)
    expected = [2 * NUM_TRAIN[int(normal)] for normal, _ in MEMBERS]
    assert [member.num_images for member in result.members] == expected
    assert result.num_images == sum(expected)
    assert all(member.seconds > 0 for member in result.members)
    assert result.seconds == pytest.approx(sum(member.seconds for member in result.members))
    assert result.images_per_s == pytest.approx(result.num_images / result.seconds)


@pytest.mark.parametrize(("size", "sizes"), [(1, [1, 1, 1]), (2, [2, 2, 1]), (3, [3, 3, 3])])
def test_a_smaller_size_gives_several_fleets_and_the_same_models(recipes, single, tmp_path, size, sizes):
    result = train(recipes[:3], tmp_path / "out", fleet_size=size, track_auc=True, raw=True)
    assert result.fleet == size
    assert [member.fleet for member in result.members] == sizes
    for name in NAMES[:3]:
        assert_alike(tmp_path / "out" / name, single / name)


def test_a_size_above_the_number_of_models_is_reported_as_that_number(recipes, tmp_path):
    result = train(recipes[1:3], tmp_path / "out", fleet_size=50)
    assert [member.fleet for member in result.members] == [2, 2]
    assert result.fleet == 2


def test_without_a_size_one_is_chosen_and_the_models_are_the_same(recipes, single, tmp_path):
    before = torch.get_rng_state()
    result = train(recipes[:2], tmp_path / "out", track_auc=True, raw=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.fleet in (1, 2)
    for name in NAMES[:2]:
        assert_alike(tmp_path / "out" / name, single / name)


def test_members_may_differ_in_length_rates_and_weights(source, tmp_path):
    recipes = [
        make_recipe(source, "0", epochs=1),
        make_recipe(source, "1", epochs=5, learning_rate=4e-3, learning_rate_decay="constant"),
        make_recipe(source, "2", seed=3, batch_size=5).replace({"objective": {"w_con": 3, "w_adv": 0.5}}),
    ]
    result = train(recipes, tmp_path / "out", fleet_size=3, track_auc=True, raw=True)
    assert [member.epochs for member in result.members] == [1, 5, 2]
    for recipe, member in zip(recipes, result.members, strict=True):
        alone = train(recipe, tmp_path / f"single-{recipe.data.normal}", track_auc=True, raw=True)
        assert_alike(Path(member.run), Path(alone.run))


def test_images_of_a_folder_and_of_an_npz_file_train_together(source, tmp_path):
    good = tmp_path / "photos" / "train" / "good"
    good.mkdir(parents=True)
    for number in range(4):
        (good / f"{number}.pgm").write_bytes(b"P5 20 20 255\n" + bytes([60 * number] * 400))
    folder = make_recipe(f"folder:{tmp_path / 'photos'}", None)
    result = train([folder, make_recipe(source, "1")], tmp_path / "out", fleet_size=2)
    assert [member.auc is None for member in result.members] == [True, False]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "photos-ede-1-2-seed0",
        "set-1-ede-1-2-seed0",
    ]


@pytest.mark.parametrize("schedule", ["1", "2", "2->3"])
def test_each_student_equals_its_single_run(schedule, single, students, tmp_path):
    out = tmp_path / "out"
    result = distill(
        [single / name for name in TEACHERS], [student_recipe(schedule)], out, fleet_size=3, track_auc=True, raw=True
    )
    names = [f"{name}-student-1-2-seed0" for name in TEACHERS]
    assert [member.run for member in result.members] == [str(out / name) for name in names]
    assert [(member.fleet, member.epochs) for member in result.members] == [(3, 4 if "->" in schedule else 2)] * 3
    for teacher, name in zip(TEACHERS, names, strict=True):
        assert (out / name / "teacher.safetensors").exists() == ("3" in schedule)
        assert_alike(out / name, students(schedule, teacher))
        assert load_checkpoint(out / name / "model.safetensors").provenance["teacher"] == str(single / teacher)


@pytest.mark.parametrize("schedule", ["2", "2->3"])
def test_students_with_batch_norm_train_as_a_fleet(schedule, single, students, tmp_path):
    recipe = student_recipe(schedule).replace({"distillation": {"student": {"norm": "batch"}}})
    teachers = [single / name for name in TEACHERS[:2]]
    result = distill(teachers, recipe, tmp_path / "out", fleet_size=2, track_auc=True, raw=True)
    assert [member.fleet for member in result.members] == [2, 2]
    assert result.note is None
    for name, member in zip(TEACHERS, result.members, strict=False):
        assert load_checkpoint(Path(member.model)).architecture.norm == "batch"
        assert_alike(Path(member.run), students(schedule, name, norm="batch"))


def test_a_teacher_that_is_trained_further_has_other_weights(single, students):
    for name in TEACHERS:
        after = load_file(students("2->3", name) / "teacher.safetensors")
        before = load_file(single / name / "model.safetensors")
        assert max(float((after[f"raw.{n}"] - before[f"raw.{n}"]).abs().max()) for n in ("decoder.head.weight",)) > 0


@pytest.mark.parametrize("size", [4, 3])
def test_several_teachers_and_seeds(size, single, students, tmp_path):
    out, teachers = tmp_path / "out", TEACHERS[:2]
    recipes = [student_recipe("2", seed) for seed in (0, 1)]
    result = distill([single / name for name in teachers], recipes, out, fleet_size=size, track_auc=True, raw=True)
    pairs = [(name, seed) for name in teachers for seed in (0, 1)]
    assert [member.run for member in result.members] == [
        str(out / f"{name}-student-1-2-seed{seed}") for name, seed in pairs
    ]
    for (name, seed), member in zip(pairs, result.members, strict=True):
        assert_alike(out / f"{name}-student-1-2-seed{seed}", students("2", name, seed))
        assert member.teacher_cache.startswith("computed" if seed == 0 else "shared with another run")


def test_students_with_different_schedules_are_distilled_together(single, students, tmp_path):
    recipes = [student_recipe("2->3"), student_recipe("1", seed=1)]
    distill([single / TEACHERS[0]], recipes, tmp_path / "out", fleet_size=2, track_auc=True, raw=True)
    for schedule, seed in (("2->3", 0), ("1", 1)):
        run = tmp_path / "out" / f"{TEACHERS[0]}-student-1-2-seed{seed}"
        assert_alike(run, students(schedule, TEACHERS[0], seed))


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6])
def test_an_interrupted_fleet_ends_as_an_uninterrupted_one(number, recipes, single, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(recipes[:3], out, fleet_size=3, track_auc=True, raw=True, show_progress=stop_after(number))
    assert not list(out.glob("*/model.safetensors"))  # before all are trained, none is finished
    result = resume(out, fleet_size=3, track_auc=True, raw=True)
    assert [member.run for member in result.members] == [str(out / name) for name in NAMES[:3]]
    assert [member.fleet for member in result.members] == [3, 3, 3]
    assert result.failed == {}
    for name in NAMES[:3]:
        assert_alike(out / name, single / name)


def test_an_interrupted_fleet_can_be_resumed_in_any_size(recipes, single, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(recipes[:3], out, fleet_size=3, track_auc=True, raw=True, show_progress=stop_after(2))
    with pytest.raises(KeyboardInterrupt):  # and again
        resume(out, fleet_size=3, track_auc=True, raw=True, show_progress=stop_after(1))
    assert {name: len(lines_of(out / name)) for name in NAMES[:3]} == {NAMES[0]: 1, NAMES[1]: 2, NAMES[2]: 0}
    result = resume(out, fleet_size=2, track_auc=True, raw=True)
    assert [member.epochs for member in result.members] == [2, 2, 2]
    for name in NAMES[:3]:
        assert_alike(out / name, single / name)


def test_an_interrupted_epoch_is_repeated(recipes, single, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(train_log, "RECORD_EVERY_IMAGES", 8)
        with pytest.raises(KeyboardInterrupt):
            train(recipes[:3], out, fleet_size=3, track_auc=True, raw=True, show_progress=stop_after(6, NAMES[0]))
    assert len(lines_of(out / NAMES[0])) == 1  # an epoch has 4 records
    resume(out, fleet_size=3, track_auc=True, raw=True)
    for name in NAMES[:3]:
        assert_alike(out / name, single / name)


def test_a_member_resumed_as_a_single_run(recipes, single, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(recipes[:3], out, fleet_size=3, track_auc=True, raw=True, show_progress=stop_after(3))
    assert not (out / NAMES[0] / "model.safetensors").exists()
    result = resume(out / NAMES[0], track_auc=True, raw=True)
    assert (result.fleet, result.epochs) == (1, 2)
    assert_alike(out / NAMES[0], single / NAMES[0])
    time = (out / NAMES[0] / "model.safetensors").stat().st_mtime_ns
    rest = resume(out, fleet_size=3, track_auc=True, raw=True)
    assert [member.fleet for member in rest.members] == [1, 2, 2]
    assert (out / NAMES[0] / "model.safetensors").stat().st_mtime_ns == time
    assert_alike(out / NAMES[2], single / NAMES[2])


@pytest.mark.parametrize("number", [2, 6, 8, 11])
def test_an_interrupted_fleet_of_students_ends_as_an_uninterrupted_one(number, single, students, tmp_path):
    out, names = tmp_path / "out", [f"{name}-student-1-2-seed0" for name in TEACHERS]
    with pytest.raises(KeyboardInterrupt):
        distill(
            [single / name for name in TEACHERS],
            [student_recipe("2->3")],
            out,
            fleet_size=3,
            track_auc=True,
            raw=True,
            show_progress=stop_after(number),
        )
    result = resume(out, fleet_size=3, track_auc=True, raw=True)
    assert [member.run for member in result.members] == [str(out / name) for name in names]
    for teacher, name in zip(TEACHERS, names, strict=True):
        assert_alike(out / name, students("2->3", teacher))


def test_a_student_of_an_interrupted_fleet_resumed_as_a_single_run(single, students, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        distill(
            [single / name for name in TEACHERS],
            [student_recipe("2->3")],
            out,
            fleet_size=3,
            show_progress=stop_after(7),
        )
    run = out / f"{TEACHERS[2]}-student-1-2-seed0"
    assert not (run / "model.safetensors").exists()
    resume(run)
    assert_weights_alike(run, students("2->3", TEACHERS[2]))


def test_resuming_a_finished_fleet_changes_nothing(together):
    folder, result = together
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")}
    again = resume(folder, fleet_size=4)
    assert again.members == sorted(result.members, key=lambda member: member.run)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")} == before


def test_runs_that_had_not_started_are_trained_too(recipes, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(recipes[:3], out, fleet_size=1, show_progress=stop_after(1))
    result = resume(out, fleet_size=1)
    assert [member.run for member in result.members] == [str(out / name) for name in NAMES[:3]]


@pytest.mark.parametrize("problem", ["its images are gone", "it has another shape"])
def test_a_finished_run_does_not_affect_the_others(problem, recipes, source, tmp_path):
    out = tmp_path / "out"
    moved = tmp_path / "moved.npz"
    shutil.copy(source.removeprefix("npz:"), moved)
    model = {} if problem == "its images are gone" else {"width": 2}
    train(make_recipe(f"npz:{moved}", "0", model=model), out / "finished")
    with pytest.raises(KeyboardInterrupt):
        train(recipes[:2], out, fleet_size=2, show_progress=stop_after(1))
    if problem == "its images are gone":
        moved.unlink()
    assert len(resume(out, fleet_size=2).members) == 3


def spoil(monkeypatch, step, how):
    """Change the fleet's values of L_d at one step, from 1; they are (B, K)."""
    original, calls = ede.discriminator_cross_entropy, []

    def loss(*arguments):
        calls.append(1)
        value = original(*arguments)
        return how(value.view(BATCH_SIZE, -1)).flatten() if len(calls) == step else value

    monkeypatch.setattr(ede, "discriminator_cross_entropy", loss)


@pytest.mark.parametrize("size", [1, 3])
def test_a_member_that_diverges_is_reported_and_the_others_finish(size, source, recipes, single, tmp_path):
    out = tmp_path / "out"
    wild = make_recipe(source, "1", learning_rate=1e300)
    result = train([recipes[0], wild, recipes[2]], out, fleet_size=size, track_auc=True, raw=True)
    assert [member.run for member in result.members] == [str(out / NAMES[0]), str(out / NAMES[2])]
    ((run, message),) = result.failed.items()
    assert run == str(out / NAMES[1])
    assert "is nan at step 2 of stage from-scratch (epoch 1). Lower the learning rate" in message
    assert message.endswith("nothing had been saved yet.")
    assert sorted(path.name for path in (out / NAMES[1]).iterdir()) == ["failed.txt", "fleet.json", "recipe.yaml"]
    assert result.num_images == sum(member.num_images for member in result.members) == 160
    for name in (NAMES[0], NAMES[2]):
        assert_alike(out / name, single / name)


def test_a_member_that_diverges_later_keeps_its_last_good_model(recipes, single, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        # The second member is done after step 4; the first one's second epoch ends with step 8.
        spoil(patched, 8, lambda loss: loss * torch.tensor([torch.nan, 1]))
        result = train(recipes[:3], out, fleet_size=3, track_auc=True, raw=True)
    message = result.failed[str(out / NAMES[0])]
    assert message.startswith("Losses must stay finite; s_ce is nan at step 8 of stage from-scratch (epoch 2). ")
    model = out / NAMES[0] / "model.safetensors"
    assert message.endswith(f"; {model} holds the last good model, of epoch 1 of stage 1.")
    assert [member.run for member in result.members] == [str(out / name) for name in NAMES[1:3]]
    assert not (out / NAMES[0] / "result.json").exists()
    for tensors in load_checkpoint(model).weights.values():
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    again = resume(out, fleet_size=3, track_auc=True, raw=True)  # without the spoiled loss
    assert [member.fleet for member in again.members] == [1, 3, 3]
    for name in NAMES[:3]:
        assert_alike(out / name, single / name)


@pytest.mark.parametrize("to", [math.nan, math.inf])
def test_a_member_that_diverges_within_its_epoch_is_reported(to, recipes, tmp_path, monkeypatch):
    # Step 7 ends the third member's epoch, not the first one's, whose loss is spoiled at step 6. An inf without
    # gradient does not change the weights: the run must still not count as finished.
    out = tmp_path / "out"
    spoil(monkeypatch, 6, lambda loss: loss + torch.tensor([to, 0]) * (loss.detach() if math.isnan(to) else 1))
    result = train(recipes[:3], out, fleet_size=3, track_auc=True, raw=True)
    assert [member.run for member in result.members] == [str(out / name) for name in NAMES[1:3]]
    assert f"s_ce is {to} at step 6 of stage from-scratch (epoch 2)" in result.failed[str(out / NAMES[0])]


def test_a_student_that_diverges_is_reported_and_the_others_finish(single, students, tmp_path):
    recipes = [student_recipe("2"), student_recipe("2", seed=1, learning_rate=1e300)]
    result = distill([single / name for name in TEACHERS[:2]], recipes, tmp_path / "out", fleet_size=4)
    assert [member.seed for member in result.members] == [0, 0]
    assert list(result.failed) == [str(tmp_path / "out" / f"{name}-student-1-2-seed1") for name in TEACHERS[:2]]
    for name in TEACHERS[:2]:
        assert_weights_alike(tmp_path / "out" / f"{name}-student-1-2-seed0", students("2", name))


@pytest.mark.parametrize("size", [0, -1])
def test_a_fleet_needs_a_model(size, recipes, single, tmp_path):
    with pytest.raises(KdganError, match=rf"at least 1 model; got {size}\. Give --fleet 1 or more"):
        train(recipes[:2], tmp_path / "out", fleet_size=size)
    with pytest.raises(KdganError, match=rf"at least 1 model; got {size}\."):
        distill([single / name for name in TEACHERS], [student_recipe()], tmp_path / "out", fleet_size=size)
    assert nothing_at(tmp_path)


def give_memory_for(number, job, monkeypatch):
    """Set the free memory so that this many models like the job's fit."""
    monkeypatch.setattr(fleet_module, "_free_bytes", lambda device: 10**15)
    for_one = 10**15 / fleet_module.max_fleet_size(job)
    monkeypatch.setattr(fleet_module, "_free_bytes", lambda device: int((number + 0.5) * for_one))
    assert fleet_module.max_fleet_size(job) == number


def test_a_fleet_has_to_fit_into_memory(recipes, single, tmp_path, monkeypatch):
    give_memory_for(2, training_job(recipes[0]), monkeypatch)
    with pytest.raises(KdganError, match=r"half of the free memory; got 3, 2 fit\. Give --fleet 2 or less"):
        train(recipes[:3], tmp_path / "out", fleet_size=3)
    assert nothing_at(tmp_path)
    assert len(train(recipes[:2], tmp_path / "out", fleet_size=3).members) == 2  # a size above the number of models
    monkeypatch.setattr(fleet_module, "_free_bytes", lambda device: 1)
    with pytest.raises(KdganError, match=r"got 2, 1 fit\. Give --fleet 1 or less"):
        distill([single / name for name in TEACHERS], [student_recipe()], tmp_path / "students", fleet_size=2)
    assert nothing_at(tmp_path / "students")


def test_memory_includes_everything_that_is_trained(single, recipes, monkeypatch):
    monkeypatch.setattr(fleet_module, "_free_bytes", lambda device: 10**12)
    fits = {
        schedule: fleet_module.max_fleet_size(distillation_job(single / NAMES[0], student_recipe(schedule)))
        for schedule in ("2", "2->3")
    }
    assert fits["2"] > fits["2->3"]  # which trains the teacher too
    small, large = (
        fleet_module.max_fleet_size(training_job(recipes[0].replace({"training": {"batch_size": size}})))
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
        ({"training": {"device": "cuda"}}, "torch finds no CUDA GPU"),
    ],
    ids=str,
)
def test_a_problem_of_one_of_several_is_reported_before_anything_is_written(
    changes, match, recipes, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bad = recipes[1].replace(changes)
    for several in ([recipes[0], bad], [bad, recipes[0]]):
        with pytest.raises(KdganError, match=match) as info:
            train(several, tmp_path / "out", fleet_size=2)
        assert "\n" not in str(info.value)
    assert nothing_at(tmp_path)


def test_teachers_need_one_shape(source, single, tmp_path):
    wide = tmp_path / "wide"
    train(make_recipe(source, "1", model={"width": 2}), wide)
    with pytest.raises(
        KdganError, match=r"one shape.*and .*wide-student-1-2-seed0 differ in channels \(teacher architecture\)"
    ):
        distill([single / NAMES[0], wide], [student_recipe("2")], tmp_path / "out", fleet_size=2)
    assert nothing_at(tmp_path / "out")


@pytest.mark.parametrize("teacher", ["missing", "unfinished"])
def test_a_missing_teacher_is_reported_before_anything_is_written(teacher, single, tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "recipe.yaml").write_text((single / NAMES[0] / "recipe.yaml").read_text())
    match = (
        "must be a file; found none at .*missing" if teacher == "missing" else "must be finished; .*unfinished has no"
    )
    with pytest.raises(KdganError, match=match):
        distill([single / NAMES[0], tmp_path / teacher], [student_recipe()], tmp_path / "out", fleet_size=2)
    assert nothing_at(tmp_path / "out")


@pytest.mark.parametrize("size", [None, 1, 3])
def test_an_existing_run_of_one_of_them_refuses_all(size, recipes, tmp_path):
    out = tmp_path / "out"
    train(recipes[1], out / NAMES[1])
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.*")}
    with pytest.raises(KdganError, match=f"needs a new folder; found a run in .*{NAMES[1]}"):
        train(recipes[:3], out, fleet_size=size, show_progress=lambda _: pytest.fail("trained"))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.*")} == before


def test_a_path_that_cannot_be_written(recipes, tmp_path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(KdganError, match="must be writable"):
        train(recipes[:2], tmp_path / "file", fleet_size=2, show_progress=lambda _: pytest.fail("trained"))
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"betas": [0.6, 0.9]}},
        {"training": {"ema_decay": 0}},
        {"objective": {"distance": "norm"}},
        {"model": {"family": "cvgad", "num_clusters": 2}},
    ],
    ids=str,
)
def test_models_that_cannot_train_together_are_refused_before_anything_is_written(changes, recipes, tmp_path):
    others = recipes[0].replace(changes) if "model" in changes else recipes[0]
    with pytest.raises(KdganError):
        train([others, recipes[1].replace(changes)], tmp_path / "out", fleet_size=2)
    assert nothing_at(tmp_path / "out")


@pytest.mark.parametrize("size", [1, 2])
def test_two_runs_of_one_name_are_refused_before_anything_is_written(size, single, recipes, tmp_path):
    other = tmp_path / "elsewhere" / NAMES[0]
    train(recipes[1], other)
    with pytest.raises(KdganError):
        distill([single / NAMES[0], other], [student_recipe("1")], tmp_path / "out", fleet_size=size)
    assert nothing_at(tmp_path / "out")


def test_an_empty_list_is_refused(single, tmp_path):
    for start in (lambda: train([], tmp_path / "out"), lambda: distill([], None, tmp_path / "out")):
        with pytest.raises(KdganError, match="There is nothing to train"):
            start()
    assert nothing_at(tmp_path)


@pytest.mark.parametrize("command", ["train", "distill", None])
def test_resuming_needs_runs(command, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(KdganError, match=rf"a folder of runs; found no run in {folder}\. Check the path"):
            resume(folder, command=command)
    assert nothing_at(tmp_path)


def test_runs_are_resumed_by_the_command_that_began_them(together, single, students):
    with pytest.raises(KdganError, match=r"distill --resume cannot finish a run of train; .*\. Use train --resume"):
        resume(together[0], command="distill")
    with pytest.raises(KdganError, match=r"train --resume cannot finish a run of distill; .*\. Use distill --resume"):
        resume(students("2", TEACHERS[0]).parent, command="train")


def test_a_folder_of_runs_is_resumed_without_those_of_the_other_command_and_of_trials(recipes, tmp_path, students):
    runs = tmp_path / "runs"
    shutil.copytree(students("2", TEACHERS[0]), runs / "student")
    (runs / "student" / "result.json").unlink()
    train(recipes[:2], runs)
    trial = RunFolder(runs / "trials" / "trial-0")
    trial.create(recipes[0].to_yaml())
    shutil.copy(trial.recipe, runs / "trials")
    result = resume(runs, command="train")
    assert sorted(Path(member.run).name for member in result.members) == sorted(
        path.name for path in runs.iterdir() if path.name not in ("student", "trials")
    )
    assert [Path(member.run).name for member in resume(runs / "trials").members] == ["trial-0"]
    assert not (runs / "student" / "result.json").exists()


def test_families_that_cannot_train_together_train_one_by_one(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_module, "_seconds_per_model", lambda jobs: pytest.fail("measured"))
    cvgad = [recipe.replace({"model": {"family": "cvgad", "num_clusters": 2}}) for recipe in recipes[:2]]
    result = train(cvgad, tmp_path / "out", track_auc=True, raw=True)
    assert (result.fleet, [member.fleet for member in result.members]) == (1, [1, 1])
    assert result.note
    assert "\n" not in result.note
    for recipe, member in zip(cvgad, result.members, strict=True):
        again = train(recipe, tmp_path / "single" / recipe.data.normal, track_auc=True, raw=True)
        torch.testing.assert_close(load_file(member.model), load_file(again.model), rtol=0, atol=0)


@pytest.mark.parametrize("size", [None, 2])
def test_a_trained_teacher_that_cannot_train_in_a_fleet_allows_no_fleet(size, source, tmp_path, monkeypatch):
    teacher = tmp_path / "cvgad"
    train(make_recipe(source, "1", model={"family": "cvgad", "num_clusters": 2}), teacher)
    monkeypatch.setattr(fleet_module, "_seconds_per_model", lambda jobs: 1 / len(jobs))  # larger is faster
    section = {"student": {"width": 1, "family": "ede"}, "schedule": "2->3"}
    recipes = [
        parse_recipe(
            {"distillation": section | {"training": TRAINING | {"seed": seed}}, "score": {"type": "norm"}}, "test"
        )
        for seed in (0, 1)
    ]
    if size is None:
        result = distill([teacher], recipes, tmp_path / "out")
        assert [member.epochs for member in result.members] == [4, 4]
    else:
        with pytest.raises(KdganError):
            distill([teacher], recipes, tmp_path / "out", fleet_size=size)
        assert nothing_at(tmp_path / "out")


def fastest(jobs, max_size, seconds, monkeypatch):
    """The chosen size, given the time per model at each size, and the sizes that were tried."""
    tried = []

    def measure(some):
        tried.append(len(some))
        return seconds(len(some))

    monkeypatch.setattr(fleet_module, "_seconds_per_model", measure)
    return fleet_module._fastest_size(jobs, max_size), tried


@pytest.mark.parametrize(
    ("num_jobs", "max_size", "seconds", "chosen", "tried"),
    [
        (60, 1000, lambda size: 1 / size, 60, [1, 2, 5, 10, 20, 30, 50, 60]),
        (60, 7, lambda size: 1 / size, 7, [1, 2, 5, 7]),
        (4, 1000, lambda size: 1 / size, 4, [1, 2, 4]),
        (5, 5, lambda size: 1 / size, 5, [1, 2, 5]),
        (1, 1000, lambda size: 1 / size, 1, []),
        (60, 1, lambda size: 1 / size, 1, [1]),
        (60, 1000, lambda size: 1.0, 1, [1, 2]),
        (60, 1000, lambda size: 1 - 0.02 * size, 1, [1, 2]),  # each step has to gain 5 %
        (60, 1000, lambda size: abs(size - 10) + 1, 10, [1, 2, 5, 10, 20]),
    ],
)
def test_the_fastest_size_is_taken_and_never_more_than_fit(
    num_jobs, max_size, seconds, chosen, tried, recipes, monkeypatch
):
    jobs = [training_job(recipes[0])] * num_jobs
    assert fastest(jobs, max_size, seconds, monkeypatch) == (chosen, tried)


def test_measuring_changes_nothing(recipes):
    jobs = [training_job(recipe) for recipe in recipes[:2]]
    states = [{n: w.clone() for n, w in job.scheduler.student.gan.generator.state_dict().items()} for job in jobs]
    before = torch.get_rng_state(), torch.get_num_threads()
    assert fleet_module._fastest_size(jobs, 2) in (1, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    for job, state in zip(jobs, states, strict=True):
        torch.testing.assert_close(job.scheduler.student.gan.generator.state_dict(), state, rtol=0, atol=0)
        assert job.scheduler.position == (0, 0)
        assert job.scheduler.student.state_dict()["optimizers"] == {}


def test_progress_covers_all_fleets(recipes, tmp_path):
    shown = []
    train(recipes[:3], tmp_path / "out", fleet_size=2, track_auc=True, raw=True, show_progress=shown.append)
    total = 2 * sum(NUM_TRAIN)
    assert {progress.images_total for progress in shown} == {total}
    done = [progress.images_done for progress in shown]
    assert done == sorted(done)
    assert done[-1] == total
    assert all(progress.images_per_s > 0 for progress in shown)
    assert all(0 <= progress.auc <= 1 for progress in shown if progress.record.epoch_done)
    assert [(p.run, p.record.epoch) for p in shown if p.record.epoch_done][:4] == [
        (NAMES[1], 1), (NAMES[0], 1), (NAMES[1], 2), (NAMES[0], 2),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2])
def test_every_record_names_its_run(size, recipes, tmp_path):
    shown = []
    train(recipes[:3], tmp_path / "out", fleet_size=size, show_progress=shown.append)
    assert {progress.run for progress in shown} == set(NAMES[:3])


def test_progress_of_resumed_runs_includes_finished_epochs(recipes, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(recipes[:3], out, fleet_size=3, show_progress=stop_after(3))
    shown = []
    resume(out, fleet_size=3, show_progress=shown.append)
    # The second run is trained; one epoch of the first one is done.
    assert {progress.images_total for progress in shown} == {2 * sum(NUM_TRAIN[:3])}
    assert shown[0].images_done > 30 + 2 * NUM_TRAIN[1]
    assert shown[-1].images_done == 2 * sum(NUM_TRAIN[:3])


def test_records_of_a_single_run_have_no_run_name(recipes, tmp_path):
    shown = []
    train(recipes[1], tmp_path / "run", show_progress=shown.append)
    assert [progress.run for progress in shown] == [None, None]


@pytest.mark.parametrize("content", ["", "[]", '{"auc": 1}', '{"run": '])
def test_a_damaged_result_is_an_error(content, recipes, tmp_path):
    train(recipes[1], tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(content)
    with pytest.raises(KdganError, match=r"result\.json is not one that train or distill wrote"):
        resume(tmp_path / "run")


def test_a_result_has_the_number_of_threads(recipes, tmp_path):
    several = [recipes[0].replace({"training": {"threads": 1}}), recipes[1].replace({"training": {"threads": 2}})]
    result = train(several, tmp_path / "out", fleet_size=2)
    assert [member.threads for member in result.members] == [1, 1]
