"""A tiny labelled data set, and a teacher and a student that the commands train once."""

from pathlib import Path

import numpy as np
import pytest
from command_line import Cli
from PIL import Image

from kdgan_compress.cli.main import run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class 0: smooth ramps; class 1: noise. 24 + 8 training images, 10 + 10 test images of 28×28."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 28)

    def images(smooth: int, noisy: int) -> tuple[np.ndarray, np.ndarray]:
        ramps = np.clip(ramp[None, None] + rng.normal(0, 8, (smooth, 28, 28)), 0, 255)
        noise = rng.uniform(0, 255, (noisy, 28, 28))
        return np.concatenate([ramps, noise]).astype(np.uint8), np.repeat([0, 1], [smooth, noisy])

    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    (x_train, y_train), (x_test, y_test) = images(24, 8), images(10, 10)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def runs(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of a teacher (4-8-16) and of its student (1-2-4, 2->3), and the student's detector.

    ``norm`` is a student with the paper's score.
    """
    folder = tmp_path_factory.mktemp("runs")
    made = {"teacher": folder / "teacher", "student": folder / "student", "detector": folder / "student.onnx"}
    tiny = ["--batch-size", "4", "--epochs", "2", "--json"]
    data = ["--data", f"npz:{npz}", "--normal", "0", "--width", "4", "--latent", "16"]
    assert run(["train", *data, *tiny, "--out", str(made["teacher"])]) == 0
    distil = ["distill", "--teacher", str(made["teacher"]), "--width", "1"]
    assert run([*distil, *tiny, "--out", str(made["student"])]) == 0
    made["norm"] = folder / "norm"
    assert run([*distil, *tiny, "--set", "score.type=norm", "--out", str(made["norm"])]) == 0
    assert run(["export", "--model", str(made["student"]), "-o", str(made["detector"])]) == 0
    return made


@pytest.fixture(scope="session")
def families(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of two small teachers of 16×16 images: a cvgad of three clusters and an ede."""
    folder = tmp_path_factory.mktemp("families")
    small = ["--width", "2", "--image-size", "16", "--latent", "8", "--norm", "batch"]
    tiny = ["--data", f"npz:{npz}", "--normal", "0", *small, "--batch-size", "4", "--epochs", "1"]
    cvgad = ["--recipe", "cvgad", "--num-clusters", "3"]
    assert run(["train", *cvgad, *tiny, "--out", str(folder / "cvgad")]) == 0
    assert run(["train", *tiny, "--out", str(folder / "ede")]) == 0
    return {"cvgad": folder / "cvgad", "ede": folder / "ede"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder in MVTec's layout with grey and colour photos of different sizes."""
    rng = np.random.default_rng(1)
    for part, count in (("train/good", 6), ("test/good", 3), ("test/scratch", 3)):
        (tmp_path / part).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40 + number, 52 - number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    return tmp_path
