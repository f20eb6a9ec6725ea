import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdgan_compress.data import DataSettings, load_split, native_channels
from kdgan_compress.data import folder_summary as module
from kdgan_compress.data.folder_summary import FolderSummary, choose_channels, find_copies, report_folder


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def save(path: Path, value: int | tuple[int, ...], size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(value, int) else "RGB", (size, size), value).save(path)
    return path


def test_one_line_says_what_the_photos_are_used_for():
    summary = FolderSummary(
        num_train=209,
        num_test={"good": 20, "broken": 22, "dirt": 1041},
        num_masks=63,
        num_unmatched_masks=2,
        skipped=Counter({"HEIC: pip install 'kdgan-compress[heic]'": 9}),
    )
    assert str(summary) == (
        "photos: 209 to train on, 1,083 to test (20 good, 22 broken, 1,041 dirt, masks for 63); 2 masks fit no photo; "
        "9 skipped (9 HEIC: pip install 'kdgan-compress[heic]')"
    )
    assert str(FolderSummary(12, {})) == "photos: 12 to train on, 0 to test"


def test_photos_that_are_held_out_are_reported(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdgan_compress")
    for number in range(50):
        save(tmp_path / f"{number}.png", number)
    load_split(DataSettings(f"folder:{tmp_path}"), 16, 1)
    assert caplog.records[-1].message == "photos: 5 of the 50 to train on are held out to set the threshold"


def test_many_classes_are_cut_short():
    text = str(FolderSummary(12, {f"class{number}": 1 for number in range(20)}))
    assert text == (
        "photos: 12 to train on, 20 to test "
        "(1 class0, 1 class1, 1 class2, 1 class3, 1 class4, 1 class5, 1 class6, 13 more classes)"
    )


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (FolderSummary(10, {"good": 1, "dent": 1}), []),
        (FolderSummary(10, {}), []),
        (FolderSummary(2, {}), ["only 2 photos to train on"]),
        (FolderSummary(10, {"dent": 1, "crack": 1}), ["no good photos to test, so no AUC"]),
        (FolderSummary(10, {"good": 1}), ["no defective photos to test"]),
        (FolderSummary(10, {}, num_unsorted=3), ["3 photos in test have no class folder"]),
    ],
)
def test_warnings(summary, expected):
    lines = summary.warnings()
    assert len(lines) == len(expected)
    assert all(text in line for text, line in zip(expected, lines, strict=True))


def test_copies_are_found_by_their_bytes(tmp_path):
    random = np.random.default_rng(0)
    contents = [random.bytes(50_000) for _ in range(4)]
    changed = bytearray(contents[0])
    changed[10_000] ^= 1  # same size, start and middle
    train = [write(tmp_path / f"train/{number}.png", content) for number, content in enumerate(contents)]
    test = [
        write(tmp_path / "test/a.png", contents[2]),
        write(tmp_path / "test/b.png", bytes(changed)),
        write(tmp_path / "test/c.png", contents[0][:-1]),
        write(tmp_path / "test/d.png", contents[0]),
    ]
    assert find_copies(train, test) == [(test[0], train[2]), (test[3], train[0])]
    assert find_copies(train, []) == find_copies([], test) == []


def test_a_folder_is_reported_when_it_is_read(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdgan_compress")
    save(tmp_path / "train/good/0.png", 10)
    save(tmp_path / "train/good/1.png", 20)
    save(tmp_path / "test/good/0.png", 10)
    save(tmp_path / "test/dent/0.png", 30)
    data = DataSettings(f"folder:{tmp_path}")
    native_channels(data)
    load_split(data, 16, 1)
    train, test = tmp_path / "train/good/0.png", tmp_path / "test/good/0.png"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "photos: grey (no coloured pixel in 2 of 2 training photos)"),
        ("INFO", "photos: 2 to train on, 2 to test (1 good, 1 dent)"),
        ("WARNING", "Warning: only 2 photos to train on; use at least 10, better 50"),
        (
            "WARNING",
            f"Warning: 1 test photos are copies of training photos ({test} is {train}); remove one of each pair",
        ),
    ]


def test_a_photo_that_can_not_be_read_is_no_copy(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdgan_compress")
    report_folder(FolderSummary(10, {}), [tmp_path / "absent.png"], [])
    assert [record.message for record in caplog.records] == ["photos: 10 to train on, 0 to test"]


def test_grey_or_colour_is_decided_by_all_photos(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdgan_compress")
    grey = [save(tmp_path / f"{number}.png", number) for number in range(10)]
    toned = save(tmp_path / "x.png", (90, 90, 90))
    red = save(tmp_path / "red.png", (90, 20, 20))
    broken = write(tmp_path / "broken.png", b"not an image")
    assert choose_channels([*grey, toned]) == 1
    assert choose_channels([*grey, broken, red]) == 3
    assert choose_channels([broken]) == choose_channels([]) == 1
    assert caplog.records[1].message == "photos: in colour (for example red.png)"


def test_of_many_photos_evenly_spaced_ones_decide(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "is_coloured", lambda path: seen.append(int(path.stem)) or False)
    monkeypatch.setattr(module, "MAX_COLOUR_CHECKS", 5)
    assert choose_channels([Path(f"{number}.png") for number in range(12)]) == 1
    assert seen == [0, 3, 6, 9]
