"""A folder of 100,000 photos is trained on and scored within 1.5 GB; MANY_PHOTOS sets another number."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NUM_PHOTOS = int(os.environ.get("MANY_PHOTOS", "100000"))
MAX_MB = 1500
NUM_DISTINCT, SIDE = 500, 64


def write_photos(folder: Path) -> None:
    """Photos of noise around a ramp; the same 500 images, each time with other bytes behind the image."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 200, SIDE)[None, :, None]
    images = []
    for _ in range(NUM_DISTINCT):
        pixels = np.clip(ramp + rng.normal(0, 10, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    folder.mkdir(parents=True)
    for number in range(NUM_PHOTOS):
        (folder / f"{number:06}.jpg").write_bytes(images[number % NUM_DISTINCT] + number.to_bytes(4, "big"))


def run(*arguments: object) -> tuple[str, float]:
    """Standard output of a command, and the peak of its resident memory in MB."""
    command = [sys.executable, "-m", "kdgan_compress", *map(str, arguments)]
    measured = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    measured += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", measured, *command], capture_output=True, text=True, check=True)
    return done.stdout, int(done.stderr.splitlines()[-1]) / 1000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems measure memory in other units")
def test_many_photos_are_trained_on_and_scored_within_the_limit(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos" / "train" / "good")
    small = ["--channels", "2,4,8", "--num-images", "20000"]
    _, training = run("train", "--data", f"folder:{tmp_path / 'photos'}", *small, "--out", tmp_path / "run")
    run("export", "--model", tmp_path / "run", "-o", tmp_path / "d.onnx")
    output, scoring = run("score", tmp_path / "d.onnx", tmp_path / "photos" / "train" / "good", "--json")
    print(f"{NUM_PHOTOS} photos: training {training:.0f} MB, scoring {scoring:.0f} MB")
    assert len([line for line in output.splitlines() if json.loads(line)]) >= NUM_PHOTOS
    assert max(training, scoring) <= MAX_MB
