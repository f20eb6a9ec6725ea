"""Scratch folders: removed at the end, or by the next process if theirs was killed."""

import os
import signal
import subprocess
import sys

import pytest

from kdgan_compress.files import scratch_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks")

KILLED = """
import os, signal, sys
from pathlib import Path
from kdgan_compress.files import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("x")
    if sys.argv[2] == "wait":
        print("ready", flush=True)
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, "now"], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "file").exists()
    with scratch_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_running_process_and_foreign_ones_are_kept(tmp_path):
    (tmp_path / "own").mkdir()
    command = [sys.executable, "-c", KILLED, tmp_path, "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        with scratch_folder(tmp_path), scratch_folder(tmp_path):
            assert len(list(tmp_path.iterdir())) == 4
        assert len(list(tmp_path.iterdir())) == 2
        process.kill()
    assert os.path.lexists(tmp_path / "own")
