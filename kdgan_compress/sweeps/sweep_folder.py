"""The folder of a sweep: ``sweep.yaml``, ``runs/``, ``teachers/`` and a log for each cell that failed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.results import RunResult, read_result
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.run_lock import remove_leftovers
from kdgan_compress.experiment.sweep_file import SWEEP_FILE, read_sweep_yaml
from kdgan_compress.files import read_text, remove_stale_files, write_text
from kdgan_compress.sweeps.fleets import Fleet, cut_into_fleets
from kdgan_compress.sweeps.grid import Cell, Plan, recipe_fingerprint
from kdgan_compress.sweeps.worker import CellError

MAX_FLEETS_BYTES = 10_000_000


class SweepFolder:
    """Paths and files of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / SWEEP_FILE
        self.fleets = path / "fleets.json"

    def write(self, plan: Plan) -> None:
        """Write ``sweep.yaml``; the cells of an earlier sweep in this folder stay in it.

        Raises:
            KdganError: The earlier sweep has other axes or settings; nothing is written.
        """
        earlier = self.read() if self.file.exists() else {}
        if earlier:
            self._check_continues(earlier, plan)
        old_axes = earlier.get("axes", {})
        axes = {name: _union(old_axes.get(name, []), values) for name, values in plan.axes.items()}
        content = {
            "name": plan.name,
            "description": plan.description,
            "variant": plan.variant,
            "command": plan.command,
            "axes": axes,
            "set": plan.settings,
            "report": plan.report.model_dump(mode="json"),
            "cells": _merge(earlier.get("cells", []), plan.cells),
            "teachers": _merge(earlier.get("teachers", []), plan.teachers),
        }
        self._remove_leftovers(plan)
        write_text(self.file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def _check_continues(self, earlier: dict[str, Any], plan: Plan) -> None:
        """Check that one report can have the cells of both sweeps: only the values of their axes differ."""
        found = None
        axes, settings = earlier.get("axes", {}), earlier.get("set", {})
        known = {entry["run"]: entry.get("fingerprint") for key in ("cells", "teachers") for entry in earlier[key]}
        if axes.keys() != plan.axes.keys():
            found = f"{self.file} has the axes {_listed(axes)}, this command has {_listed(plan.axes)}"
        elif _of_results(settings) != _of_results(plan.settings):
            found = f"{self.file} has the settings {_listed(settings)}, this command has {_listed(plan.settings)}"
        for cell in (*plan.cells, *plan.teachers) if found is None else ():
            if known.get(cell.run) not in (None, recipe_fingerprint(cell.recipe)):
                found = f"{self.path / cell.run} was planned with others"
        if found is not None:
            hint = "Give another --out, or the axes and settings of the first command"
            raise KdganError("A sweep continues with the same axes and settings only", found, hint)

    def _remove_leftovers(self, plan: Plan) -> None:
        """Remove what a killed sweep left in its folder and in those of its finished runs."""
        for path in (self.path, self.path / "logs", self.path / "progress"):
            remove_stale_files(path)
        for progress in (self.path / "progress").glob("*.txt"):
            progress.unlink(missing_ok=True)
        for cell in (*plan.cells, *plan.teachers):
            remove_leftovers(self.path / cell.run)

    def read(self) -> dict[str, Any]:
        """The content of ``sweep.yaml``.

        Raises:
            KdganError: It is damaged.
        """
        try:
            content = read_sweep_yaml(self.file)
            entries = [entry["run"] for key in ("cells", "teachers") for entry in content[key]]
        except (OSError, ValueError, KeyError, TypeError):
            entries, content = [None], None
        if not isinstance(content, dict) or not all(isinstance(run, str) for run in entries):
            hint = "Remove it, or give another --out"
            raise KdganError("sweep.yaml must be one that sweep wrote", f"{self.file} is not", hint)
        return content

    def cut_into_fleets(self, cells: Sequence[Cell], num_workers: int) -> list[Fleet]:
        """Fleets of the cells that are still to be trained; those of an earlier command stay as they were."""
        begun = self._read_fleets()
        fleets = cut_into_fleets(cells, num_workers, begun)
        known = {run for runs in begun for run in runs}
        new = [[cell.run for cell in fleet.cells] for fleet in fleets if fleet.cells[0].run not in known]
        if new:
            write_text(self.fleets, json.dumps([*begun, *new], indent=2) + "\n")
        return fleets

    def _read_fleets(self) -> list[list[str]]:
        """The run folders of each fleet; none if that can't be read."""
        try:
            return TypeAdapter(list[list[str]]).validate_json(read_text(self.fleets, MAX_FLEETS_BYTES), strict=True)
        except (OSError, ValueError):
            return []

    def result(self, cell: Cell) -> RunResult | None:
        """The result of a finished cell; None if it is not finished, or its result is damaged."""
        try:
            return read_result(RunFolder(self.path / cell.run))
        except KdganError:
            return None

    def has_training(self, cell: Cell) -> bool:
        """Whether a cell is trained, or its training has begun."""
        return RunFolder(self.path / cell.run).state.exists()

    def log_path(self, run: str) -> Path:
        """Where the error of a failed cell is written."""
        return self.path / "logs" / f"{run.replace('/', '-')}.txt"

    def write_log(self, run: str, error: CellError) -> Path:
        """Write a failed cell's error with its traceback."""
        path = self.log_path(run)
        write_text(path, f"{error.message}\n\n{error.details}")
        return path


def _merge(earlier: list[dict[str, Any]], cells: tuple[Cell, ...]) -> list[dict[str, Any]]:
    entries = {entry["run"]: entry for entry in earlier}
    for cell in cells:
        entries[cell.run] = {
            "run": cell.run,
            "teacher": cell.teacher,
            "axes": cell.axes,
            "fingerprint": recipe_fingerprint(cell.recipe),
        }
    return list(entries.values())


def _of_results(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that results depend on."""
    return {key: value for key, value in settings.items() if not key.endswith((".threads", ".device"))}


def _listed(names: dict[str, Any]) -> str:
    """Axes by name, and settings with their values."""
    return ", ".join(name if isinstance(value, list) else f"{name}={value}" for name, value in names.items()) or "none"


def _union(earlier: list[Any], values: list[Any]) -> list[Any]:
    return [*earlier, *(value for value in values if value not in earlier)]
