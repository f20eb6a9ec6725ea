"""`score` on archives as they are: sizes of all kinds, and files that no program can read."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from brightness import write_brightness
from command_line import Cli, assert_refused
from PIL import Image
from tile_detector import write_tile_detector

from kdgan_compress.runtime import Detector

THRESHOLD = 100.5


def grey(level: int, height: int, width: int) -> Image.Image:
    return Image.new("L", (width, height), level)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_brightness(tmp_path_factory.mktemp("detector") / "d.onnx", 1, THRESHOLD)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Good images of several sizes and kinds among bad ones, and what is no image by its name."""
    folder = tmp_path / "archive"
    (folder / "deeper" / "still").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for number, (height, width) in enumerate([(20, 30), (20, 30), (30, 20), (20, 30), (7, 5)]):
        grey(60 + 20 * number, height, width).save(folder / f"{2 * number:02}-good.png")
    grey(200, 8, 8).save(folder / "deeper" / "still" / "good.bmp")
    grey(10, 8, 8).convert("RGB").save(folder / "deeper" / "good.webp", lossless=True)
    grey(1, 8, 8).save(folder / ".hidden" / "good.png")
    (folder / "readme.txt").write_text("no image and not said to be one")
    (folder / "01-junk.jpg").write_bytes(bytes(range(256)))
    (folder / "03-empty.png").touch()
    pages = [grey(level, 8, 8) for level in (1, 2, 3)]
    pages[0].save(folder / "05-pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "06-deep.png")
    Image.new("CMYK", (8, 8)).save(folder / "07-print.jpg")
    photo = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(photo, "JPEG")
    (folder / "09-cut.jpg").write_bytes(photo.getvalue()[:1500])
    (folder / "10-exif.jpg").write_bytes(with_a_width_in_words())
    return folder


def with_a_width_in_words() -> bytes:
    """A JPEG to be turned upright whose EXIF says "cam" where the width in pixels belongs, as a text."""
    exif, written = Image.Exif(), io.BytesIO()
    exif[0x0110], exif[0x0112] = "cam", 6
    grey(90, 8, 8).save(written, "JPEG", exif=exif)
    content = written.getvalue()
    model = content.index(b"\x01\x10\x00\x02")
    return content[: model + 1] + b"\0" + content[model + 2 :]


GOOD = {
    "00-good.png": 60,
    "02-good.png": 80,
    "04-good.png": 100,
    "06-good.png": 120,
    "08-good.png": 140,
    "good.webp": 10,
    "good.bmp": 200,
    "10-exif.jpg": 90,
}
BAD = {
    "01-junk.jpg": "not an image",
    "03-empty.png": "not an image",
    "05-pages.tif": "has 3",
    "06-deep.png": "8 bits per channel",
    "07-print.jpg": "CMYK",
    "09-cut.jpg": "truncated",
}
FOUND = "14 images; 1 skipped (1 .txt: not an image format)"
COUNTED = "14 images: 3 above the threshold 100.5, 6 could not be read"


def test_lines_for_people(cli: Cli, detector: Path, archive: Path) -> None:
    code, out, err = cli("score", detector, archive)
    assert code == 1
    lines = [line.split(maxsplit=3) for line in out.splitlines()]
    in_order = [*sorted(path for path in GOOD if path[0] in "01"), "good.webp", "good.bmp"]
    assert [Path(path).name for *_, path in lines] == in_order
    for score, relative, verdict, path in lines:
        level = GOOD[Path(path).name]
        assert float(score) == pytest.approx(level)
        assert float(relative) == pytest.approx(level / THRESHOLD, abs=0.005)
        assert verdict == ("anomaly" if level > THRESHOLD else "normal")
    *errors, found, counted = err.splitlines()
    assert found.endswith(FOUND)
    assert counted == COUNTED
    for line, (name, reason) in zip(errors, sorted(BAD.items()), strict=True):
        assert line.startswith("Error: ")
        assert name in line
        assert reason in line


def test_csv_is_read_back(cli: Cli, detector: Path, archive: Path) -> None:
    (archive / "00-good.png").rename(archive / '00, "good"\n.png')
    code, out, err = cli("score", detector, archive, "--csv")
    assert code == 1
    assert [line.removeprefix(f"{archive}: ") for line in err.splitlines()] == [FOUND, COUNTED]
    header, *rows = list(csv.reader(io.StringIO(out)))
    assert header == ["path", "score", "is_anomaly", "error", "relative"]
    assert [Path(row[0]) for row in rows] == sorted(path for path in map(Path, {row[0] for row in rows}))
    assert {Path(row[0]).name for row in rows} == {*GOOD, *BAD, '00, "good"\n.png'} - {"00-good.png"}
    for path, score, is_anomaly, error, relative in rows:
        name = Path(path).name.replace(', "good"\n', "-good")
        if name in BAD:
            assert (score, is_anomaly, relative) == ("", "", "")
            assert BAD[name] in error
        else:
            assert error == ""
            assert float(score) == pytest.approx(GOOD[name])
            assert is_anomaly == str(GOOD[name] > THRESHOLD)
            assert float(relative) == pytest.approx(GOOD[name] / THRESHOLD)


def test_json_is_an_object_a_line(cli: Cli, detector: Path, archive: Path) -> None:
    code, out, err = cli("score", detector, archive, "--json")
    found = {Path(each["path"]).name: each for each in map(json.loads, out.splitlines())}
    assert code == 1
    assert [line.removeprefix(f"{archive}: ") for line in err.splitlines()] == [FOUND, COUNTED]
    assert found.keys() == GOOD.keys() | BAD.keys()
    for name, level in GOOD.items():
        assert found[name].keys() == {"path", "score", "is_anomaly", "relative"}
        assert found[name]["relative"] == pytest.approx(level / THRESHOLD)
        assert found[name]["score"] == pytest.approx(level)
        assert found[name]["is_anomaly"] is (level > THRESHOLD)
    assert all(found[name].keys() == {"path", "error"} and BAD[name] in found[name]["error"] for name in BAD)


@pytest.mark.parametrize("more", [["--batch", 1], ["--batch", 3, "--threads", 2], ["--batch", 500, "--threads", 8]])
def test_batches_and_threads_change_nothing(cli: Cli, detector: Path, archive: Path, more: list[object]) -> None:
    assert cli("score", detector, archive, "--json", *more) == cli("score", detector, archive, "--json")


def test_a_trained_detector_says_of_a_folder_what_it_says_of_each_file(
    cli: Cli, runs: dict[str, Path], photos: Path
) -> None:
    detector = Detector(runs["detector"])
    for more in ([], ["--batch", 1], ["--batch", 64, "--threads", 3]):
        code, out, err = cli("score", runs["detector"], photos, "--json", *more)
        found = [json.loads(line) for line in out.splitlines()]
        assert (code, len(found)) == (0, 12)
        scores = [detector.score_file(each["path"])[0] for each in found]
        np.testing.assert_allclose([each["score"] for each in found], scores, rtol=1e-6)
        assert "could not be read" not in err


def test_files_and_folders_in_the_order_given(cli: Cli, detector: Path, archive: Path) -> None:
    given = (archive / "08-good.png", archive / "deeper", archive / "nowhere.png", archive / "00-good.png")
    code, out, err = cli("score", detector, *given, "--csv")
    assert code == 1
    names = [Path(row[0]).name for row in csv.reader(io.StringIO(out))][1:]
    assert names == ["08-good.png", "good.webp", "good.bmp", "nowhere.png", "00-good.png"]
    assert "must exist" in out
    assert err == "5 images: 2 above the threshold 100.5, 1 could not be read\n"


def test_the_threshold_is_ones_own_to_choose(cli: Cli, detector: Path, archive: Path) -> None:
    code, out, err = cli("score", detector, archive / "00-good.png", archive / "02-good.png", "--threshold", 60)
    assert code == 0
    assert [line.split()[1:3] for line in out.splitlines()] == [["1.00", "normal"], ["1.33", "anomaly"]]  # above it
    assert err == "2 images: 1 above the threshold 60\n"


def test_one_image_needs_no_count(cli: Cli, detector: Path, archive: Path) -> None:
    code, out, err = cli("score", detector, archive / "00-good.png")
    assert (code, err) == (0, "")
    assert out.split() == ["60", "0.60", "normal", str(archive / "00-good.png")]


def test_a_threshold_that_is_not_positive_gives_no_relative_score(cli: Cli, detector: Path, archive: Path) -> None:
    _, out, _ = cli("score", detector, archive / "00-good.png", "--threshold", -1)
    assert out.split()[:3] == ["60", "–", "anomaly"]
    _, out, _ = cli("score", detector, archive / "00-good.png", "--threshold", 0, "--json")
    assert json.loads(out)["relative"] is None


@pytest.mark.parametrize("threshold", ["nan", "inf"])
def test_a_threshold_that_no_score_exceeds(cli: Cli, detector: Path, archive: Path, threshold: str) -> None:
    assert_refused(cli("score", detector, archive, "--threshold", threshold), "must be a finite number")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector whose map is the difference from grey level 60, at 6×8."""
    return write_tile_detector(tmp_path_factory.mktemp("tiles") / "t.onnx", np.full((6, 8, 1), 60.0), 30.0)


def test_maps_are_drawn_over_the_photos(cli: Cli, tiles: Path, archive: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()}
    maps = tmp_path / "maps"
    code, out, err = cli("score", tiles, archive, archive / "00-good.png", "--maps", maps, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    num_anomalies = sum(abs(level - 60) > 30 for level in GOOD.values())
    summary = f"{len(GOOD) + len(BAD) + 1} images: {num_anomalies} above the threshold 30, {len(BAD)} could not be read"
    assert err.splitlines()[-1] == summary
    assert {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()} == before
    named = {each["map"]: each["path"] for each in found if "error" not in each}
    assert all("map" not in each for each in found if "error" in each)
    assert {str(path) for path in maps.rglob("*") if path.is_file()} == set(named)
    assert len(named) == len(GOOD) + 1  # one photo twice
    assert sorted(Path(path).relative_to(maps).as_posix() for path in named)[:2] == [
        "00-good-2.map.jpg",
        "00-good.map.jpg",
    ]
    assert str(maps / "deeper" / "still" / "good.map.jpg") in named
    for overlay, path in named.items():
        image = np.asarray(Image.open(overlay)).astype(int)
        red = abs(image[2, 2] - (190, 20, 20)).max() < 40
        assert red == (abs(GOOD[Path(path).name] - 60) > 30)


def test_maps_in_csv(cli: Cli, tiles: Path, archive: Path, tmp_path: Path) -> None:
    _, out, _ = cli(
        "score", tiles, archive / "00-good.png", archive / "03-empty.png", "--maps", tmp_path / "m", "--csv"
    )
    header, good, bad = list(csv.reader(io.StringIO(out)))
    assert header == ["path", "score", "is_anomaly", "error", "relative", "map"]
    assert good[-1] == str(tmp_path / "m" / "00-good.map.jpg")
    assert bad[-1] == ""


def test_maps_that_cannot_be_drawn(cli: Cli, detector: Path, tiles: Path, archive: Path, tmp_path: Path) -> None:
    assert_refused(cli("score", detector, archive, "--maps", tmp_path / "m"), "no anomaly map", "--anomaly-map")
    assert_refused(cli("score", tiles, archive, "--maps", archive / "m"), "outside of the scored folders")
    assert not (tmp_path / "m").exists()
    (tmp_path / "file").touch()
    assert_refused(cli("score", tiles, archive / "00-good.png", "--maps", tmp_path / "file"), "must be writable")


def test_an_empty_folder_stops_nothing(cli: Cli, detector: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").touch()
    code, out, err = cli("score", detector, archive / "00-good.png", tmp_path / "empty", tmp_path / "notes")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "1 skipped (1 .txt: not an image format)" in err


def test_what_is_refused_before_anything_is_scored(cli: Cli, detector: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(cli("score", detector, tmp_path / "empty"), "must hold images", "empty")
    assert_refused(cli("score", archive / "00-good.png", archive), "complete ONNX file", "00-good.png")
    assert_refused(cli("score", tmp_path / "none.onnx", archive), "must be a file", "none.onnx")
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(detector.read_bytes().replace(b"brightness", b"Brightness"))
    assert_refused(cli("score", changed, archive), "changed after its export")
    for wrong in (["--json", "--csv"], ["--batch", 0], ["--threads", 0], ["--batch", "x"]):
        assert cli("score", detector, archive, *wrong)[0] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are text")
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_name_that_is_no_text(detector: Path, tmp_path: Path, form: list[str]) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    grey(60, 8, 8).save(folder / os.fsdecode(b"caf\xe9.png"))  # Latin-1, as an old archive has it
    (folder / os.fsdecode(b"\xe9.png")).write_bytes(b"junk")
    done = subprocess.run(
        [sys.executable, "-m", "kdgan_compress", "score", detector, folder, *form],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},  # as in most people's terminals, if not in C.UTF-8
        timeout=60,
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    if form == ["--json"]:  # every line is valid JSON and UTF-8, and names the file
        paths = [json.loads(line)["path"] for line in done.stdout.decode("utf-8").splitlines()]
        assert any(os.fsencode(path).endswith(b"caf\xe9.png") for path in paths)
    else:
        assert b"caf\xe9.png" in done.stdout
    assert done.stderr.endswith(b"2 images: 0 above the threshold 100.5, 1 could not be read\n")
