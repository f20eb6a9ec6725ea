"""The commands that are killed: how each begins, how it is continued, and what must be equal in the end."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from killed_command import Ended, ForkServer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
from ganomaly_networks import PublicNetG, random_weights

MODEL = ("--channels", "1,1", "--norm", "instance", "--batch-size", "4")
NEW = ("--image-size", "16", "--latent", "4")
STRUCTURES = {"1": ("1", 2), "2": ("2", 2), "2-3": ("2->3", 1), "2-4": ("2->4", 1)}


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        name: Of the case.
        start: Its command line, which writes to a folder.
        resume: The first words of the command that continues it; None where the same command does.
        is_training: Whether it needs a process that torch lets train.
    """

    name: str
    start: Callable[[Path], list[object]]
    resume: str | None = None
    is_training: bool = True

    def go_on(self, server: ForkServer, folder: Path) -> Ended:
        """Continue after a kill: with the same command, or with --resume if that says that there is a run."""
        ended = server.run(self.start(folder), folder)
        if ended.code == 1 and self.resume is not None and "--resume" in ended.output:
            ended = server.run([self.resume, "--resume", folder / "out"], folder)
        return ended


def write_inputs(base: Path) -> None:
    """A data set of three classes of different sizes, photos, a foreign checkpoint, and the recipe of a sweep."""
    rng = np.random.default_rng(0)
    labels = np.repeat(range(3), (9, 10, 13))
    images = rng.integers(0, 256, (32, 16, 16), dtype=np.uint8)
    torch.save({"state_dict": random_weights(PublicNetG(32, nz=4, nc=1, ngf=2)).state_dict()}, base / "netG.pth")
    np.savez(base / "set.npz", x_train=images, y_train=labels, x_test=images[::2], y_test=labels[::2])
    (base / "photos").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(base / "photos" / f"{number}.png")
    small = {"channels": [1, 1], "norm": "instance"}
    training = {"batch_size": 4, "epochs": 1, "threads": 1}
    recipe = {
        "description": "A tiny grid.",
        "data": {"source": f"npz:{base / 'set.npz'}", "normal": "0"},
        "model": small | {"image_size": 16, "latent_size": 4},
        "training": training,
        "distillation": {"student": small, "schedule": "2->3", "training": training},
        "sweep": {"axes": {"normal": "0..1"}},
    }
    (base / "grid.yaml").write_text(yaml.safe_dump(recipe))


def cases(base: Path) -> dict[str, Case]:
    """All cases; those after the first need ``base / "teacher"``, and calibrate needs ``base / "detector"``."""
    data = ("--data", f"npz:{base / 'set.npz'}")
    teacher, detector = ("--teacher", base / "teacher"), base / "detector" / "d.onnx"

    def distil(schedule: str, epochs: int, *more: object) -> Callable[[Path], list[object]]:
        options = ("--schedule", schedule, "--epochs", epochs, *more)
        return lambda folder: ["distill", *teacher, *MODEL, *options, "--out", folder / "out"]

    trained = ["train", *data, *NEW, *MODEL]
    found = [
        Case("train", lambda folder: [*trained, "--epochs", 2, "--normal", 0, "--out", folder / "out"], "train"),
        *(Case(f"distill-{name}", distil(*values), "distill") for name, values in STRUCTURES.items()),
        Case(
            "cache",
            lambda folder: distil("1", 1, "--cache", folder / "cache")(folder),
            "distill",
        ),
        Case(
            "fleet",
            lambda folder: [*trained, "--epochs", 1, "--normal", "0..2", "--fleet", 3, "--out", folder / "out"],
            "train",
        ),
        Case(
            "sweep",
            lambda folder: ["sweep", base / "grid.yaml", "--distill", "--workers", 1, "--out", folder / "out"],
        ),
        Case(
            "export",
            lambda folder: ["export", "--model", base / "teacher", "-o", folder / "out" / "d.onnx"],
            is_training=False,
        ),
        Case(
            "calibrate",
            lambda folder: [
                "calibrate",
                detector,
                base / "photos",
                "-o",
                folder / "out" / "d.onnx",
            ],
            is_training=False,
        ),
        Case(
            "search",
            lambda folder: [
                *("search", *teacher, "--channels", "1,1", "--norm", "instance", "--precision", "fp32"),
                *("--max-kb", 9999, "--set", "distillation.training.epochs=1", "--out", folder / "out"),
            ],
        ),
        Case(
            "report",
            lambda folder: [
                *("report", base / "teacher", "--no-baselines", "--no-latency"),
                *("-o", folder / "out" / "r.md", "-o", folder / "out" / "r.csv"),
            ],
            is_training=False,
        ),
        Case(
            "import",
            lambda folder: ["import", base / "netG.pth", *data, "--normal", 0, "--out", folder / "out"],
            "train",
            is_training=False,
        ),
    ]
    return {case.name: case for case in found}
