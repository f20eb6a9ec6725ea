"""Folders as people have them; every case of photos that were mistaken for something else."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdgan_compress.data.datasets import FileDataset
from kdgan_compress.data.folder import read_folder
from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import image_files


@pytest.fixture(autouse=True)
def _without_heic(monkeypatch):
    monkeypatch.setattr(image_files, "has_heic_support", lambda: False)


def make(root: Path, *names: str) -> Path:
    """One small image per name, each different."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.frombuffer(name.encode()[-16:].rjust(16), dtype=np.uint8).reshape(4, 4)
        Image.fromarray(pixels).save(path, format="PNG")
    return root


def numbered(folder: str, count: int) -> list[str]:
    return [f"{folder}/{number:03}.png" for number in range(count)]


def trained(photos: FileDataset, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in photos.paths[: photos.num_train]]


def in_test(photos: FileDataset, root: Path) -> list[tuple[str, str, str | None]]:
    """Path, class and mask of each test photo."""
    triples = list(zip(photos.paths, photos.labels, photos.masks, strict=True))[photos.num_train :]
    return [
        (path.relative_to(root).as_posix(), photos.class_names[label], mask and mask.relative_to(root).as_posix())
        for path, label, mask in triples
    ]


def test_the_layout_of_mvtec(tmp_path):
    make(tmp_path, *numbered("train/good", 3), "test/good/000.png", "test/dent/000.png", "test/dent/001.png")
    make(tmp_path, "ground_truth/dent/000_mask.png", "ground_truth/dent/009_mask.png")
    (tmp_path / "license.txt").touch()
    photos = read_folder(tmp_path)
    assert trained(photos, tmp_path) == numbered("train/good", 3)
    assert in_test(photos, tmp_path) == [
        ("test/dent/000.png", "dent", "ground_truth/dent/000_mask.png"),
        ("test/dent/001.png", "dent", None),
        ("test/good/000.png", "good", None),
    ]
    assert photos.masks[:3] == [None] * 3
    summary = photos.summary
    assert (summary.num_train, summary.num_test) == (3, {"good": 1, "dent": 2})
    assert (summary.num_masks, summary.num_unmatched_masks, summary.skipped) == (1, 1, {})


@pytest.mark.parametrize("name", ["Good", "ok", "OK ", "normal", "NORMAL", "good ", " good", "Okay", "passed"])
def test_normal_test_photos_by_any_usual_name(tmp_path, name):
    make(tmp_path, *numbered(f"train/{name}", 2), f"test/{name}/0.png", "test/bad/0.png")
    photos = read_folder(tmp_path)
    assert photos.num_train == 2
    assert [each[1] for each in in_test(photos, tmp_path)] == ["bad", "good"]
    assert photos.class_names == ["bad", "good"]


@pytest.mark.parametrize(("train", "test"), [("Train", "TEST"), ("train ", " Test")])
def test_train_and_test_in_any_case(tmp_path, train, test):
    photos = read_folder(make(tmp_path, f"{train}/good/0.png", f"{test}/scratch/0.png"))
    assert (photos.num_train, photos.summary.num_test) == (1, {"scratch": 1})


def test_photos_directly_in_train(tmp_path):
    make(tmp_path, "train/a.png", "train/b.png", "train/scratch/c.png", "test/good/a.png")
    photos = read_folder(tmp_path)
    assert trained(photos, tmp_path) == ["train/a.png", "train/b.png"]
    assert photos.summary.skipped == {"in train/scratch": 1}


def test_only_good_photos_of_train_are_trained_on(tmp_path):
    make(tmp_path, "train/good/a.png", "train/bad/b.png", "train/ok/day2/c.png", "test/dent/a.png")
    photos = read_folder(tmp_path)
    assert trained(photos, tmp_path) == ["train/good/a.png", "train/ok/day2/c.png"]
    assert photos.summary.skipped == {"in train/bad": 1}


def test_test_photos_without_class_folders_are_counted(tmp_path):
    make(tmp_path, "train/good/a.png", *numbered("test", 4), "test/0000_mask.png")
    photos = read_folder(tmp_path)
    assert in_test(photos, tmp_path) == []
    assert photos.summary.skipped == {"in test without a class folder": 4}
    assert photos.summary.num_unsorted == 4
    assert "4 photos in test have no class folder" in "".join(photos.summary.warnings())


MASKS = [
    ("ground_truth/dent/0_mask.png", "test/dent/0.png"),
    ("ground_truth/dent/0.png", "test/dent/0.png"),
    ("Ground Truth/DENT /0_MASK.bmp", "test/dent/0.png"),
    ("test/ground_truth/dent/0_mask.png", "test/dent/0.png"),
    ("test/dent/ground_truth/0_mask.png", "test/dent/0.png"),
    ("test/dent/masks/0.png", "test/dent/0.png"),
    ("test/dent/0_mask.png", "test/dent/0.png"),
    ("masks/0.png", "test/dent/0.png"),
    ("ground_truth/0_mask.png", "test/dent/0.png"),
    ("ground_truth/dent/day1/0_mask.png", "test/dent/day1/0.png"),
]


@pytest.mark.parametrize(("mask", "photo"), MASKS)
def test_masks_are_found_and_are_never_photos(tmp_path, mask, photo):
    photos = read_folder(make(tmp_path, "train/good/0.png", photo, mask, "test/good/0.png"))
    assert in_test(photos, tmp_path) == [(photo, "dent", mask), ("test/good/0.png", "good", None)]
    assert (photos.summary.num_masks, photos.summary.num_unmatched_masks) == (1, 0)


def test_a_mask_without_a_class_must_fit_one_defect_only(tmp_path):
    make(tmp_path, "train/good/0.png", "test/dent/0.png", "test/crack/0.png", "masks/0.png")
    photos = read_folder(tmp_path)
    assert photos.masks == [None] * 3
    assert photos.summary.num_unmatched_masks == 1


def test_empty_masks_of_good_photos_are_no_mistake(tmp_path):
    make(tmp_path, "train/good/0.png", "test/good/0.png", "ground_truth/good/0_mask.png")
    summary = read_folder(tmp_path).summary
    assert (summary.num_masks, summary.num_unmatched_masks) == (0, 0)


def test_masks_next_to_photos_are_not_defects(tmp_path):
    make(tmp_path, "train/good/0.png", "train/good/0_mask.png", "test/dent/0.png", "test/dent/0_mask.png")
    photos = read_folder(tmp_path)
    assert (photos.num_train, photos.summary.num_test) == (1, {"dent": 1})


@pytest.mark.parametrize("empty", ["test/crack", "@eaDir", "__MACOSX", "test/@eaDir", "train/good/@eaDir", "empty"])
def test_an_empty_folder_stops_nothing(tmp_path, empty):
    make(tmp_path, "train/good/0.png", "test/good/0.png", "test/dent/0.png")
    (tmp_path / empty).mkdir()
    photos = read_folder(tmp_path)
    assert (photos.num_train, photos.summary.num_test) == (1, {"good": 1, "dent": 1})
    assert photos.class_names == ["dent", "good"]


def test_thumbnails_and_system_files_are_not_trained_on(tmp_path):
    make(tmp_path, "train/good/0.png", "train/good/@eaDir/0.png/SYNOPHOTO_THUMB_M.png", "test/@eaDir/0.png")
    for name in ("Thumbs.db", ".DS_Store", "._0.png"):
        (tmp_path / "train/good" / name).touch()
    photos = read_folder(tmp_path)
    assert (len(photos.paths), photos.summary.skipped) == (1, {"in @eaDir": 1})


def test_skipped_formats_are_counted(tmp_path):
    make(tmp_path, *numbered("train/good", 3))
    for number in range(9):
        (tmp_path / f"train/good/{number}.HEIC").touch()
    photos = read_folder(tmp_path)
    assert photos.num_train == 3
    assert photos.summary.skipped == {"HEIC: pip install 'kdgan-compress[heic]'": 9}


def test_without_any_readable_photo_the_error_says_what_was_skipped(tmp_path):
    (tmp_path / "train/good").mkdir(parents=True)
    (tmp_path / "train/good/0.HEIC").touch()
    with pytest.raises(KdganError, match=r"needs train/good .*no photo to train on .*1 HEIC: pip install .*heic"):
        read_folder(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_to_folders_of_photos_are_followed(tmp_path):
    make(tmp_path / "nas", "a.png", "b.png")
    root = tmp_path / "photos"
    make(root, "test/dent/0.png")
    (root / "train").mkdir()
    (root / "train/good").symlink_to(tmp_path / "nas")
    (root / "test/dent/more").symlink_to(tmp_path / "nas")
    photos = read_folder(root)
    assert (photos.num_train, photos.summary.num_test) == (2, {"dent": 3})


@pytest.mark.parametrize(
    ("good", "bad"),
    [("good", "bad"), ("normal", "abnormal"), ("OK", "NOK"), ("ok ", " Defect"), ("Normal", "Anomaly"), ("good", "x1")],
)
def test_good_next_to_bad(tmp_path, good, bad):
    make(tmp_path, *numbered(good, 20), *numbered(bad, 3), f"masks/{bad}/001.png")
    photos = read_folder(tmp_path)
    assert photos.num_train == 16
    assert photos.summary.num_test == {"good": 4, bad.strip(): 3}
    assert photos.summary.num_masks == 1
    good_paths = trained(photos, tmp_path) + [path for path, name, _ in in_test(photos, tmp_path) if name == "good"]
    assert sorted(good_paths) == numbered(good, 20)


def test_the_split_depends_on_the_names_alone_and_a_new_photo_moves_few(tmp_path):
    make(tmp_path / "a", *numbered("good", 40), "bad/0.png")
    make(tmp_path / "b", *numbered("ok", 40), "defects/0.png")
    first, second = (trained(read_folder(tmp_path / name), tmp_path / name) for name in "ab")
    assert [Path(path).name for path in first] == [Path(path).name for path in second]
    make(tmp_path / "a", "good/040.png", "good/041.png")
    later = trained(read_folder(tmp_path / "a"), tmp_path / "a")
    assert len(set(first) - set(later)) <= 1


@pytest.mark.parametrize(("num_good", "num_train"), [(1, 1), (2, 1), (3, 2), (10, 8)])
def test_few_good_photos_are_split_too(tmp_path, num_good, num_train):
    assert read_folder(make(tmp_path, *numbered("good", num_good), "bad/0.png")).num_train == num_train


def test_one_folder_per_defect_next_to_good(tmp_path):
    make(tmp_path, *numbered("good", 5), "scratch/0.png", "dent/0.png", "dent/0_mask.png")
    photos = read_folder(tmp_path)
    assert photos.summary.num_test == {"good": 1, "dent": 1, "scratch": 1}
    assert photos.summary.num_masks == 1


def test_good_next_to_test(tmp_path):
    make(tmp_path, *numbered("good", 5), "test/ok/0.png", "test/dent/0.png", "old/0.png")
    photos = read_folder(tmp_path)
    assert (photos.num_train, photos.summary.num_test) == (5, {"good": 1, "dent": 1})
    assert photos.summary.skipped == {"in old, which is not part of the layout": 1}


@pytest.mark.parametrize("folder", ["", "good/", "Normal/day1/"])
def test_only_good_photos(tmp_path, folder):
    photos = read_folder(make(tmp_path, *(f"{folder}{number}.png" for number in range(6))))
    assert (photos.num_train, len(photos.paths), photos.class_names) == (6, 6, ["good"])
    assert photos.summary.num_test == {}


def test_photos_in_the_folder_itself_next_to_bad(tmp_path):
    photos = read_folder(make(tmp_path, *(f"{number}.png" for number in range(5)), "bad/0.png", "day2/0.png"))
    assert (photos.num_train, photos.summary.num_test) == (4, {"good": 1, "bad": 1})
    assert photos.summary.skipped == {"in day2, which is not part of the layout": 1}


def test_a_folder_of_other_folders_is_refused(tmp_path):
    with pytest.raises(
        KdganError, match=r"no photo to train on .*2 in day1, which is not part .*into good next to bad"
    ):
        read_folder(make(tmp_path, "day1/0.png", "day1/1.png"))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(KdganError, match=r"there is no folder .*absent"):
        read_folder(tmp_path / "absent")


def test_a_folder_that_can_not_be_listed_is_refused(tmp_path, monkeypatch):
    def fail(_self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(KdganError, match=r"must be readable; .*Permission denied"):
        read_folder(tmp_path)
