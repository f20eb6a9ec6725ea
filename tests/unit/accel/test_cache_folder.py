"""Teacher caches on disk: read back, mapped, damaged in every way, and written whole or not at all."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kdgan_compress.accel.cache_folder import CacheFolder
from kdgan_compress.errors import KdganError

KEY = "ab" * 32
SHAPES = {"z1": (3,), "x_hat": (2, 2, 2), "z2": (3,)}
NUM_IMAGES, WIDTH = 7, 14


def make_rows(dtype="float32", seed=0):
    rows = torch.randn(NUM_IMAGES, WIDTH, generator=torch.Generator().manual_seed(seed))
    return rows.to(getattr(torch, dtype))


def save(folder, rows=None, dtype="float32", key=KEY):
    rows = make_rows(dtype) if rows is None else rows
    folder.save(key, SHAPES, NUM_IMAGES, dtype, rows.split(3))  # portions of 3, 3 and 1


@pytest.fixture
def folder(tmp_path):
    return CacheFolder(tmp_path / "deep" / "caches", memory_mb=1)


@pytest.fixture
def saved(folder):
    save(folder)
    return folder


def names(folder):
    return sorted(each.name for each in folder.path.iterdir()) if folder.path.exists() else []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("memory_mb", [1, 0])
def test_what_was_saved_is_read_back_exactly(tmp_path, dtype, memory_mb):
    folder = CacheFolder(tmp_path / "caches", memory_mb)
    assert folder.load(KEY) == (None, "none yet")
    save(folder, dtype=dtype)
    cache, note = folder.load(KEY)
    assert cache.rows.dtype == getattr(torch, dtype)
    assert torch.equal(cache.rows, make_rows(dtype))
    assert list(cache.shapes.items()) == list(SHAPES.items())  # the order of the columns
    assert note == f"read from {KEY}.npy"
    assert torch.equal(cache.rows[torch.tensor([5, 0, 5])], make_rows(dtype)[[5, 0, 5]])


def test_the_files_are_numpys_and_json(saved):
    assert names(saved) == [f"{KEY}.json", f"{KEY}.npy"]
    rows = np.load(saved.path / f"{KEY}.npy")
    np.testing.assert_array_equal(rows, make_rows().numpy())
    about = json.loads((saved.path / f"{KEY}.json").read_text())
    assert about["key"] == KEY
    assert about["shapes"] == {name: list(shape) for name, shape in SHAPES.items()}


def test_another_key_is_another_cache(saved):
    other = "cd" * 32
    assert saved.load(other) == (None, "none yet")
    save(saved, make_rows(seed=1), key=other)
    assert torch.equal(saved.load(KEY)[0].rows, make_rows())
    assert torch.equal(saved.load(other)[0].rows, make_rows(seed=1))


def test_saving_again_replaces(saved):
    save(saved, make_rows(seed=1))
    assert torch.equal(saved.load(KEY)[0].rows, make_rows(seed=1))
    assert names(saved) == [f"{KEY}.json", f"{KEY}.npy"]


def stays_in_its_file(folder):
    """Whether what is then written into the file is seen in the rows."""
    cache, _ = folder.load(KEY)
    with (folder.path / f"{KEY}.npy").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(77).tobytes())
    return cache.rows[-1, -1].item() == 77


@pytest.mark.parametrize(("memory_mb", "is_mapped"), [(0, True), (1, False)])
def test_rows_larger_than_the_memory_for_them_stay_in_their_file(tmp_path, memory_mb, is_mapped):
    folder = CacheFolder(tmp_path, memory_mb)
    save(folder)
    assert stays_in_its_file(folder) == is_mapped


def test_the_limit_is_in_millions_of_bytes(tmp_path):
    rows = torch.zeros(250_001, 1)  # 4 bytes more than a million
    for number, is_mapped in ((250_000, False), (250_001, True)):
        folder = CacheFolder(tmp_path / str(number), memory_mb=1)
        folder.save(KEY, {"z1": (1,)}, number, "float32", [rows[:number]])
        assert stays_in_its_file(folder) == is_mapped


# Damage


def assert_damaged(folder):
    cache, note = folder.load(KEY)
    assert cache is None
    assert note == f"{KEY}.npy was damaged"


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_in_the_rows_is_noticed(saved):
    path = saved.path / f"{KEY}.npy"
    whole = path.read_bytes()
    assert len(whole) == 128 + NUM_IMAGES * WIDTH * 4
    for place in (*range(128), *range(128, len(whole), 13), len(whole) - 1):
        flip(path, place, place % 8)
        assert_damaged(saved)
        path.write_bytes(whole)
    assert saved.load(KEY)[0] is not None


def test_a_flipped_bit_anywhere_in_the_description_is_noticed_or_does_no_harm(saved):
    path = saved.path / f"{KEY}.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place, place % 7)
        cache, _ = saved.load(KEY)
        if cache is not None:
            assert list(cache.shapes.items()) == list(SHAPES.items()), path.read_text()
            assert torch.equal(cache.rows, make_rows())
        path.write_bytes(whole)


@pytest.mark.parametrize("keep", [0, 1, 5, 60, 127, 128, 200, -1])
@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_a_file_cut_short_is_noticed(saved, suffix, keep):
    path = saved.path / f"{KEY}.{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[:keep] if suffix == "npy" or keep >= 0 else content[:-3])  # the JSON ends in a new line
    assert_damaged(saved)


@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_half_a_cache_is_none(saved, suffix):
    (saved.path / f"{KEY}.{suffix}").unlink()
    assert_damaged(saved)


@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_a_folder_in_place_of_a_file_is_none(saved, suffix):
    path = saved.path / f"{KEY}.{suffix}"
    path.unlink()
    path.mkdir()
    assert_damaged(saved)


@pytest.mark.parametrize(
    "about",
    [
        [],
        {},
        None,
        3,
        {"shapes": 3},
        {"shapes": {"z1": 14}},
        {"shapes": {"z1": ["many"]}},
        {"shapes": {"z1": [[14]]}},
        {"shapes": {"z1": [13]}},
        {"shapes": {"z1": [None]}},
        {"shapes": [[14]]},
        {"shapes": {}},
        {"shapes": {"z1": [14]}, "sha256": None},
        {"shapes": {"z1": [14]}, "sha256": "0" * 64},
    ],
    ids=str,
)
def test_a_description_of_something_else_is_noticed(saved, about):
    path = saved.path / f"{KEY}.json"
    if isinstance(about, dict) and "shapes" in about and "sha256" not in about:  # all else is right
        about["sha256"] = hashlib.sha256((saved.path / f"{KEY}.npy").read_bytes()).hexdigest()
    path.write_text(json.dumps(about))
    assert_damaged(saved)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"no json", b'{"shapes": '])
def test_a_description_that_is_not_json_is_noticed(saved, content):
    (saved.path / f"{KEY}.json").write_bytes(content)
    assert_damaged(saved)


@pytest.mark.parametrize(
    "array",
    [np.zeros(14, "f4"), np.zeros((7, 13), "f4"), np.float32(3), np.array([None])],
    ids=["1d", "13", "0d", "object"],
)
def test_rows_of_another_shape_are_noticed_though_their_hash_is_right(saved, array):
    path = saved.path / f"{KEY}.npy"
    np.save(path, array, allow_pickle=True)
    about = json.loads((saved.path / f"{KEY}.json").read_text())
    about["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (saved.path / f"{KEY}.json").write_text(json.dumps(about))
    assert_damaged(saved)


def test_rows_of_another_cache_are_noticed(saved):
    other = "cd" * 32
    save(saved, make_rows(seed=1), key=other)
    (saved.path / f"{other}.npy").replace(saved.path / f"{KEY}.npy")
    assert_damaged(saved)


def test_a_damaged_cache_can_be_written_again(saved):
    flip(saved.path / f"{KEY}.npy", 300, 2)
    assert_damaged(saved)
    save(saved)
    assert torch.equal(saved.load(KEY)[0].rows, make_rows())


def test_fewer_rows_than_described_are_noticed(folder):
    folder.save(KEY, SHAPES, NUM_IMAGES, "float32", make_rows()[:5].split(3))
    assert_damaged(folder)


# Writing


@pytest.mark.parametrize("error", [KdganError("This must hold", "got that", "Mend it"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("had_one", [False, True])
def test_interrupted_rows_leave_nothing(folder, error, had_one):
    if had_one:
        save(folder)

    def rows():
        yield from make_rows(seed=1)[:6].split(3)
        raise error

    with pytest.raises(type(error)) as info:
        folder.save(KEY, SHAPES, NUM_IMAGES, "float32", rows())
    assert info.value is error
    assert names(folder) == ([f"{KEY}.json", f"{KEY}.npy"] if had_one else [])
    if had_one:
        assert torch.equal(folder.load(KEY)[0].rows, make_rows())


def test_rows_are_written_as_they_come(folder):
    seen = []

    def rows():
        for portion in make_rows().split(3):
            seen.append(names(folder))
            yield portion

    folder.save(KEY, SHAPES, NUM_IMAGES, "float32", rows())
    assert len(seen) == 3
    assert all(name.startswith(".") for portion in seen for name in portion)  # no cache yet
    assert all(len(portion) == 1 for portion in seen)


class FullDisk:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@pytest.mark.parametrize("room", [0, 128, 200, 128 + NUM_IMAGES * WIDTH * 4 - 1])
@pytest.mark.parametrize("had_one", [False, True])
def test_a_full_disk_is_reported_and_nothing_is_left(folder, monkeypatch, room, had_one):
    if had_one:
        save(folder)
    original = Path.open

    def crowded(self, mode="r", *args, **kwargs):
        file = original(self, mode, *args, **kwargs)
        return FullDisk(file, room) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", crowded)
    with pytest.raises(KdganError, match=r"must be writable; .*\.npy: No space left on device"):
        save(folder, make_rows(seed=1))
    monkeypatch.undo()
    assert names(folder) == ([f"{KEY}.json", f"{KEY}.npy"] if had_one else [])
    if had_one:
        assert torch.equal(folder.load(KEY)[0].rows, make_rows())


def test_a_disk_that_is_full_when_the_description_is_due_is_reported_and_nothing_is_left(folder, monkeypatch):
    def write_text(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(KdganError, match=r"must be writable; .*: No space left on device"):
        save(folder)
    monkeypatch.undo()
    assert names(folder) == []


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("content")
    folder = CacheFolder(tmp_path / "file" / "caches", 1)
    with pytest.raises(KdganError, match="must be writable"):
        save(folder)
    assert (tmp_path / "file").read_text() == "content"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
