"""The lower bounds of pyproject.toml: with exactly these versions of what ``score`` needs, scores are the same."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
DETECTORS = sorted(ROOT.glob("exports/*/*.onnx"))

pytestmark = pytest.mark.slow


def run(*command):
    ended = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def minimal_python(tmp_path_factory):
    """A Python with the oldest versions that the package allows for the runtime, and nothing for training."""
    folder = tmp_path_factory.mktemp("minimal")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = [each.replace(">=", "==") for each in project["dependencies"]]
    assert all("==" in each for each in oldest)
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *oldest)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", ROOT)
    return python


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Photos of several formats, sizes and colours."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, suffix in enumerate(("png", "bmp", "webp", "tiff", "avif")):
        shape = (40 + 7 * number, 52, 3) if number % 2 else (40 + 7 * number, 52)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.{suffix}")
    return folder


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda path: path.parent.name)
def test_scores_are_those_of_the_tested_versions(minimal_python, detector, images):
    command = ("-W", "error", "-m", "kdgan_compress", "score", detector, images, "--json")
    found, expected = (
        [json.loads(line) for line in run(python, *command).splitlines()] for python in (minimal_python, sys.executable)
    )
    assert len(found) == 5
    for each, wanted in zip(found, expected, strict=True):
        assert each.keys() == wanted.keys()
        assert each["score"] == pytest.approx(wanted["score"], rel=1e-4)
        assert each["is_anomaly"] == wanted["is_anomaly"]


def test_the_help_works_without_the_extra_and_training_says_what_to_install(minimal_python):
    assert "score" in run(minimal_python, "-m", "kdgan_compress", "--help")
    ended = subprocess.run(
        [minimal_python, "-m", "kdgan_compress", "train", "--out", "nowhere"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "kdgan-compress[train]" in ended.stderr
