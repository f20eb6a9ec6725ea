"""Where a distillation's teacher cache comes from, how that is reported, and that it changes no result."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from interruption import stop_after
from safetensors.torch import load_file

from kdgan_compress.api.distill import distill
from kdgan_compress.api.resume import resume
from kdgan_compress.api.train import train
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import STRUCTURES, LossSet, Stage
from kdgan_compress.distillation.scheduler import ProgressiveScheduler
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment import teacher_caches as cache_module
from kdgan_compress.experiment.recipe import CacheSection, load_recipe, parse_recipe
from kdgan_compress.experiment.teacher_caches import TeacherCaches
from kdgan_compress.gans import Architecture, build, normalize_images

NUM_IMAGES = 70  # more than the teacher's batch of 64
SIZE_BYTES = 4 * NUM_IMAGES * (8 + 16 * 16 + 8)
STAGES = tuple(Stage(str(k), STRUCTURES[k], 1, 1e-3) for k in (2,))
MODEL = {"width": 2, "image_size": 16, "latent_size": 8}
TRAINING = {"batch_size": 8, "epochs": 2, "threads": 1}

pytestmark = pytest.mark.usefixtures("one_thread", "quick_runs")


def make_teacher(seed=0):
    return build(Architecture(channels=(2, 4), image_size=16, latent_size=8), seed)


def make_images(seed=0):
    shape = (NUM_IMAGES, 1, 16, 16)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def teacher():
    return make_teacher()


@pytest.fixture
def images():
    return make_images()


def get(section, teacher, images, caches=None, stages=STAGES, k_l=None, kept=Path("/nowhere")):
    """The cache that a scheduler gets, or None, and the note."""
    student = TrainState(make_teacher(9))
    scheduler = ProgressiveScheduler(stages, student, images, TrainState(teacher), k_l or DistillationLoss())
    note = (caches or TeacherCaches()).attach(section, scheduler, kept)
    cache = scheduler.stage_run(0).targets
    assert (scheduler.teacher is None) == (cache is not None and not scheduler.trains_teacher)
    return cache, note


def features_of(teacher, images):
    """The teacher's features of all images, one row per image."""
    with torch.no_grad():
        z1 = teacher.generator.encoder(normalize_images(images))
        x_hat = teacher.generator.decoder(z1)
        z2 = teacher.generator.encoder2(x_hat)
    return torch.cat([output.flatten(1) for output in (z1, x_hat, z2)], 1)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cache_that_took_long_is_kept_and_read(teacher, images, tmp_path, monkeypatch):
    first, note = get(CacheSection(), teacher, images, kept=tmp_path / "kept")
    assert note.startswith("computed")
    assert not (tmp_path / "kept").exists()
    monkeypatch.setattr(cache_module, "KEEP_SECONDS", 0.0)
    get(CacheSection(), teacher, images, kept=tmp_path / "kept")
    again, note = get(CacheSection(), teacher, images, kept=tmp_path / "kept")
    assert note.startswith("kept from before")
    assert torch.equal(again.rows, first.rows)
    (file,) = (tmp_path / "kept").glob("*.npy")
    file.write_bytes(file.read_bytes()[:-1])
    again, note = get(CacheSection(), teacher, images, kept=tmp_path / "kept")
    assert note.startswith("computed")
    assert torch.equal(again.rows, first.rows)


def test_a_cache_that_cannot_be_kept_is_computed_all_the_same(teacher, images, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "KEEP_SECONDS", 0.0)
    (tmp_path / "file").touch()
    cache, _ = get(CacheSection(), teacher, images, kept=tmp_path / "file" / "kept")
    assert cache is not None


def test_without_a_folder_it_is_in_memory(teacher, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache, note = get(CacheSection(), teacher, images)
    assert note == "computed, 0.1 MB in memory"
    assert cache.rows.dtype == torch.float32
    torch.testing.assert_close(cache.rows, features_of(teacher, images), rtol=0, atol=1e-5)
    assert list(cache.shapes) == ["z1", "x_hat", "z2"]
    assert list(tmp_path.iterdir()) == []


def test_runs_of_a_command_share_a_cache_only_if_they_would_compute_the_same(teacher, images):
    caches = TeacherCaches()
    first, _ = get(CacheSection(), teacher, images, caches)
    again, note = get(CacheSection(), make_teacher(), make_images(), caches)
    assert again is first
    assert note == "shared with another run"
    for other in (
        {"teacher": make_teacher(1)},
        {"images": make_images(1)},
        {"section": CacheSection(dtype="float16")},
        {"k_l": DistillationLoss(re_encode=True)},
    ):
        cache, note = get(**{"section": CacheSection(), "teacher": teacher, "images": images, "caches": caches} | other)
        assert cache is not first
        assert note.startswith("computed")
    other, _ = get(CacheSection(), teacher, images)  # another command
    assert other is not first


@pytest.mark.parametrize("folder", [None, "cache"])
def test_it_can_be_disabled(folder, teacher, images, tmp_path):
    section = CacheSection(enabled=False, folder=folder and str(tmp_path / folder))
    assert get(section, teacher, images) == (None, "none: disabled")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_too_large_for_memory_needs_a_folder(images, tmp_path):
    wide = build(Architecture(channels=(2, 4), image_size=16, latent_size=8000))
    cache, note = get(CacheSection(memory_mb=4), wide, images)
    assert cache is None
    assert note == "none: 4.55 MB exceed the 4 MB allowed in memory, and no folder is given"
    for allowed, is_mapped in ((4, True), (5, False)):
        cache, note = get(CacheSection(memory_mb=allowed, folder=str(tmp_path)), wide, images)
        assert cache.rows.shape == (NUM_IMAGES, 16256)
        assert is_mapped_from(cache, tmp_path) == is_mapped
        torch.testing.assert_close(cache.rows, features_of(wide, images), rtol=0, atol=1e-5)
        del cache
    cache, _ = get(CacheSection(memory_mb=5), wide, images)
    assert cache.rows.nbytes == 4 * NUM_IMAGES * 16256 <= 5_000_000


def is_mapped_from(cache, folder):
    """Whether the rows are mapped from a file of the folder."""
    (path,) = folder.glob("*.npy")
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *rest = line.split()
        low, high = (int(address, 16) for address in span.split("-"))
        if low <= cache.rows.data_ptr() < high:
            return rest[-1] == str(path)
    raise AssertionError("rows are not mapped at all")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_has_two_files_and_the_next_command_reads_them(dtype, teacher, images, tmp_path):
    section = CacheSection(folder=str(tmp_path / "new" / "cache"), dtype=dtype)
    computed, note = get(section, teacher, images)
    assert (
        note == f"computed, {SIZE_BYTES / 1e6 / (2 if dtype == 'float16' else 1):.1f} MB in the cache folder (none yet)"
    )
    (rows_path,), (about_path,) = (list(Path(section.folder).glob(f"*.{kind}")) for kind in ("npy", "json"))
    assert rows_path.stem == about_path.stem
    assert len(files_in(Path(section.folder))) == 2
    rows = np.load(rows_path)
    assert (rows.dtype, rows.shape) == (np.dtype(dtype), (NUM_IMAGES, 272))
    np.testing.assert_array_equal(rows, computed.rows)
    expected = features_of(teacher, images).numpy()
    np.testing.assert_allclose(rows, expected, rtol=1e-3 if dtype == "float16" else 0, atol=1e-5)
    assert json.loads(about_path.read_text())["key"] == rows_path.stem
    before = rows_path.stat().st_mtime_ns
    read, note = get(section, make_teacher(), make_images())
    assert note == f"read from {rows_path.name}"
    assert torch.equal(read.rows, computed.rows)
    assert dict(read.shapes) == dict(computed.shapes)
    assert rows_path.stat().st_mtime_ns == before
    get(section, make_teacher(1), images)
    assert len(files_in(Path(section.folder))) == 4


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object))


def another_shape(path):
    about = json.loads(path.read_text())
    about["shapes"]["z1"] = [9]
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("npy", flip),
        ("npy", cut),
        ("npy", pickled),
        ("npy", Path.unlink),
        ("npy", lambda path: path.write_bytes(b"")),
        ("json", Path.unlink),
        ("json", cut),
        ("json", lambda path: path.write_text("[]")),
        ("json", lambda path: path.write_text("{}")),
        ("json", another_shape),
    ],
)
def test_a_damaged_cache_is_reported_and_computed_again(kind, damage, teacher, images, tmp_path):
    section = CacheSection(folder=str(tmp_path))
    first, _ = get(section, teacher, images)
    complete = files_in(tmp_path)
    (path,), (rows_path,) = tmp_path.glob(f"*.{kind}"), tmp_path.glob("*.npy")
    damage(path)
    assert files_in(tmp_path) != complete
    cache, note = get(section, teacher, images)
    assert note == f"computed, 0.1 MB in the cache folder ({rows_path.name} was damaged)"
    assert torch.equal(cache.rows, first.rows)
    assert files_in(tmp_path) == complete
    assert get(section, teacher, images)[1] == f"read from {rows_path.name}"


def test_an_interrupted_cache_leaves_no_file(teacher, images, tmp_path, monkeypatch):
    original = cache_module.teacher_rows

    def interrupted(*arguments):
        yield next(original(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "teacher_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(CacheSection(folder=str(tmp_path / "cache")), teacher, images)
    assert files_in(tmp_path / "cache") == {}


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        ([STRUCTURES[3]], "stage s0 trains the teacher"),
        ([STRUCTURES[4], STRUCTURES[2]], "stage s0 trains the teacher"),
        ([LossSet(mu=1, nu=1)], "no stage before that uses the teacher"),
        ([LossSet(mu=1), STRUCTURES[3]], "no stage before that uses the teacher"),
        ([STRUCTURES[2], STRUCTURES[3]], None),
        ([STRUCTURES[1]], None),
    ],
)
def test_a_teacher_that_is_trained_is_not_cached(sets, reason, teacher, images, tmp_path):
    stages = [Stage(f"s{index}", losses, 1, 1e-3) for index, losses in enumerate(sets)]
    in_folder = CacheSection(folder=str(tmp_path / "cache"))
    if reason is None:
        assert get(CacheSection(), teacher, images, stages=stages)[1].startswith("computed")
        assert get(in_folder, teacher, images, stages=stages)[1].startswith("computed")
        return
    assert get(CacheSection(), teacher, images, stages=stages) == (None, f"none: {reason}")
    with pytest.raises(KdganError, match=rf"Only a frozen teacher.*; {reason}\. Disable the cache \(--cache"):
        get(in_folder, teacher, images, stages=stages)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_can_write_the_same_cache(teacher, images, tmp_path, monkeypatch):
    section, original, others = CacheSection(folder=str(tmp_path)), cache_module.teacher_rows, []

    def meanwhile(*arguments):
        for rows in original(*arguments):
            if not others:
                others.append(None)
                others[0] = get(section, make_teacher(), make_images())[0]
            yield rows

    monkeypatch.setattr(cache_module, "teacher_rows", meanwhile)
    cache, _ = get(section, teacher, images)
    assert torch.equal(cache.rows, others[0].rows)


# Whole distillations


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Data and two trained teachers: of 24 images of class 0 and of 15 of class 1."""
    path = tmp_path_factory.mktemp("base")
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [24, 15])
    images = (rng.integers(0, 120, (39, 16, 16)) + 80 * labels[:, None, None]).astype(np.uint8)
    np.savez(path / "set.npz", x_train=images, y_train=labels, x_test=images[::-1], y_test=labels[::-1])
    for normal in ("0", "1"):
        data = {"source": f"npz:{path / 'set.npz'}", "normal": normal}
        train(parse_recipe({"data": data, "model": MODEL, "training": TRAINING}, "test"), path / f"teacher-{normal}")
    return path


def student_recipe(schedule="2->3", seed=0, **cache):
    section = {
        "student": {"width": 1, "norm": "instance"},
        "schedule": schedule,
        "training": TRAINING | {"seed": seed},
        "cache": cache,
    }
    return parse_recipe({"distillation": section, "score": {"type": "norm"}}, "test")


def weights_of(run):
    return load_file(Path(run) / "model.safetensors")


def assert_close(actual, expected, atol):
    torch.testing.assert_close(weights_of(actual), weights_of(expected), rtol=0, atol=atol)


@pytest.mark.parametrize("schedule", ["1", "2", "2->3"])
def test_a_cache_changes_no_result(schedule, base, tmp_path):
    teacher, folder = base / "teacher-0", str(tmp_path / "cache")
    plain = distill(teacher, student_recipe(schedule, enabled=False), tmp_path / "plain")
    memory = distill(teacher, student_recipe(schedule), tmp_path / "memory")
    mapped = distill(teacher, student_recipe(schedule, folder=folder, memory_mb=0), tmp_path / "mapped")
    read = distill(teacher, student_recipe(schedule, folder=folder), tmp_path / "read")
    halved = distill(teacher, student_recipe(schedule, dtype="float16"), tmp_path / "halved")
    (rows_path,) = (tmp_path / "cache").glob("*.npy")
    assert [result.teacher_cache for result in (plain, memory, mapped, read, halved)] == [
        "none: disabled",
        "computed, 0.0 MB in memory",
        "computed, 0.0 MB in the cache folder (none yet)",
        f"read from {rows_path.name}",
        "computed, 0.0 MB in memory",
    ]
    for result in (memory, mapped, read):
        assert_close(result.run, plain.run, 1e-5)
        assert_close(result.run, memory.run, 0)
        assert result.auc == pytest.approx(plain.auc, abs=0.02)
    assert_close(halved.run, plain.run, 5e-3)
    with pytest.raises(AssertionError):
        assert_close(halved.run, memory.run, 0)
    if schedule == "2->3":
        weights = [load_file(Path(result.run) / "teacher.safetensors") for result in (read, plain)]
        torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_the_student_learns_from_the_cached_values(base, tmp_path, monkeypatch):
    original = cache_module.teacher_rows
    monkeypatch.setattr(cache_module, "teacher_rows", lambda *given: (rows + 1 for rows in original(*given)))
    other = distill(base / "teacher-0", student_recipe("1"), tmp_path / "other")
    monkeypatch.undo()
    usual = distill(base / "teacher-0", student_recipe("1"), tmp_path / "usual")
    with pytest.raises(AssertionError):
        assert_close(other.run, usual.run, 1e-3)


def test_the_result_reports_the_cache(base, tmp_path):
    result = distill(base / "teacher-0", student_recipe("3"), tmp_path / "run")
    assert result.teacher_cache == "none: stage 3 trains the teacher"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["teacher_cache"] == result.teacher_cache
    trained = json.loads((base / "teacher-0" / "result.json").read_text())
    assert trained["teacher_cache"] is None


def test_students_of_one_teacher_share_a_cache(base, tmp_path):
    teachers, cache = [base / "teacher-0", base / "teacher-1"], tmp_path / "cache"
    recipes = [student_recipe("2", seed, folder=str(cache)) for seed in (0, 1)]
    result = distill(teachers, recipes, tmp_path / "out", fleet_size=4)
    assert [member.teacher_cache.partition(",")[0] for member in result.members] == [
        "computed",
        "shared with another run",
    ] * 2
    assert len(list(cache.glob("*.npy"))) == len(list(cache.glob("*.json"))) == 2
    for member in result.members:
        name = "0" if "teacher-0" in member.run else "1"
        alone = distill(base / f"teacher-{name}", student_recipe("2", member.seed), tmp_path / f"{name}-{member.seed}")
        assert_close(member.run, alone.run, 1e-5)


def test_the_resolved_recipe_names_an_absolute_folder_and_off_stays_off(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    distill(base / "teacher-0", student_recipe("2", folder="cache"), "run")
    assert Path(load_recipe("run/recipe.yaml").distillation.cache.folder).resolve() == tmp_path / "cache"
    distill(base / "teacher-0", student_recipe("2", enabled=False), "off")
    assert load_recipe("off/recipe.yaml").distillation.cache.enabled is False


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("later", ["present", "missing", "damaged"])
def test_an_interrupted_distillation_is_resumed_with_its_cache(later, number, base, tmp_path):
    recipe, cache = student_recipe("2->3", folder=str(tmp_path / "cache")), tmp_path / "cache"
    expected = distill(base / "teacher-0", student_recipe("2->3"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distill(base / "teacher-0", recipe, tmp_path / "run", show_progress=stop_after(number))
    (rows_path,) = cache.glob("*.npy")
    if later == "missing":
        for path in cache.iterdir():
            path.unlink()
    elif later == "damaged":
        flip(rows_path)
    result = resume(tmp_path / "run")
    assert result.teacher_cache.endswith(
        {"present": f"read from {rows_path.name}", "missing": "(none yet)", "damaged": "was damaged)"}[later]
    )
    assert_close(tmp_path / "run", expected.run, 0)


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_cache_folder_that_cannot_be_written(path, base, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KdganError, match=f"writable; {tmp_path / path}") as info:
        distill([base / "teacher-0"], [student_recipe("2", folder=str(tmp_path / path))], tmp_path / "out")
    assert str(tmp_path / path) in str(info.value)
    assert "\n" not in str(info.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("when", ["rows", "at the end"])
def test_a_full_disk(when, base, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def raise_full(*_):
        raise full

    class Full:
        def numpy(self):
            raise full

    if when == "rows":
        original = cache_module.teacher_rows
        monkeypatch.setattr(cache_module, "teacher_rows", lambda *given: iter([next(original(*given)), Full()]))
    else:
        monkeypatch.setattr(os, "fsync", raise_full)
    with pytest.raises(KdganError, match=r"must be writable; .*\.npy: No space left on device\. .* free space"):
        distill(base / "teacher-0", student_recipe("2", folder=str(tmp_path / "cache")), tmp_path / "out")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert files_in(tmp_path / "cache") == {}
    again = distill(base / "teacher-0", student_recipe("2", folder=str(tmp_path / "cache")), tmp_path / "out")
    assert again.teacher_cache.endswith("(none yet)")


def test_a_schedule_that_first_trains_the_teacher_allows_no_cache_folder(base, tmp_path):
    for schedule in ("3", "4->2"):
        recipe = student_recipe(schedule, folder=str(tmp_path / "cache"))
        with pytest.raises(KdganError, match=rf"can be cached; stage {schedule[0]} trains the teacher\. Disable"):
            distill(base / "teacher-0", recipe, tmp_path / "run")
        with pytest.raises(KdganError, match=rf"can be cached; stage {schedule[0]} trains the teacher\. Disable"):
            distill([base / "teacher-1", base / "teacher-0"], [recipe], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("problem", ["existing run", "fleet size"])
def test_a_refused_distillation_writes_no_cache(problem, base, tmp_path):
    teacher, recipe = base / "teacher-0", student_recipe("2", folder=str(tmp_path / "cache"))
    if problem == "existing run":
        distill(teacher, student_recipe("2", enabled=False), tmp_path / "run")
        with pytest.raises(KdganError, match="needs a new folder; found a run in"):
            distill(teacher, recipe, tmp_path / "run")
    else:
        with pytest.raises(KdganError, match="at least 1 model"):
            distill([teacher], [recipe], tmp_path / "out", fleet_size=0)
    assert not (tmp_path / "cache").exists()


def test_finished_runs_need_no_cache(base, tmp_path, monkeypatch):
    distill([base / "teacher-0"], [student_recipe("2")], tmp_path / "out")
    monkeypatch.setattr(cache_module, "teacher_rows", lambda *_: pytest.fail("ran the teacher"))
    assert len(resume(tmp_path / "out").members) == 1


def test_an_empty_folder_name_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KdganError):
        distill(base / "teacher-0", student_recipe("2", folder=""), tmp_path / "run")
    assert list(tmp_path.glob("*.npy")) == []
