"""What a kill may leave: under their own names, only files that are whole; and what the next run must have removed."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import torch
import yaml
from PIL import Image

from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.files import read_arrays
from kdgan_compress.runtime import Detector

TEMPORARY = re.compile(r".*\.tmp|\.lock")
UNLIKE = ("seconds", "images_per_s", "latency_us", "teacher_cache")
"""Times, and whether teacher features were computed or read."""


def check_whole(folder: Path) -> None:
    """Read every file that has its final name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not TEMPORARY.fullmatch(path.name) and "tmp" not in path.relative_to(folder).parts:
            _check(path)


def _check(path: Path) -> None:
    kind = path.suffix
    if kind == ".pt":
        torch.load(path, weights_only=True)
    elif path.name == RunFolder(path.parent).commit.name:
        assert not path.read_bytes()
    elif kind == ".safetensors":
        load_checkpoint(path)
    elif kind == ".json":
        json.loads(path.read_text())
    elif kind == ".jsonl":
        RunFolder(path.parent).read_metrics()
    elif kind == ".yaml":
        assert isinstance(yaml.safe_load(path.read_text()), dict)
    elif kind == ".npz":
        assert read_arrays(path, 10**8)
    elif kind == ".npy":
        np.load(path, allow_pickle=False)
    elif kind == ".png":
        with Image.open(path) as image:
            image.load()
    elif kind == ".onnx":
        onnx.checker.check_model(onnx.load(path))
        Detector(path)
    else:
        assert kind in (".md", ".txt", ".csv"), f"{path} is of no known kind"
        assert path.read_text()


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders, and locks."""
    names = [path.name for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name)]
    scratch = folder / "tmp"
    return names + ([path.name for path in scratch.iterdir()] if scratch.is_dir() else [])


def contents(folder: Path) -> dict[str, object]:
    """Every file's content by relative path, without times, measured latencies and this folder's path."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or name.startswith("tmp/") or path.suffix == ".png":
            continue
        if path.suffix == ".jsonl":
            found[name] = [_without_times(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = _without_times(json.loads(path.read_text()))
        elif path.name == "card.md":
            found[name] = re.sub(r"[\d.,]+ (µs|ms)", "", path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


def _without_times(values: object) -> object:
    if isinstance(values, list):
        return [_without_times(each) for each in values]
    if not isinstance(values, dict):
        return values
    return {key: _without_times(value) for key, value in values.items() if key not in UNLIKE}
