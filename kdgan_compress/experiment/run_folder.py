"""A run's folder: recipe, model, training state, one line of metrics an epoch, result."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import atomic_path, unwritable

MODEL_FILE = "model.safetensors"
SCORES_FILE = "scores.npz"


class RunFolder:
    """Paths and files of one run.

    Args:
        path: The folder; ``create`` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.model = path / MODEL_FILE
        self.teacher = path / "teacher.safetensors"
        self.state = path / "state.pt"
        self.metrics = path / "metrics.jsonl"
        self.scores = path / SCORES_FILE
        self.result = path / "result.json"

    def create(self, recipe: str) -> None:
        """Make the folder for a new run, with its resolved recipe as YAML.

        Raises:
            KdganError: It has a run in it already, or can't be written.
        """
        self.check_is_new()
        self.write_text(self.recipe, recipe)

    def check_is_new(self) -> None:
        """Check that there is no run here yet.

        Raises:
            KdganError: There is one.
        """
        if self.recipe.exists():
            raise KdganError(
                "A new run must have a folder of its own",
                f"found a run in {self.path}",
                "Give another --out, or continue that one with --resume",
            )

    def check_is_run(self) -> None:
        """Check that there is a run to be continued.

        Raises:
            KdganError: There is none.
        """
        if not self.recipe.exists():
            raise KdganError(
                "--resume must be given a run folder", f"found no run in {self.path}", "Check the path, or start one"
            )

    def write_text(self, path: Path, text: str) -> None:
        """Write one of the folder's text files, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.metrics, error) from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` but one that was cut short; empty where there is none."""
        if not self.metrics.exists():
            return []
        *whole, _ = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in whole]

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep what ``--resume`` needs."""
        with atomic_path(self.state) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # what torch makes of a full disk
                raise unwritable(self.state, OSError(first_line(error))) from None

    def load_state(self) -> dict[str, Any]:
        """Read what ``save_state`` kept; nothing is unpickled but tensors and plain values.

        Raises:
            KdganError: No state, or one that is cut short.
        """
        fix = "Start the run again with another --out"
        if not self.state.exists():
            raise KdganError("A run to be resumed must have finished an epoch", f"found no {self.state}", fix)
        try:
            state: dict[str, Any] = torch.load(self.state, weights_only=True, map_location="cpu")
        except Exception as error:  # torch names no narrower class for a damaged archive
            raise KdganError("state.pt must be whole", f"{self.state}: {first_line(error)}", fix) from None
        return state
