import os
import sys
from pathlib import Path

import pytest

from kdgan_compress.errors import KdganError
from kdgan_compress.runtime import image_files
from kdgan_compress.runtime.image_files import ImageList, find_images, list_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(found: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


@pytest.fixture(autouse=True)
def _without_heic(monkeypatch):
    monkeypatch.setattr(image_files, "has_heic_support", lambda: False)


def test_images_are_sorted_and_found_in_subfolders(tmp_path):
    wanted = ["B.PNG", "a.jpg", "deep/er/x.TIFF", "deep/y.WebP", "z.bmp"]
    touch(tmp_path, *wanted, ".hidden.png", "deep/.x.png", ".git/y.png", "notes.txt", "a.jpg.bak", "png")
    (tmp_path / "folder.png").mkdir()
    assert names(find_images(tmp_path), tmp_path) == wanted
    found = list_images(tmp_path)
    assert names(found.images, tmp_path) == wanted
    assert found.masks == []
    assert found.skipped == {
        ".txt: not an image format": 1,
        ".bak: not an image format": 1,
        "without a suffix: not an image format": 1,
    }
    assert names(list_images(tmp_path, recursive=False).images, tmp_path) == ["B.PNG", "a.jpg", "z.bmp"]


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".gif", ".jp2", ".JPG"])
def test_formats_of_cameras_and_phones_are_images(tmp_path, suffix):
    touch(tmp_path, f"a{suffix}")
    assert names(find_images(tmp_path), tmp_path) == [f"a{suffix}"]


def test_heic_is_an_image_if_its_library_is_installed(tmp_path, monkeypatch):
    touch(tmp_path, "a.HEIC", "b.heif", "c.png")
    found = list_images(tmp_path)
    assert names(found.images, tmp_path) == ["c.png"]
    assert found.skipped == {"HEIC: pip install 'kdgan-compress[heic]'": 2}
    monkeypatch.setattr(image_files, "has_heic_support", lambda: True)
    assert names(find_images(tmp_path), tmp_path) == ["a.HEIC", "b.heif", "c.png"]


@pytest.mark.parametrize("folder", ["ground_truth", "Ground Truth", "masks", "mask", "gt", "groundtruth "])
def test_masks_are_not_images(tmp_path, folder):
    touch(tmp_path, "crack/000.png", "crack/000_mask.png", f"{folder}/crack/001.png", f"crack/{folder}/2.png")
    found = list_images(tmp_path)
    assert names(found.images, tmp_path) == ["crack/000.png"]
    assert len(found.masks) == 3
    assert len(find_images(tmp_path / folder)) == 1  # asked for by its name


def test_system_files_are_passed_over(tmp_path):
    touch(tmp_path, "a.png", "Thumbs.db", "desktop.ini", ".DS_Store", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg")
    touch(tmp_path, "__MACOSX/._a.png", "__MACOSX/b.png", "$RECYCLE.BIN/c.png")
    found = list_images(tmp_path)
    assert names(found.images, tmp_path) == ["a.png"]
    assert found.skipped == {"in @eaDir": 1, "in __MACOSX": 1, "in $RECYCLE.BIN": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_and_loops_are_not(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "photos/b.png")
    folder = tmp_path / "photos"
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    (folder / "c.png").symlink_to(folder / "b.png")
    (folder / "gone.png").symlink_to(tmp_path / "absent.png")
    os.mkfifo(folder / "pipe.png")
    found = list_images(folder)
    assert names(found.images, folder) == ["b.png", "c.png", "more/a.png"]
    assert found.skipped == {"broken links, pipes or devices": 2}
    (tmp_path / "link").symlink_to(folder)
    assert len(find_images(tmp_path / "link")) == 3


def test_empty_folders_give_nothing_and_stop_nothing(tmp_path):
    (tmp_path / "empty/deep").mkdir(parents=True)
    assert list_images(tmp_path) == ImageList([], [], {})


def test_find_images_needs_a_folder(tmp_path):
    with pytest.raises(KdganError, match="folder must exist"):
        find_images(tmp_path / "absent")


def test_find_images_needs_images_and_says_what_else_there_is(tmp_path):
    touch(tmp_path, "notes.txt", "a.heic")
    with pytest.raises(KdganError, match=r"must hold images; .*2 skipped \(.*1 HEIC: pip install .*\.png"):
        find_images(tmp_path)


def test_the_text_counts_all_kinds(tmp_path):
    touch(tmp_path, "a.png", "b.png", "a_mask.png", "1.txt", "2.txt", "3.csv")
    found = "2 images; 1 masks; 3 skipped (2 .txt: not an image format; 1 .csv: not an image format)"
    assert str(list_images(tmp_path)) == found
    touch(tmp_path, *(f"{number}.x{number}" for number in range(9)))
    assert str(list_images(tmp_path)).endswith("not an image format; others)")
