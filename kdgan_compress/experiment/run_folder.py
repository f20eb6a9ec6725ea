"""A run folder: recipe, model, training state, scores, one line of metrics per epoch, result."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.files import atomic_path, unwritable, write_text

MODEL_FILE = "model.safetensors"
SCORES_FILE = "scores.npz"


class RunFolder:
    """Paths and files of one run; ``create`` creates the folder."""

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
        """Create the folder of a new run with its resolved recipe as YAML; see ``check_is_new``."""
        self.check_is_new()
        write_text(self.recipe, recipe)

    def check_is_new(self) -> None:
        """Raise a KdganError if the folder has a run already."""
        if self.recipe.exists():
            hint = "Give another --out, or continue that run with --resume"
            raise KdganError("A new run needs a new folder", f"found a run in {self.path}", hint)

    def check_is_run(self) -> None:
        """Raise a KdganError if the folder has no run that can be resumed."""
        if not self.recipe.exists():
            hint = "Check the path, or start a run"
            raise KdganError("--resume must be given a run folder", f"found no run in {self.path}", hint)

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
        """The lines of ``metrics.jsonl`` without an incomplete last one; empty if there is no file."""
        if not self.metrics.exists():
            return []
        *lines, _ = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines]

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the state that ``--resume`` needs."""
        with atomic_path(self.state) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # a full disk, for example
                raise unwritable(self.state, OSError(first_line(error))) from None

    def load_state(self) -> dict[str, Any]:
        """Read the saved state; only tensors and plain values are unpickled.

        Raises:
            KdganError: There is no state, or it is damaged.
        """
        fix = "Start the run again with another --out"
        if not self.state.exists():
            raise KdganError("Resuming needs a finished epoch", f"found no {self.state}", fix)
        try:
            state: dict[str, Any] = torch.load(self.state, weights_only=True, map_location="cpu")
        except Exception as error:  # torch documents no narrower class for a damaged archive
            raise KdganError("state.pt must be whole", f"{self.state}: {first_line(error)}", fix) from None
        return state
