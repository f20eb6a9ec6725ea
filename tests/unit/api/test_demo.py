"""A demo that was interrupted continues; a folder with other files is refused."""

import numpy as np
import pytest

from kdgan_compress.api import demo as demo_module
from kdgan_compress.api.demo import demo
from kdgan_compress.api.demo_folder import MARKER, check_demo_folder, mark_demo_folder
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment import fleet_states
from kdgan_compress.experiment.recipe import parse_recipe

RUNS = ("teacher", "student-from-scratch", "student")


@pytest.fixture
def _tiny(tmp_path, monkeypatch):
    """Every recipe trains a tiny network on 24 images for two epochs per stage."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = (rng.integers(0, 120, (24, 16, 16)) + 80 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    training = {"epochs": 2, "batch_size": 4, "threads": 1}
    recipe = parse_recipe(
        {
            "data": {"source": f"npz:{tmp_path / 'set.npz'}", "normal": "0"},
            "model": {"width": 1, "image_size": 16, "latent_size": 4},
            "training": training,
            "distillation": {"student": {"width": 1}, "schedule": "2->3", "training": training},
        },
        "test",
    )
    monkeypatch.setattr(demo_module, "load_recipe", lambda name="default": recipe)
    monkeypatch.setattr(fleet_states, "MAX_SAVE_FRACTION", 1)


def interrupt_after(number):
    """A ``show_progress`` that counts records and raises KeyboardInterrupt at this many."""
    seen = []

    def show_progress(progress):
        seen.append(progress)
        if len(seen) == number:
            raise KeyboardInterrupt

    return show_progress


@pytest.mark.usefixtures("_tiny")
def test_the_picture_has_the_deployed_scores(tmp_path, monkeypatch):
    rows = []
    monkeypatch.setattr(demo_module, "plot_reconstructions", lambda images, classes, given, *_: rows.extend(given))
    result = demo(tmp_path / "demo")
    assert [score for _, score, *_ in result.scored] == pytest.approx(list(rows[1].scores), rel=1e-3)


@pytest.mark.usefixtures("_tiny")
def test_an_interrupted_demo_continues(tmp_path):
    out, lines = tmp_path / "demo", []
    with pytest.raises(KeyboardInterrupt):
        demo(out, show_progress=interrupt_after(1))
    assert (out / "teacher" / "state.pt").exists()
    assert not (out / "teacher" / "result.json").exists()
    with pytest.raises(KeyboardInterrupt):  # one epoch of the teacher, four of the baseline, one of the student
        demo(out, show_progress=interrupt_after(6))
    finished = {name: (out / name / "model.safetensors").stat().st_mtime_ns for name in RUNS[:2]}
    result = demo(out, announce=lines.append, show_progress=interrupt_after(4))  # the student's other three epochs
    assert [row.name for row in result.rows] == ["teacher", "from scratch", "distilled"]
    assert [row.training.epochs for row in result.rows] == [2, 4, 4]
    assert {name: (out / name / "model.safetensors").stat().st_mtime_ns for name in RUNS[:2]} == finished
    assert [line[:3] for line in lines] == [f"{step}/5" for step in range(1, 6)]
    assert all(line.endswith(" s left") for line in lines[1:])
    assert {path.name for path in out.iterdir()} > {*RUNS, MARKER, "student.onnx", "reconstructions.png", "images"}


@pytest.mark.usefixtures("_tiny")
def test_a_finished_demo_trains_nothing_again(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "export_detector", stop)
    for show_progress in (None, lambda _: pytest.fail("trained")):
        with pytest.raises(KeyboardInterrupt):
            demo(tmp_path / "demo", show_progress=show_progress)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KdganError, match=f"needs a new folder; found files in {tmp_path}"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("quick", [False, True])
def test_a_quick_demo_and_a_full_one_need_two_folders(quick, tmp_path):
    mark_demo_folder(tmp_path / "demo", quick)
    check_demo_folder(tmp_path / "demo", quick)
    with pytest.raises(KdganError, match="demo cannot continue a"):
        check_demo_folder(tmp_path / "demo", not quick)


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("content")
    with pytest.raises(KdganError, match="writable"):
        demo(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "content"
