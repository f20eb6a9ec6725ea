"""The committed detectors are whole, small, and score as they did when they were made."""

from pathlib import Path

import numpy as np
import pytest

from kdgan_compress.export.validation.golden import read_golden
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY

ROOT = Path(__file__).parents[2]
EXPORTS = ROOT / "exports"
NAMES = {"sneaker-1-2-4": "1-2-4", "digit-8-2-4-8": "2-4-8", "ship-8-16-64": "8-16-64", "sample-2-4-8": "2-4-8"}


def test_there_are_four_and_all_of_it_is_small() -> None:
    assert {path.parent.name for path in EXPORTS.glob("*/*.onnx")} == set(NAMES)
    shipped = [*EXPORTS.rglob("*"), *(ROOT / "recipes").rglob("*")]
    assert sum(path.stat().st_size for path in shipped if path.is_file()) < 4e6


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_detector_replays_its_golden_vectors(name: str) -> None:
    detector, golden = Detector(EXPORTS / name / f"{name}.onnx"), read_golden(EXPORTS / name / "golden.npz")
    assert golden.file_sha256 == detector.metadata[CHECKSUM_KEY]
    assert detector.metadata["channels"] == NAMES[name]
    scores = [detector.score(image[None]) for image in golden.images]
    np.testing.assert_allclose([each.score[0] for each in scores], golden.score, rtol=golden.tolerance)
    assert len({image.shape for image in golden.images}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_card_describes_its_file(name: str) -> None:
    file, card = EXPORTS / name / f"{name}.onnx", (EXPORTS / name / "card.md").read_text()
    detector = Detector(file)
    assert f"{file.stat().st_size:,} bytes" in card
    assert detector.metadata[CHECKSUM_KEY] in card
    assert detector.metadata["threshold_rule"] in card
    assert f"| [{name}]({name}/card.md)" in (EXPORTS / "README.md").read_text()
    assert f"{file.stat().st_size:,}" in (EXPORTS / "README.md").read_text()


@pytest.mark.parametrize(("name", "most"), [("sneaker-1-2-4", 90_000), ("digit-8-2-4-8", 300_000)])
def test_sizes(name: str, most: int) -> None:
    assert (EXPORTS / name / f"{name}.onnx").stat().st_size <= most
