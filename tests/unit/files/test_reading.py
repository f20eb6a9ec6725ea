"""Bounded reading: nothing is read from pipes and devices, and no more than was allowed."""

import os

import pytest

from kdgan_compress.errors import KdganError
from kdgan_compress.files import BoundedFile, expand_user, parse_json, read_bytes, read_text
from kdgan_compress.files.reading import MAX_READ_BYTES


def test_a_file_larger_than_allowed(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, more than 4"):
        read_bytes(tmp_path / "a", 4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="it is a"):
            read_bytes(path, 5)


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match="byte 2 is not UTF-8"):
        read_text(tmp_path / "a", 5)


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "{", "[" * 100_000, "1" * 5000, ""])
def test_what_is_not_json(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_json(text)


def test_a_large_single_read_is_refused(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(MAX_READ_BYTES + 1)
    with BoundedFile(tmp_path / "a") as file:
        assert len(file.read(10)) == 10
        with pytest.raises(ValueError, match="one of its parts"):
            file.read(MAX_READ_BYTES + 1)
        file.seek(0)
        with pytest.raises(ValueError, match="one of its parts"):
            file.read()


def test_a_user_without_a_home(monkeypatch):
    import pwd

    def unknown(_):
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert str(expand_user("a/b")) == "a/b"
    with pytest.raises(KdganError, match="Set HOME"):
        expand_user("~/a")
