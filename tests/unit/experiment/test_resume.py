"""Interrupted and resumed runs end as uninterrupted ones, bit for bit; run folders stay consistent."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from interruption import stop_after
from safetensors.torch import load_file

from kdgan_compress.api import resume as resume_module
from kdgan_compress.api.distill import distill
from kdgan_compress.api.train import train
from kdgan_compress.data import load_split
from kdgan_compress.distillation import train_log
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment import fleet_states, training_run
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.recipe import load_recipe, parse_recipe
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.gans import ede

pytestmark = pytest.mark.usefixtures("quick_runs")

TRAINING = {"batch_size": 4, "epochs": 3, "threads": 1}
MAX_SAVE_FRACTION = fleet_states.MAX_SAVE_FRACTION
MODEL_FILES = ("model.safetensors", "teacher.safetensors")


def make_recipe(source, **model):
    return parse_recipe(
        {
            "data": {"source": source, "normal": "0"},
            "model": {"width": 2, "latent_size": 16} | model,
            "training": TRAINING,
            "distillation": {"student": {"width": 1}, "schedule": "2->3", "training": TRAINING},
        },
        "test",
    )


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """A data set, and one uninterrupted run of each kind."""
    path = tmp_path_factory.mktemp("base")
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = rng.integers(0, 156, (24, 28, 28)).astype(np.uint8) + (labels * 100).astype(np.uint8)[:, None, None]
    np.savez(path / "set.npz", x_train=images, y_train=labels, x_test=images[::-1], y_test=labels[::-1])
    recipe = make_recipe(f"npz:{path / 'set.npz'}")
    train(recipe, path / "train", track_auc=True, raw=True)
    distill(path / "train", recipe, path / "distill", track_auc=True, raw=True)
    return path


@pytest.fixture
def base(whole_runs, tmp_path):
    """A copy of them, so that runs beside them name the same relative paths."""
    shutil.copytree(whole_runs, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def recipe(base):
    return make_recipe(f"npz:{base / 'set.npz'}")


def start(kind, base, recipe, out, **options):
    if kind == "train":
        return train(recipe, out, track_auc=True, raw=True, **options)
    return distill(base / "train", recipe, out, track_auc=True, raw=True, **options)


def resume(kind, out, **options):
    return resume_module.resume(out, command=kind, track_auc=True, raw=True, **options)


def metrics_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_s")} for line in lines]


def content_of(out):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}


def assert_as_uninterrupted(out, base, kind):
    assert metrics_of(out) == metrics_of(base / kind)
    assert_models_as_uninterrupted(out, base, kind)


def assert_models_as_uninterrupted(out, base, kind):
    assert {path.name for path in out.iterdir()} == {path.name for path in (base / kind).iterdir()}
    for name in MODEL_FILES[: 1 if kind == "train" else 2]:
        torch.testing.assert_close(load_file(out / name), load_file(base / kind / name), rtol=0, atol=0)
        actual, expected = load_checkpoint(out / name), load_checkpoint(base / kind / name)
        assert (actual.threshold, actual.provenance) == (expected.threshold, expected.provenance)
    actual, expected = (json.loads((path / "result.json").read_text()) for path in (out, base / kind))
    for key in ("auc", "auc_raw", "epochs", "num_images", "best_epoch_auc_oracle", "seed", "threads"):
        assert actual[key] == expected[key]
    with np.load(out / "scores.npz") as actual, np.load(base / kind / "scores.npz") as expected:
        assert {name: array.tolist() for name, array in actual.items()} == {
            name: array.tolist() for name, array in expected.items()
        }


def test_uninterrupted_runs_are_complete(base):
    positions = [(line["stage_index"], line["stage"], line["epoch"]) for line in metrics_of(base / "distill")]
    assert positions == [(0, "2", 1), (0, "2", 2), (0, "2", 3), (1, "3", 1), (1, "3", 2), (1, "3", 3)]
    assert [line["epoch"] for line in metrics_of(base / "train")] == [1, 2, 3]
    result = json.loads((base / "train" / "result.json").read_text())
    assert (result["epochs"], result["num_images"]) == (3, 36)
    assert result["best_epoch_auc_oracle"] == max(line["auc"] for line in metrics_of(base / "train"))


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_model_file_has_ema_weights_last_weights_and_discriminator(kind, base):
    folder = RunFolder(base / kind)
    state = folder.load_state()
    states = {folder.model: state["student"]} | ({folder.teacher: state["teacher"]} if kind == "distill" else {})
    for path, train_state in states.items():
        weights, networks = load_checkpoint(path).weights, train_state["networks"]
        ema = dict(networks["ema"])
        torch.testing.assert_close(weights["generator"], ema, rtol=0, atol=0)
        torch.testing.assert_close(weights["raw"], dict(networks["generator"]), rtol=0, atol=0)
        torch.testing.assert_close(weights["discriminator"], dict(networks["discriminator"]), rtol=0, atol=0)
        assert not torch.equal(weights["raw"]["encoder.head.weight"], ema["encoder.head.weight"])


@pytest.mark.parametrize(
    ("kind", "epochs"), [("train", 1), ("train", 2), ("train", 3), ("distill", 1), ("distill", 3), ("distill", 5)]
)
def test_a_run_stopped_after_an_epoch_ends_as_an_uninterrupted_one(kind, epochs, base, recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start(kind, base, recipe, out, show_progress=stop_after(epochs))
    assert len(metrics_of(out)) == epochs
    assert not (out / "model.safetensors").exists()
    assert not (out / "result.json").exists()
    result = resume(kind, out)
    assert result.run == str(out)
    assert_as_uninterrupted(out, base, kind)


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_run_stopped_within_an_epoch_repeats_that_epoch(kind, base, recipe, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(train_log, "RECORD_EVERY_IMAGES", 4)
    with pytest.raises(KeyboardInterrupt):
        start(kind, base, recipe, out, show_progress=stop_after(5))  # 3 records per epoch of 12 images
    assert len(metrics_of(out)) == 1
    resume(kind, out)
    assert_models_as_uninterrupted(out, base, kind)
    for actual, expected in zip(metrics_of(out), metrics_of(base / kind), strict=True):
        # sums over other records are rounded differently
        assert actual == {k: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for k, v in expected.items()}


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_run_can_be_stopped_several_times(kind, base, recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start(kind, base, recipe, out, show_progress=stop_after(1))
    with pytest.raises(KeyboardInterrupt):
        resume(kind, out, show_progress=stop_after(1))
    resume(kind, out)
    assert_as_uninterrupted(out, base, kind)


def stop_at(monkeypatch, method, epoch):
    """Raise KeyboardInterrupt in the given call of a method of RunFolder."""
    original, calls = getattr(RunFolder, method), []

    def write(folder, *content):
        calls.append(method)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        original(folder, *content)

    monkeypatch.setattr(RunFolder, method, write)


@pytest.mark.parametrize(("kind", "epoch"), [("train", 2), ("distill", 4)])
@pytest.mark.parametrize("method", ["append_metrics", "save_state"])
def test_no_metrics_line_is_duplicated_or_missing(method, kind, epoch, base, recipe, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at(patched, method, epoch)
        with pytest.raises(KeyboardInterrupt):
            start(kind, base, recipe, out)
    resume(kind, out)
    assert_as_uninterrupted(out, base, kind)


def test_an_incomplete_metrics_line_is_rewritten(base, recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start("train", base, recipe, out, show_progress=stop_after(2))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"stage_index": 0, "stage": "from')
    resume("train", out)
    assert_as_uninterrupted(out, base, "train")


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_run_stopped_after_training_needs_only_its_models(kind, base, recipe, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def stop(_lines, _path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training_run, "plot_curves", stop)
        with pytest.raises(KeyboardInterrupt):
            start(kind, base, recipe, out)
    assert not (out / "result.json").exists()
    resume(kind, out)
    assert_as_uninterrupted(out, base, kind)


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_resuming_a_finished_run_changes_nothing(kind, base):
    before = content_of(base / kind)
    result = resume(kind, base / kind)
    assert content_of(base / kind) == before
    assert json.loads((base / kind / "result.json").read_text())["auc"] == result.auc
    assert result.epochs == (3 if kind == "train" else 6)


def test_a_run_is_resumed_by_its_own_command(base):
    before = content_of(base / "train"), content_of(base / "distill")
    for kind, other in (("train", "distill"), ("distill", "train")):
        with pytest.raises(
            KdganError, match=rf"{kind} --resume cannot finish a run of {other}; got .*{other}\. Use {other} --resume"
        ):
            resume(kind, base / other)
    assert (content_of(base / "train"), content_of(base / "distill")) == before


@pytest.mark.parametrize("kind", ["train", "distill"])
@pytest.mark.parametrize("existing", ["train", "distill"])
def test_a_folder_with_a_run_is_refused_for_a_new_one(kind, existing, base, recipe):
    before = content_of(base / existing)
    with pytest.raises(KdganError, match="needs a new folder; found a run in"):
        start(kind, base, recipe, base / existing)
    assert content_of(base / existing) == before


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_run_stopped_in_its_first_epoch_starts_again(kind, base, recipe, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(train_log, "RECORD_EVERY_IMAGES", 4)
    with pytest.raises(KeyboardInterrupt):
        start(kind, base, recipe, out, show_progress=stop_after(1))
    resume(kind, out)
    tensors, expected = (load_file(folder / "model.safetensors") for folder in (out, base / kind))
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_run_that_diverges_at_once_leaves_no_model(base, recipe, tmp_path):
    out = tmp_path / "run"
    match = r"stay finite; s_con is nan at step 2 of stage from-scratch \(epoch 1\)\. .*; nothing had been saved yet"
    with pytest.raises(KdganError, match=match):
        train(recipe.replace({"training": {"learning_rate": 1e30}}), out)
    assert sorted(path.name for path in out.iterdir()) == ["failed.txt", "recipe.yaml"]


def spoil(monkeypatch, call, how):
    """Change L_d in the given call; an epoch has 3."""
    original, calls = ede.discriminator_cross_entropy, []

    def loss(*arguments):
        calls.append(1)
        return how(original(*arguments)) if len(calls) == call else original(*arguments)

    monkeypatch.setattr(ede, "discriminator_cross_entropy", loss)


def to_nan(loss):
    return loss * torch.nan


def to_nan_gradient(loss):
    return loss + (loss * 0).sqrt()


@pytest.mark.parametrize(
    ("kind", "call", "how", "step", "good"),
    [
        ("train", 5, to_nan, r"s_ce is nan at step 5 of stage from-scratch \(epoch 2\)", 1),
        ("train", 6, to_nan_gradient, r"s_adv is nan at step 7 of stage from-scratch \(epoch 3\)", 1),
        ("distill", 8, to_nan, r"s_ce is nan at step 8 of stage 2 \(epoch 3\)", 2),
        ("distill", 10, to_nan, r"teacher_s_ce is nan at step 1 of stage 3 \(epoch 1\)", 3),
        ("distill", 12, to_nan_gradient, r"teacher_s_adv is nan at step 4 of stage 3 \(epoch 2\)", 3),
        ("distill", 14, to_nan, r"teacher_s_ce is nan at step 5 of stage 3 \(epoch 2\)", 4),
    ],
)  # fmt: skip
def test_a_diverging_run_keeps_its_last_good_model(kind, call, how, step, good, base, recipe, tmp_path, monkeypatch):
    out, good_run = tmp_path / "run", tmp_path / "good"
    with pytest.raises(KeyboardInterrupt):
        start(kind, base, recipe, good_run, show_progress=stop_after(good))
    position = f"epoch {good} of stage 1" if good <= 3 else f"epoch {good - 3} of stage 2"
    with monkeypatch.context() as patched:
        spoil(patched, call, how)
        with pytest.raises(KdganError, match=step) as info:
            start(kind, base, recipe, out)
    message = str(info.value)
    assert "\n" not in message
    assert message.endswith(f"; {out / 'model.safetensors'} holds the last good model, of {position}.")
    assert not (out / "result.json").exists()

    states = RunFolder(good_run).load_state()
    files = {"student": "model.safetensors"} | ({"teacher": "teacher.safetensors"} if kind == "distill" else {})
    for role, file in files.items():
        networks, weights = states[role]["networks"], load_checkpoint(out / file).weights
        expected = dict(networks.get("ema", networks["generator"]))
        torch.testing.assert_close(weights["generator"], expected, rtol=0, atol=0)
        torch.testing.assert_close(weights["discriminator"], dict(networks["discriminator"]), rtol=0, atol=0)
        assert np.isfinite(load_checkpoint(out / file).threshold)

    resume(kind, out)  # without the spoiled loss
    assert_as_uninterrupted(out, base, kind)


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_run_that_diverges_in_its_last_step_says_so(kind, base, recipe, tmp_path):
    last = {"batch_size": 12, "epochs": 1, "learning_rate": 1e30}
    changed = recipe.replace({"training": last, "distillation": {"schedule": "2", "training": last}})
    with pytest.raises(KdganError, match="finite"):
        start(kind, base, changed, tmp_path / "run")


def test_more_clusters_than_images_are_refused(base, tmp_path):
    with np.load(base / "set.npz") as data:
        arrays = dict(data)
    fewer = f"npz:{tmp_path / 'fewer.npz'}"
    arrays["y_train"][0] = 1  # one of 12 normals less
    np.savez(tmp_path / "fewer.npz", **arrays)
    recipe = make_recipe(f"npz:{base / 'set.npz'}", family="cvgad", num_clusters=12)
    train(recipe.replace({"training": {"epochs": 1}}), tmp_path / "teacher")
    with pytest.raises(
        KdganError, match=r"fewer training images than clusters; got 12 clusters for 11 images\. Choose a smaller"
    ):
        distill(tmp_path / "teacher", recipe, tmp_path / "run", data=fewer)
    with pytest.raises(KdganError, match=r"got 12 clusters for 11 images"):
        train(recipe.replace({"data": {"source": fewer}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_images_is_refused(base, recipe, tmp_path):
    out, moved = tmp_path / "run", tmp_path / "changed.npz"
    shutil.copy(base / "set.npz", moved)
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(f"npz:{moved}"), out, show_progress=stop_after(1))
    with np.load(moved) as data:
        arrays = dict(data)
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(moved, **arrays)
    with pytest.raises(KdganError, match="training images it began with"):
        resume_module.resume(out)


def test_saving_takes_at_most_a_tenth_of_the_time(monkeypatch):
    now, saved = [0.0], []

    class Run:
        """Two seconds per save."""

        def __init__(self):
            self.job = SimpleNamespace(scheduler=SimpleNamespace(in_stage=True, images_done=0), folder=None)
            self.is_saved, self.is_finite = False, lambda: True

        def save_state(self, is_next):
            saved.append(now[0])
            now[0] += 2.0

    monkeypatch.setattr(fleet_states, "MAX_SAVE_FRACTION", MAX_SAVE_FRACTION)
    monkeypatch.setattr(fleet_states.time, "perf_counter", lambda: now[0])
    saver = fleet_states.FleetSaver([Run()], SimpleNamespace(received=None))
    for _ in range(100):
        now[0] += 1.0
        if saver.is_due(is_epoch_end=True, is_stage_end=False):
            saver.save()
    assert saved[0] == 1.0
    assert len(saved) * 2.0 <= now[0] / 9


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_resuming_needs_a_run(kind, tmp_path):
    with pytest.raises(KdganError, match="nothing"):
        resume(kind, tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_resuming_a_distillation_needs_its_teacher(base, recipe, tmp_path):
    shutil.copytree(base / "train", tmp_path / "teacher")
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path / "teacher", recipe, tmp_path / "run", show_progress=stop_after(1))
    shutil.rmtree(tmp_path / "teacher")
    before = content_of(tmp_path / "run")
    with pytest.raises(KdganError, match=r"must be a file; found none at .*teacher"):
        resume_module.resume(tmp_path / "run")
    assert content_of(tmp_path / "run") == before


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_damaged_state_is_an_error(kind, base, recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start(kind, base, recipe, out, show_progress=stop_after(1))
    (out / "state.pt").write_bytes((out / "state.pt").read_bytes()[:1000])
    before = content_of(out)
    with pytest.raises(KdganError, match=r"state\.pt must be whole"):
        resume(kind, out)
    assert content_of(out) == before


@pytest.mark.parametrize("kind", ["train", "distill"])
@pytest.mark.parametrize("path", ["file", "file/run"])
def test_an_unwritable_path_is_reported_before_training(kind, path, base, recipe, tmp_path):
    (tmp_path / "file").write_text("content")
    shown = []
    with pytest.raises(KdganError, match="must be writable") as info:
        start(kind, base, recipe, tmp_path / path, show_progress=shown.append)
    assert "\n" not in str(info.value)
    assert shown == []
    assert {path.name for path in tmp_path.iterdir()} == {"file", "set.npz", "train", "distill"}
    assert (tmp_path / "file").read_text() == "content"


def test_bad_data_leave_no_folder(base, recipe, tmp_path):
    nowhere = "npz:/nowhere.npz"
    with pytest.raises(KdganError, match=r"\.npz file must exist"):
        train(recipe.replace({"data": {"source": nowhere}}), tmp_path / "run")
    with pytest.raises(KdganError, match=r"\.npz file must exist"):
        distill(base / "train", recipe, tmp_path / "run", data=nowhere)
    assert not (tmp_path / "run").exists()


def test_progress_of_a_resumed_run_includes_finished_epochs(base, recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        start("distill", base, recipe, out, show_progress=stop_after(4))
    shown = []
    resume_module.resume(out, show_progress=shown.append)
    assert [(progress.images_done, progress.images_total) for progress in shown] == [(60, 72), (72, 72)]


def test_the_resolved_recipe_gives_the_same_run(base, tmp_path):
    train(load_recipe(str(base / "train" / "recipe.yaml")), tmp_path / "again", track_auc=True, raw=True)
    assert_as_uninterrupted(tmp_path / "again", base, "train")


def test_a_student_has_its_teachers_data(tmp_path):
    # A folder has no class, so the teacher's settings name none; the recipe of another data set does.
    good = tmp_path / "photos" / "train" / "good"
    good.mkdir(parents=True)
    for i in range(4):
        (good / f"{i}.pgm").write_bytes(b"P5 28 28 255\n" + bytes([60 * i] * 784))
    short = {"epochs": 1}
    photos = {"data": {"source": f"folder:{tmp_path / 'photos'}"}, "model": {"width": 1}, "training": short}
    train(parse_recipe(photos, "test"), tmp_path / "teacher")
    of_another_set = load_recipe("mnist-u2").replace({"distillation": {"training": short}})
    distill(tmp_path / "teacher", of_another_set, tmp_path / "student")
    teacher, student = (load_checkpoint(tmp_path / run / "model.safetensors") for run in ("teacher", "student"))
    assert teacher.data.normal is None
    assert student.data == teacher.data


def test_a_teacher_with_batch_norm_that_is_trained_updates_its_statistics(base, tmp_path):
    recipe = make_recipe(f"npz:{base / 'set.npz'}", norm="batch").replace({"distillation": {"schedule": "3"}})
    train(recipe, tmp_path / "teacher")
    distill(tmp_path / "teacher", recipe, tmp_path / "student")
    before = load_file(tmp_path / "teacher" / "model.safetensors")
    after = load_file(tmp_path / "student" / "teacher.safetensors")
    mean, kernel = (f"generator.encoder.features.{name}" for name in ("1.running_mean", "0.weight"))
    assert not torch.equal(after[kernel], before[kernel])
    assert not torch.equal(after[mean], before[mean])
    images = load_split(recipe.data, 32, 1).train / 127.5 - 1
    features = torch.nn.functional.conv2d(images, after[kernel], stride=2, padding=1)
    torch.testing.assert_close(after[mean], features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
