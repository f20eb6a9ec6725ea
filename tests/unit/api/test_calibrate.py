"""A calibrated copy against the onnx package, a new export at the same threshold, and `verify`."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from tile_detector import write_tile_detector

from kdgan_compress.api.calibrate import calibrate
from kdgan_compress.api.export import export_detector
from kdgan_compress.api.verify import verify
from kdgan_compress.errors import KdganError
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.golden import read_golden
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY

pytestmark = pytest.mark.usefixtures("quick_runs", "traced_once")


@pytest.fixture(scope="module")
def exported(pair, traced_once, tmp_path_factory):
    """Folder of the student's detector in fp16, so that its card has a comparison with fp32."""
    folder = tmp_path_factory.mktemp("exported")
    export_detector(pair / "student", folder / "s.onnx", settings=ExportSettings("fp16"))
    return folder


@pytest.fixture
def old(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "old")
    return tmp_path / "old" / "s.onnx"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """30 photos of several sizes: brighter than those of the training."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(30):
        ramp = np.linspace(90, 240, 20 + number % 3)[None] + rng.normal(0, 10, (18, 20 + number % 3))
        Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def scores_of(path, folder):
    detector = Detector(path)
    return np.array([detector.score_file(photo)[0] for photo in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize("quantile", [0.99, 0.8])
def test_the_copy_has_the_threshold_of_the_photos_and_nothing_else_changes(old, photos, tmp_path, quantile):
    new = tmp_path / "new" / "here.onnx"
    found = calibrate(old, [photos], new, quantile=quantile)
    scores = scores_of(old, photos)
    assert found.threshold == np.quantile(scores, quantile)
    assert (found.old_threshold, found.num_photos) == (Detector(old).threshold, 30)
    assert found.alarms_before == (scores > found.old_threshold).sum()
    assert found.alarms_after == (scores > found.threshold).sum() == (1 if quantile == 0.99 else 6)
    assert (found.unreadable, found.warnings) == ((), ())
    assert found.files == tuple(
        str(new.parent / name) for name in ("golden.npz", "golden.json", "card.md", "here.onnx")
    )
    np.testing.assert_array_equal(scores_of(new, photos), scores)
    model, before = onnx.load(new), onnx.load(old)
    onnx.checker.check_model(model, full_check=True)
    for each in (model, before):
        (tensor,) = (tensor for tensor in each.graph.initializer if tensor.name == "threshold")
        if each is model:
            assert numpy_helper.to_array(tensor) == np.float32(found.threshold)
        tensor.ClearField("raw_data")
        for entry in each.metadata_props:
            entry.value = "" if entry.key in ("threshold", "threshold_rule", CHECKSUM_KEY) else entry.value
    assert model == before


def test_verify_accepts_the_copy_and_its_sidecars(old, photos, pair, tmp_path):
    new = tmp_path / "new" / "here.onnx"
    calibrate(old, [photos], new)
    assert verify(new).ok
    assert verify(new, against=pair / "student", data=f"npz:{pair / 'set.npz'}", normal="0").ok
    with pytest.raises(KdganError, match="must belong to this file"):
        verify(shutil.copy(old, tmp_path / "new" / "old.onnx"))


def test_golden_vectors_keep_their_scores_and_get_new_decisions(old, photos, tmp_path):
    """At the median of the golden scores, half of them change their decision."""
    before = read_golden(old.with_name("golden.npz"))
    middle = float(np.median(before.score))
    detector = Detector(old)
    image = min((sorted(photos.glob("*.png"))), key=lambda photo: abs(detector.score_file(photo)[0] - middle))
    found = calibrate(old, [image], tmp_path / "here.onnx")
    golden = read_golden(tmp_path / "golden.npz")
    np.testing.assert_array_equal(golden.score, before.score)
    assert all(np.array_equal(*images) for images in zip(golden.images, before.images, strict=True))
    assert golden.is_anomaly.tolist() == [score > found.threshold for score in golden.score.astype(float)]
    assert golden.file_sha256 == Detector(tmp_path / "here.onnx").metadata[CHECKSUM_KEY] != before.file_sha256
    new, old_json = (json.loads(path.read_text()) for path in (tmp_path / "golden.json", old.with_name("golden.json")))
    assert [case.pop("is_anomaly") for case in new["cases"]] == golden.is_anomaly.tolist()
    for case in old_json["cases"]:
        del case["is_anomaly"]
    changed = {key for key in old_json if new[key] != old_json[key]}
    assert changed == {"detector", "file_sha256", "threshold", "threshold_rule"}
    assert (new["detector"], new["threshold"]) == ("here.onnx", found.threshold)


def test_verify_notices_decisions_of_another_threshold(old, photos, tmp_path):
    before = read_golden(old.with_name("golden.npz"))
    detector = Detector(old)
    low = min(sorted(photos.glob("*.png")), key=lambda photo: detector.score_file(photo)[0])
    calibrate(old, [low], tmp_path / "here.onnx")
    arrays = dict(np.load(tmp_path / "golden.npz"))
    assert (arrays["is_anomaly"] != before.is_anomaly).any()
    np.savez(tmp_path / "golden.npz", **arrays | {"is_anomaly": before.is_anomaly})
    found = verify(tmp_path / "here.onnx")
    assert not found.ok
    assert found.golden_decisions_differ == (arrays["is_anomaly"] != before.is_anomaly).sum()
    assert "the decision differs for" in found.failed[0]


def test_the_card_is_that_of_the_copy(old, photos, tmp_path):
    found = calibrate(old, [photos], tmp_path / "new" / "here.onnx")
    card, before = (tmp_path / "new" / "card.md").read_text(), old.with_name("card.md").read_text()
    size = (tmp_path / "new" / "here.onnx").stat().st_size
    assert card.startswith("# here.onnx\n")
    assert f"| file size | {size:,} bytes |" in card
    assert f"| threshold | {found.threshold:.6g}: {found.threshold_rule} |" in card
    assert f"score > {found.threshold:.9g}\n" in card
    assert Detector(found.path).metadata[CHECKSUM_KEY] in card
    assert 'forResource: "here"' in card
    assert "% of decisions equal at the exported threshold, " in card
    assert not re.search(r"\bs\.onnx", card)
    assert Detector(old).metadata[CHECKSUM_KEY] not in card
    assert len(card.splitlines()) == len(before.splitlines())
    differing = [
        line for line, old_line in zip(card.splitlines(), before.splitlines(), strict=True) if line != old_line
    ]
    known = ("here", "file size", "threshold", "decisions", "isAnomaly", "file_sha256")
    assert all(any(word in line for word in known) for line in differing)


def test_a_copy_can_be_calibrated_again(old, photos, tmp_path):
    once = calibrate(old, [photos], tmp_path / "a" / "x.onnx", quantile=0.5)
    twice = calibrate(once.path, [photos], tmp_path / "b" / "s.onnx")
    calibrate(old, [photos], tmp_path / "c" / "s.onnx")
    assert (twice.old_threshold, twice.warnings) == (once.threshold, ())
    for name in ("s.onnx", "golden.npz", "golden.json", "card.md"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_a_copy_in_the_same_folder_leaves_the_old_files_alone(old, photos):
    before = {path.name: path.read_bytes() for path in old.parent.iterdir()}
    found = calibrate(old, [photos], old.with_name("here.onnx"))
    assert {path.name: path.read_bytes() for path in old.parent.iterdir() if path.name in before} == before
    names = ["here.golden.npz", "here.golden.json", "here.card.md", "here.onnx"]
    assert [Path(file).name for file in found.files] == names
    assert (verify(old).ok, verify(old.with_name("here.onnx")).ok) == (True, True)
    card = old.with_name("here.card.md").read_text()
    assert "--card here.card.md\n" in card
    assert "- `here.golden.npz`: golden vectors" in card
    again = calibrate(old.with_name("here.onnx"), [photos], old.with_name("there.onnx"), quantile=0.5)
    assert [Path(file).name for file in again.files] == [name.replace("here", "there") for name in names]
    assert verify(old.with_name("there.onnx")).ok


def test_files_that_are_missing_or_of_another_detector_are_reported(old, photos, tmp_path):
    old.with_name("golden.json").unlink()
    old.with_name("golden.npz").unlink()
    card = old.with_name("card.md")
    card.write_text(card.read_text().replace("| threshold |", "| limit |"))
    found = calibrate(old, [photos], tmp_path / "a.onnx")
    assert [Path(file).name for file in found.files] == ["a.onnx"]
    assert [warning.split(";")[0] for warning in found.warnings] == [
        "not written: The golden vectors of the detector are missing",
        "not written: The card must be the detector's",
    ]
    card.unlink()
    assert "model card must be readable" in calibrate(old, [photos], tmp_path / "a.onnx").warnings[1]
    assert Detector(tmp_path / "a.onnx").threshold == found.threshold


def test_golden_vectors_of_another_detector_are_not_copied(old, photos, pair, tmp_path):
    export_detector(pair / "student", tmp_path / "other" / "s.onnx")
    shutil.copy(tmp_path / "other" / "golden.npz", old.with_name("golden.npz"))
    found = calibrate(old, [photos], tmp_path / "new" / "a.onnx")
    assert [Path(file).name for file in found.files] == ["card.md", "a.onnx"]
    assert "golden" not in (tmp_path / "new" / "card.md").read_text().partition("## Files")[2].partition("##")[0]


def test_phone_files_are_not_part_of_the_copy(old, photos, tmp_path):
    old.with_suffix(".ort").touch()
    (warning,) = calibrate(old, [photos], tmp_path / "a.onnx").warnings
    assert warning == "s.ort keeps the old threshold; set its input `threshold`"


def test_few_and_unreadable_photos(old, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(19):
        shutil.copy(photos / f"{number:02}.png", folder)
    (folder / "bad.png").write_text("not an image")
    found = calibrate(old, [folder, tmp_path / "gone.png"], tmp_path / "a.onnx")
    assert found.num_photos == 19
    assert [message.split(";")[0] for message in found.unreadable] == [
        "The file must be a readable image",
        "The image must exist",
    ]
    assert found.warnings == ("19 photos make an uncertain threshold; give at least 20, or 100",)
    shutil.copy(photos / "20.png", folder)
    assert calibrate(old, [folder], tmp_path / "a.onnx").warnings == ()


def test_what_is_refused_before_anything_is_written(old, photos, tmp_path):
    (tmp_path / "bad.png").write_text("not an image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.onnx").symlink_to(old)
    new = tmp_path / "new" / "a.onnx"
    for problem, arguments in {
        "needs another file": (old, [photos], old),
        "another file; .*link": (old, [photos], tmp_path / "link.onnx"),
        "must end in .onnx": (old, [photos], tmp_path / "a.bin"),
        "none could be scored: .*bad.png": (old, [tmp_path / "bad.png"], new),
        "none could be scored. Give": (old, [], new),
        "must hold images": (old, [tmp_path / "empty"], new),
        "must be a file": (tmp_path / "none.onnx", [photos], new),
    }.items():
        with pytest.raises(KdganError, match=problem):
            calibrate(*arguments)
    with pytest.raises(KdganError, match="between 0 and 1"):
        calibrate(old, [photos], new, quantile=99)
    assert not new.parent.exists()
    assert verify(old).ok


def test_a_detector_with_a_frame_and_negative_scores_can_be_calibrated(photos, tmp_path):
    old = write_tile_detector(tmp_path / "t.onnx", np.full((6, 8, 1), 128.0), -1.5)
    found = calibrate(old, [photos], tmp_path / "new" / "t.onnx")
    detector = Detector(found.path)
    assert (detector.frame, detector.map_unit) == ((6, 8), "score")
    assert (found.alarms_before, found.alarms_after) == (30, 1)
    assert detector.threshold == np.quantile(scores_of(old, photos), 0.99)
