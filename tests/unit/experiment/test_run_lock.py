"""One process per run folder; the lock of a killed process does not count."""

import json
import os
import subprocess
import sys

import pytest

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.run_lock import LOCK_FILE, locked, remove_leftovers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="starts processes as on Unix")


def test_the_second_one_learns_who_holds_it(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(KdganError, match=rf"process {os.getpid()} on .* has been training in .*run since 20"):
            locked(tmp_path / "run").__enter__()
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
    with locked(tmp_path / "run"):
        pass


def test_leftovers_of_a_finished_run_are_removed_unless_somebody_holds_its_lock(tmp_path):
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for name in (LOCK_FILE, ".state.pt.01234567.tmp", "result.json"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    with locked(tmp_path):
        remove_leftovers(tmp_path)
        assert (tmp_path / LOCK_FILE).exists()


def test_a_folder_of_which_nothing_came_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "recipe.yaml").touch()
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["recipe.yaml"]


def test_the_lock_of_a_killed_process_and_its_temporary_files(tmp_path):
    code = """if True:
        import os, sys
        from pathlib import Path
        from kdgan_compress.experiment.run_lock import locked
        from kdgan_compress.files import atomic_path
        with locked(Path(sys.argv[1])), atomic_path(Path(sys.argv[1], "state.pt")) as path:
            path.write_text("half")
            os.kill(os.getpid(), 9)
    """
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-c", code, run], check=False)
    assert len(list(run.iterdir())) == 2
    with locked(run):
        assert [path.name for path in run.iterdir()] == [LOCK_FILE]
    assert not run.exists() or list(run.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\xff", "{" * 5000])
def test_a_lock_file_with_other_content(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text(content)
        with pytest.raises(KdganError, match="another one has"):
            locked(tmp_path).__enter__()
