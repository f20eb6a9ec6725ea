"""What Windows does differently, simulated: locked bytes can't be read, files that are open can't be removed."""

import contextlib
import os
import sys
import types
from pathlib import Path, PureWindowsPath

import pytest
import torch

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment import fleet_size
from kdgan_compress.experiment.metrics_file import append_line
from kdgan_compress.experiment.run_lock import LOCK_FILE, locked
from kdgan_compress.files import atomic_path, relative, remove_stale_files, scratch_folder, write_text


def check_closed(path):
    """Raise what Windows does for a file that is open."""
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if each.readlink() == path.resolve():
                raise PermissionError(13, "The process cannot access the file", str(path))


def checked(function):
    """A method of ``Path`` for files that are closed."""

    def call(path, *arguments, **options):
        for each in (path, *arguments):
            check_closed(each)
        return function(path, *arguments, **options)

    return call


@pytest.fixture
def windows(monkeypatch):
    """A platform with msvcrt's locks, on which an open file can be neither renamed nor removed; gives the locks."""
    locks: dict[tuple[int, int], int] = {}
    close, open_path = os.close, Path.open

    def locking(descriptor, mode, num_bytes):
        assert (mode, num_bytes) == (2, 1)
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in locks:
            raise PermissionError(13, "Permission denied")
        locks[place] = descriptor

    def close_and_free(descriptor):
        for place in [place for place, owner in locks.items() if owner == descriptor]:
            del locks[place]
        close(descriptor)

    def open_unlocked(path, *arguments, **options):
        if path.exists() and any(inode == path.stat().st_ino and position < 4096 for inode, position in locks):
            raise PermissionError(13, "Permission denied")
        return open_path(path, *arguments, **options)

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "close", close_and_free)
    monkeypatch.setattr(Path, "unlink", checked(Path.unlink))
    monkeypatch.setattr(Path, "replace", checked(Path.replace))
    monkeypatch.setattr(Path, "open", open_unlocked)
    return locks


def test_the_second_process_learns_who_trains(windows, tmp_path):
    run = tmp_path / "run"
    with locked(run):
        assert len(windows) == 1
        with pytest.raises(KdganError, match=rf"process {os.getpid()} on .* has been training in"):
            locked(run).__enter__()
        (run / "recipe.yaml").touch()
    assert windows == {}
    assert [path.name for path in run.iterdir()] == ["recipe.yaml"]
    with locked(run):
        assert (run / LOCK_FILE).exists()


def test_a_lock_file_that_the_next_process_has_opened_stays(windows, tmp_path):
    with locked(tmp_path):
        descriptor = os.open(tmp_path / LOCK_FILE, os.O_RDWR)
    assert (tmp_path / LOCK_FILE).exists()
    os.close(descriptor)
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_files_are_replaced_and_scratch_folders_removed(windows, tmp_path):
    for text in ("first", "second"):
        write_text(tmp_path / "a.txt", f"{text}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"second\n"
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt"):
        raise ZeroDivisionError
    with scratch_folder(tmp_path) as folder:
        (folder / "x").touch()
    remove_stale_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_another_program_has_open_is_an_error_and_stays(windows, tmp_path):
    write_text(tmp_path / "a.txt", "first")
    with (tmp_path / "a.txt").open(), pytest.raises(KdganError, match="must be writable"):
        write_text(tmp_path / "a.txt", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "first"


def test_text_files_have_the_same_line_ends_everywhere(tmp_path, monkeypatch):
    seen = []
    original = Path.open

    def record(path, mode="r", *arguments, **options):
        seen.append((mode, options.get("newline", (*arguments, None, None, None, None)[3])))
        return original(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", record)
    monkeypatch.setattr(Path, "write_text", lambda path, text, **options: seen.append(("w", options["newline"])))
    write_text(tmp_path / "a.txt", "x\n")
    append_line(tmp_path / "b.jsonl", {})
    assert [newline for mode, newline in seen if mode in ("w", "a")] == ["\n", "\n"]


def test_a_path_on_another_drive_stays_absolute(monkeypatch):
    def relpath(path, start):
        raise ValueError(f"path is on mount {path!r}, start on mount {start!r}")

    monkeypatch.setattr(relative.os.path, "relpath", relpath)
    assert relative.relative_path("/photos", Path("/runs/a")) == "/photos"
    assert PureWindowsPath(r"..\photos").as_posix() == "../photos"  # how others are stored


def test_without_sysconf_a_fleet_still_has_a_size(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(fleet_size.Path, "exists", lambda path: False)
    assert fleet_size._free_bytes(torch.device("cpu")) == fleet_size.ASSUMED_FREE_BYTES
