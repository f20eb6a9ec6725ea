import json
import subprocess
import sys

import numpy as np
import pytest
from brightness import write_brightness
from PIL import Image
from tile_detector import write_tile_detector

HEAVY = (
    "torch",
    "torchvision",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "sklearn",
    "scipy",
    "matplotlib",
    "pydantic",
    "yaml",
    "safetensors",
    "rich",
    "fvcore",
    "jinja2",
    "pytorch_msssim",
)
COMMANDS = (
    *("demo", "train", "distill", "evaluate", "profile", "export", "verify", "score", "calibrate"),
    *("pictures", "trials", "sweep", "report", "search", "bench", "recipes"),
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def imported(importtime: str) -> set[str]:
    """Top-level names in what ``python -X importtime`` writes."""
    return {line.rsplit("|", 1)[1].strip().partition(".")[0] for line in importtime.splitlines() if "|" in line}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``d.onnx``, whose score is an image's mean grey level, and a grey ``photo.png`` of level 90."""
    folder = tmp_path_factory.mktemp("device")
    write_brightness(folder / "d.onnx", threshold=50.0)
    Image.new("L", (8, 6), 90).save(folder / "photo.png")
    return folder


def test_importtime_shows_a_heavy_module():
    assert "yaml" in imported(python("-X", "importtime", "-c", "import yaml").stderr)


def test_help_imports_nothing_heavy():
    result = python("-X", "importtime", "-m", "kdgan_compress", "--help")
    assert result.returncode == 0, result.stderr
    assert all(command in result.stdout for command in COMMANDS)
    assert "kdgan_compress" in imported(result.stderr)
    assert imported(result.stderr) & set(HEAVY) == set()


def test_the_help_of_every_command_needs_no_torch():
    code = f"""
import sys
from kdgan_compress.cli.main import run
assert [run([command, "--help"]) for command in {COMMANDS}] == [0] * {len(COMMANDS)}
print(sorted(set(sys.modules) & set({HEAVY})))
"""
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_score_imports_nothing_heavy(folder):
    result = python("-X", "importtime", "-m", "kdgan_compress", "score", str(folder / "d.onnx"), str(folder))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[:3] == ["90", "1.80", "anomaly"]
    assert {"kdgan_compress", "onnxruntime"} <= imported(result.stderr)
    assert imported(result.stderr) & set(HEAVY) == set()


def test_the_runtime_needs_no_training_extra(folder):
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))
from kdgan_compress.runtime import Detector
print(Detector({str(folder / "d.onnx")!r}).score_file({str(folder / "photo.png")!r}))
"""
    result = python("-W", "error", "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "(90.0, True)"


def test_the_score_command_needs_no_training_extra(folder):
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))
from kdgan_compress.cli.main import run
sys.exit(run(["score", {str(folder / "d.onnx")!r}, {str(folder)!r}, "--json"]))
"""
    result = python("-W", "error", "-c", code)
    assert result.returncode == 0, result.stderr
    expected = {"path": str(folder / "photo.png"), "score": 90.0, "is_anomaly": True, "relative": 1.8}
    assert json.loads(result.stdout) == expected


def test_maps_and_calibration_need_no_training_extra(folder, tmp_path):
    write_tile_detector(tmp_path / "t.onnx", np.full((6, 8, 1), 80.0), 5.0)
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))
from kdgan_compress.cli.main import run
folder, photos = {str(tmp_path)!r}, {str(folder)!r}
assert run(["calibrate", folder + "/t.onnx", photos, "-o", folder + "/new/here.onnx"]) == 0
sys.exit(run(["score", folder + "/new/here.onnx", photos, "--maps", folder + "/maps"]))
"""
    result = python("-W", "error", "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].split() == ["threshold", "10,", "was", "5"]
    assert result.stdout.splitlines()[-1].split()[:3] == ["10", "1.00", "normal"]
    assert (tmp_path / "maps" / "photo.map.jpg").stat().st_size > 1000


def test_training_without_its_extra_names_the_package_to_install(tmp_path):
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))
from kdgan_compress.cli.main import run
sys.exit(run(["demo", "--out", {str(tmp_path / "demo")!r}]))
"""
    result = python("-c", code)
    assert result.returncode == 1
    assert list(tmp_path.iterdir()) == []
    assert result.stderr.count("\n") == 1
    assert "pip install 'kdgan-compress[train]'" in result.stderr


def test_no_module_needs_a_development_package():
    code = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(["hypothesis", "jaxtyping", "pytest", "pytorch_msssim", "selenium"]))
import kdgan_compress
for module in pkgutil.walk_packages(kdgan_compress.__path__, "kdgan_compress."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_demo_checks_its_folder_before_torch_is_imported(tmp_path):
    (tmp_path / "notes.txt").write_text("not a demo's")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))
from kdgan_compress.cli.main import run
sys.exit(run(["demo", "--out", {str(tmp_path)!r}]))
"""
    result = python("-c", code)
    assert result.returncode == 1
    assert f"found files in {tmp_path}" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_fleet_is_built_without_torchs_compiler():
    code = """
import sys
from kdgan_compress.accel.fleet import stack_gan
from kdgan_compress.gans import Architecture, build
gans = [build(Architecture(channels=(1, 2), image_size=16, latent_size=4), seed) for seed in (0, 1)]
before = {"torch._dynamo", "sympy"} & set(sys.modules)
assert stack_gan(gans).keys() == {"generator", "discriminator"}
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules) - before))
"""
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
