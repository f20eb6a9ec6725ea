"""Finished runs in folders: what ``report`` reads, and what cannot be read with the reason."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import RunResult, read_result
from kdgan_compress.experiment.run_folder import RunFolder

HINT = "Give run folders that train or distill wrote, folders of them, or a sweep's folder"


@dataclass(frozen=True)
class FinishedRun:
    """A run folder with a result.

    Attributes:
        path: As the user named it.
        recipe: Its resolved recipe.
        result: The content of ``result.json``.
    """

    path: Path
    recipe: Recipe
    result: RunResult

    @property
    def teacher(self) -> Path | None:
        """The teacher's resolved path; None for a model that was trained without a teacher."""
        teacher = self.recipe.distillation.teacher
        return None if teacher is None else resolve_model(Path(teacher))


@dataclass(frozen=True)
class FoundRuns:
    """What folders contain: finished runs, each once, and one line per run that cannot be used."""

    runs: list[FinishedRun]
    problems: list[str]


def find_runs(folders: Sequence[Path]) -> FoundRuns:
    """Find all finished runs in folders and the folders inside them, in order of their names.

    Raises:
        KdganError: A folder does not exist, or there is not a single finished run.
    """
    found: dict[Path, FinishedRun] = {}
    problems = []
    for folder in folders:
        if not folder.is_dir():
            raise KdganError("A report needs folders of runs", f"found no folder {folder}", HINT)
        paths = run_paths(folder)
        if not paths:
            problems.append(f"{folder}: no run in it")
        for path in paths:
            try:
                found.setdefault(resolve_model(path), read_run(path))
            except KdganError as error:
                problems.append(str(error))
    if not found:
        shown = problems[0] if problems else "got no folder"
        raise KdganError("A report needs at least one finished run", shown.rstrip("."), HINT)
    return FoundRuns(list(found.values()), problems)


def run_paths(folder: Path) -> list[Path]:
    """Folders with a ``recipe.yaml`` and a model or result: the folder itself or, if it is not a run, those inside."""
    if is_run(folder):
        return [folder]
    parents = (Path(parent) for parent, folders, _ in os.walk(folder) if folders.sort() is None)
    return [path for path in parents if is_run(path)]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, finished or not; a folder of trials has a recipe only."""
    files = RunFolder(folder)
    return files.recipe.exists() and (files.result.exists() or files.metrics.exists())


def read_run(path: Path) -> FinishedRun:
    """Read a run.

    Raises:
        KdganError: It is not finished, or its recipe or result is damaged.
    """
    folder = RunFolder(path)
    if not folder.recipe.exists():
        raise KdganError("A report needs run folders", f"{path} is not one", HINT)
    result = read_result(folder)
    if result is None:
        raise KdganError("The run must be finished", f"{path} has no result yet", "Finish it with --resume")
    return FinishedRun(path, load_recipe(str(folder.recipe)), result)


def resolve_model(path: Path) -> Path:
    """The absolute path of a run folder, for a run folder or a model file in it."""
    resolved = path.expanduser().resolve()
    return resolved.parent if resolved.suffix == ".safetensors" else resolved
