"""What the commands say about a folder of photos: on stderr, once, with and without --json."""

import json
from pathlib import Path

import pytest
from command_line import Cli
from PIL import Image


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten grey photos and a coloured one, three formats and systems, a copy, masks and photos without a class."""
    folder = tmp_path_factory.mktemp("data") / "messy"
    names = [f"train/Good/{number:04}.png" for number in range(11)]
    names += ["train/Good/@eaDir/0001.png", "test/OK /a.png", "test/dent/a.png", "test/dent/a_mask.png", "test/b.png"]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 10 * number).save(path)
    Image.new("RGB", (40, 32), (200, 50, 50)).save(folder / "train/Good/0005.png")
    (folder / "test/dent/copy.png").write_bytes((folder / "train/Good/0003.png").read_bytes())
    (folder / "test/crack").mkdir()
    (folder / "train/Good/Thumbs.db").touch()
    (folder / "train/Good/notes.txt").touch()
    return folder


USED = (
    "photos: 11 to train on, 3 to test (1 good, 2 dent, masks for 1); 3 skipped "
    "(1 .txt: not an image format; 1 in @eaDir; 1 in test without a class folder)"
)


def test_train_and_evaluate_say_what_a_folder_is_used_for(cli: Cli, messy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = cli(
        *("train", "--data", f"folder:{messy}", "--width", 1, "--epochs", 1, "--out", run, "--track-auc", "--json")
    )
    assert code == 0
    assert json.loads(out)["auc"] is not None
    used, unsorted, copies, colour, first_epoch, *_ = err.splitlines()
    assert used == USED
    assert unsorted.startswith("Warning: 1 photos in test have no class folder and are not used; sort them into ")
    assert copies.startswith("Warning: 1 test photos are copies of training photos (")
    assert colour == "photos: in colour (for example 0005.png)"
    assert first_epoch.startswith("stage ")
    code, out, err = cli("evaluate", "--model", run, "--json")
    assert code == 0
    assert json.loads(out)["num_novel"] == 2
    assert err.splitlines() == [used, unsorted, copies]


def test_a_grey_folder_makes_a_grey_detector_and_says_so(cli: Cli, tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / f"good/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (50 * number,) * 3).save(path)
    code, _, err = cli("train", "--data", f"folder:{tmp_path}", "--width", 1, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0
    assert err.splitlines()[:3] == [
        "photos: 3 to train on, 0 to test",
        "Warning: only 3 photos to train on; use at least 10, better 50",
        "photos: grey (no coloured pixel in 3 of 3 training photos)",
    ]
    assert "image_channels: 1" in (tmp_path / "run/recipe.yaml").read_text()
