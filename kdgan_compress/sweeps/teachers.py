"""Teachers that exist already: finished runs whose recipes are those of a sweep's teachers."""

import dataclasses
import json
import os
from pathlib import Path

from kdgan_compress.data import native_channels, resolve_tiles
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import read_result
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.sweeps.grid import Plan


def reuse_teachers(plan: Plan, source: Path, out: Path) -> Plan:
    """The plan without the teachers that are finished runs in a folder; their students refer to those runs.

    Args:
        plan: Of students.
        source: A run folder, a folder of run folders, or the folder of a sweep.
        out: The sweep's folder.

    Raises:
        KdganError: None of the teachers is there.
    """
    existing = {
        identity: run.parent
        for pattern in ("", "*/", "teachers/*/", "runs/*/")
        for run in sorted(source.glob(f"{pattern}recipe.yaml"))
        if (identity := _identity_of_run(run.parent)) is not None
    }
    found = {teacher.run: existing.get(_identity(teacher.recipe)) for teacher in plan.teachers}
    paths = {run: os.path.relpath(path.resolve(), out) for run, path in found.items() if path is not None}
    if not paths:
        problem = "--teachers needs finished runs of the sweep's teachers"
        raise KdganError(problem, f"found {len(existing)} runs in {source}, none by their recipes", "Leave it out")
    return dataclasses.replace(
        plan,
        teachers=tuple(teacher for teacher in plan.teachers if teacher.run not in paths),
        cells=tuple(
            dataclasses.replace(cell, teacher=paths.get(str(cell.teacher), cell.teacher)) for cell in plan.cells
        ),
    )


def _identity_of_run(path: Path) -> str | None:
    """What a finished teacher was trained by; None for anything else."""
    folder = RunFolder(path)
    recipe = load_recipe(str(folder.recipe))
    return None if recipe.distillation.teacher or read_result(folder) is None else _identity(recipe)


def _identity(recipe: Recipe) -> str:
    """All that decides a teacher, in a form in which a recipe equals what a run folder makes of it."""
    data, _ = resolve_tiles(recipe.data, recipe.model.image_size)
    data = dataclasses.replace(data.absolute(), root=None)
    architecture = recipe.model.architecture(native_channels(recipe.data))
    training = recipe.training.model_dump(mode="json", exclude={"threads", "device"})
    settings = [dataclasses.asdict(each) for each in (data, architecture, recipe.objective, recipe.score)]
    return json.dumps([*settings, training], sort_keys=True)
