"""`calibrate` from the command line: what it prints, and how it leaves the files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, assert_refused, only_json

from kdgan_compress.runtime import Detector


@pytest.fixture
def detector(runs: dict[str, Path], tmp_path: Path) -> Path:
    (tmp_path / "old").mkdir()
    for path in (runs["detector"], *(runs["detector"].with_name(n) for n in ("card.md", "golden.npz", "golden.json"))):
        shutil.copy(path, tmp_path / "old")
    return tmp_path / "old" / "student.onnx"


def test_a_new_threshold_and_what_the_old_one_would_have_done(
    cli: Cli, detector: Path, photos: Path, tmp_path: Path
) -> None:
    good, new = photos / "train" / "good", tmp_path / "new" / "here.onnx"
    code, out, err = cli("calibrate", detector, good, photos / "test" / "good", "-o", new)
    assert (code, err) == (0, "Warning: 9 photos make an uncertain threshold; give at least 20, or 100\n")
    old, here = Detector(detector), Detector(new)
    scores = [old.score_file(path)[0] for path in sorted([*good.iterdir(), *(photos / "test" / "good").iterdir()])]
    before, now = (sum(score > each.threshold for score in scores) for each in (old, here))
    assert here.threshold == pytest.approx(np.quantile(scores, 0.99))
    assert now == 1
    lines = out.splitlines()
    assert lines[0].split() == ["threshold", f"{here.threshold:.6g},", "was", f"{old.threshold:.6g}"]
    assert lines[1].split() == ["good", "photos", "9"]
    assert lines[2].split()[:5] == ["alarms", "before", str(before), "of", "9"]
    assert lines[3].split()[:5] == ["alarms", "now", "1", "of", "9"]
    assert lines[4].endswith(str(new))
    assert cli("verify", new)[:2][0] == 0
    code, out, err = cli("score", new, good, photos / "test" / "good")
    assert out.count("anomaly") == 1


def test_json_and_a_quantile(cli: Cli, detector: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "good" / "bad.png").write_text("not an image")
    call = ("calibrate", detector, photos / "train" / "good", "-o", tmp_path / "a.onnx", "--json")
    code, out, err = cli(*call, "--quantile", 0.5, "--threads", 2)
    found = only_json(out)
    assert code == 0
    assert found["num_photos"] == 6
    assert found["alarms_after"] == 3
    assert found["threshold"] == Detector(tmp_path / "a.onnx").threshold
    assert len(found["unreadable"]) == 1
    assert "bad.png" in err.splitlines()[0]
    assert found["files"][-1] == found["path"] == str(tmp_path / "a.onnx")


def test_the_default_quantile_is_that_of_the_function(cli: Cli, detector: Path, photos: Path, tmp_path: Path) -> None:
    from kdgan_compress.cli.calibrate import calibrate
    from kdgan_compress.runtime.calibration import THRESHOLD_QUANTILE

    assert {param.name: param.default for param in calibrate.params}["quantile"] == THRESHOLD_QUANTILE


def test_what_is_refused(cli: Cli, detector: Path, photos: Path, tmp_path: Path) -> None:
    good = photos / "train" / "good"
    before = detector.read_bytes()
    assert_refused(cli("calibrate", detector, good, "-o", detector), "another file", "student.onnx")
    assert_refused(cli("calibrate", detector, good, "-o", tmp_path / "x"), "end in .onnx")
    assert_refused(cli("calibrate", good / "0.png", good, "-o", tmp_path / "x.onnx"), "complete ONNX file")
    assert_refused(cli("calibrate", detector, good, "-o", tmp_path / "x.onnx", "--quantile", 1), "between 0 and 1")
    assert cli("calibrate", detector, good)[0] == 2
    assert cli("calibrate", detector, "-o", tmp_path / "x.onnx")[0] == 2
    assert detector.read_bytes() == before
    assert not (tmp_path / "x.onnx").exists()
