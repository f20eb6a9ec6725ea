"""Files are replaced whole, several together; what a killed process left is removed, what one is writing is not."""

import errno
import subprocess
import sys

import pytest

from kdgan_compress.errors import KdganError
from kdgan_compress.files import atomic_path, atomic_paths, remove_stale_files, write_together
from kdgan_compress.files.atomic import write_text


def full_disk(path):
    path.write_text("new")
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_that_belong_together_are_all_old_after_an_error(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("old")
    with pytest.raises(KdganError, match="No space"), atomic_paths(paths) as (first, _):
        full_disk(first)
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert names(tmp_path) == ["a", "b"]


def test_one_unwritable_file_of_several(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(KdganError, match="must be writable"):
        write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert names(tmp_path) == ["b"]
    write_together({tmp_path / "a": b"1", tmp_path / "c": b"2"})
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "c").read_bytes()) == (b"1", b"2")


def test_text_without_a_utf_8_form(tmp_path):
    with pytest.raises(KdganError, match="must be writable"):
        write_text(tmp_path / "a", "\udce9")
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_only_files_that_no_process_is_writing_are_stale(tmp_path):
    killed = "from pathlib import Path; import os, sys; from kdgan_compress.files import atomic_path\n"
    killed += "with atomic_path(Path(sys.argv[1])) as path: path.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", killed, tmp_path / "a"], check=False)
    assert len(names(tmp_path)) == 1
    (tmp_path / ".mine.tmp").write_text("not ours")
    with atomic_path(tmp_path / "b") as running:
        remove_stale_files(tmp_path)
        assert names(tmp_path) == sorted([".mine.tmp", running.name])
        running.write_text("b")
    assert names(tmp_path) == [".mine.tmp", "b"]
    remove_stale_files(tmp_path / "nowhere")
