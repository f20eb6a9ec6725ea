"""A run folder: recipe, model, training state, scores, one line of metrics per epoch, result."""

import io
from pathlib import Path
from typing import Any

import torch

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.experiment.metrics_file import append_line, read_lines, write_lines
from kdgan_compress.experiment.torch_file import load_torch_file
from kdgan_compress.files import atomic_path, read_text, write_text

MODEL_FILE = "model.safetensors"
SCORES_FILE = "scores.npz"
MAX_FAILURE_BYTES = 10_000
MAX_RECIPE_BYTES = 1_000_000


class RunFolder:
    """Paths and files of one run; ``create`` creates the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.model = path / MODEL_FILE
        self.teacher = path / "teacher.safetensors"
        self.state = path / "state.pt"
        self.next_state = path / "next_state.pt"
        self.commit = path / "next_state.commit"
        self.fleet = path / "fleet.json"
        self.cache = path / "teacher-cache"
        self.metrics = path / "metrics.jsonl"
        self.scores = path / SCORES_FILE
        self.result = path / "result.json"
        self.failure = path / "failed.txt"

    def create(self, recipe: str) -> None:
        """Create the folder of a new run with its resolved recipe as YAML; see ``check_is_new``."""
        self.check_is_new(recipe)
        write_text(self.recipe, recipe)
        self.metrics.unlink(missing_ok=True)
        self.fleet.unlink(missing_ok=True)

    def check_is_new(self, recipe: str | None = None) -> None:
        """Raise a KdganError if the folder has a run already.

        One of this recipe that has saved nothing does not count: a process that was killed while it created the
        folders of several runs leaves such runs, and the same command is to begin again.
        """
        if self.recipe.exists() and not self._has_only(recipe):
            hint = "Give another --out, or continue that run with --resume"
            raise KdganError("A new run needs a new folder", f"found a run in {self.path}", hint)

    def _has_only(self, recipe: str | None) -> bool:
        traces = (self.state, self.next_state, self.model, self.result, self.failure)
        if recipe is None or any(path.exists() for path in traces):
            return False
        try:
            return read_text(self.recipe, MAX_RECIPE_BYTES) == recipe
        except (OSError, ValueError):
            return False

    def check_is_run(self) -> None:
        """Raise a KdganError if the folder has no run that can be resumed."""
        if not self.recipe.exists():
            hint = "Check the path, or start a run"
            raise KdganError("--resume must be given a run folder", f"found no run in {self.path}", hint)

    def check_has_not_failed(self) -> None:
        """Raise a KdganError if the run diverged, since the same steps would do so again."""
        if self.failure.exists():
            try:
                reason = read_text(self.failure, MAX_FAILURE_BYTES).strip()
            except (OSError, ValueError):
                reason = "for an unknown reason"
            hint = "Start a new run with a lower learning rate or a larger batch; --resume would repeat the same steps"
            raise KdganError("The run must not have failed", f"{self.path} did: {reason}", hint)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        append_line(self.metrics, line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``."""
        return read_lines(self.metrics)

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replace the lines of ``metrics.jsonl``."""
        write_lines(self.metrics, lines)

    def save_state(self, state: dict[str, Any], is_next: bool = False) -> None:
        """Write the state that ``--resume`` needs, or the next one; equal states give equal bytes."""
        buffer = io.BytesIO()  # torch names the archive after the file, and calls a full disk an internal error
        torch.save(state, buffer)
        with atomic_path(self.next_state if is_next else self.state) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def use_next_state(self) -> None:
        """Replace the state by the next one, if there is one."""
        if self.next_state.exists():
            self.next_state.replace(self.state)

    def load_state(self) -> dict[str, Any]:
        """Read the saved state; only tensors and plain values are unpickled.

        Raises:
            KdganError: There is no state, or it is damaged.
        """
        if not self.state.exists():
            hint = "Start the run again with another --out"
            raise KdganError("Resuming needs a finished epoch", f"found no {self.state}", hint)
        try:
            state = load_torch_file(self.state)
        except MemoryError:
            raise
        except Exception as error:  # torch documents no narrower class for a damaged archive
            raise damaged_state(self.state, first_line(error)) from None
        if not isinstance(state, dict):
            raise damaged_state(self.state, f"it is a {type(state).__name__}")
        return state


def damaged_state(path: Path, reason: str) -> KdganError:
    """The error for a state that is not whole."""
    return KdganError("state.pt must be whole", f"{path}: {reason}", "Start the run again with another --out")
