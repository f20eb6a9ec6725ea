"""Cells cut into fleets: cells of one shape are trained together, in as many fleets as keep all workers busy."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdgan_compress.data import native_channels
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import Recipe
from kdgan_compress.sweeps.grid import Cell

MAX_FLEET_SIZE = 10
"""Cells per fleet; larger ones are hardly faster, and lose more when a worker is lost."""

MIN_WIDE = 128
"""Networks with this many channels anywhere are trained alone on a CPU, where fleets don't make them faster."""


@dataclass(frozen=True)
class Fleet:
    """Cells of one shape for one worker.

    Attributes:
        shape: What the cells have in common, as text.
        cells: At least one.
    """

    shape: str
    cells: tuple[Cell, ...]

    @property
    def needs(self) -> set[str]:
        """Run folders that need to be finished before this fleet starts: teachers, and trainings that it shares."""
        return {run for cell in self.cells for run in (cell.teacher, cell.trained_in) if run is not None}

    @property
    def shares_trainings(self) -> bool:
        """Whether its cells share the trainings of others, and are only evaluated."""
        return self.cells[0].trained_in is not None


def cut_into_fleets(cells: Sequence[Cell], num_workers: int, begun: Sequence[Sequence[str]] = ()) -> list[Fleet]:
    """Fleets in the order of their first cells.

    Args:
        cells: Those that are still to be trained.
        num_workers: A shape's cells are cut into a multiple of this many fleets, if there are enough.
        begun: The run folders of each fleet of an earlier command, which stays one: weights depend on it by rounding.
            Cells that share a training now are taken out of it, since it may be the fleet's own.
    """
    image_channels: dict[tuple[str, str | None], Any] = {}
    by_run = {cell.run: cell for cell in cells}
    parts = [[by_run.pop(run) for run in runs if run in by_run] for runs in begun]
    divided = [list(group) for part in parts for _, group in itertools.groupby(sorted(part, key=_kind), _kind)]
    fleets = [Fleet(_shape(part[0], image_channels), tuple(part)) for part in divided]
    by_shape: dict[str, list[Cell]] = {}
    for cell in by_run.values():
        by_shape.setdefault(_shape(cell, image_channels), []).append(cell)
    for shape, members in by_shape.items():
        is_wide = max(_trained_channels(members[0])) >= MIN_WIDE and _device(members[0]) == "cpu"
        fleets += [Fleet(shape, part) for part in _cut(members, 1 if is_wide else MAX_FLEET_SIZE, num_workers)]
    position = {cell.run: index for index, cell in enumerate(cells)}
    return sorted(fleets, key=lambda fleet: position[fleet.cells[0].run])


def _cut(cells: list[Cell], max_size: int, num_workers: int) -> list[tuple[Cell, ...]]:
    """The cells in parts of nearly equal size."""
    num_parts = -(-len(cells) // max_size)
    num_parts = min(len(cells), -(-num_parts // num_workers) * num_workers)
    bounds = [len(cells) * part // num_parts for part in range(num_parts + 1)]
    return [tuple(cells[start:end]) for start, end in itertools.pairwise(bounds)]


def _shape(cell: Cell, image_channels: dict[tuple[str, str | None], Any]) -> str:
    """Everything that members of a fleet share, as text: all but data, seeds, learning rates and loss weights."""
    recipe = cell.recipe
    content = recipe.model_dump(mode="json", exclude={"description", "sweep", "data"})
    for training in (content["training"], content["distillation"]["training"], content["distillation"]):
        training.pop("seed", None), training.pop("learning_rate", None), training.pop("teacher_learning_rate", None)
    for section in (content, content["distillation"]):
        for name in ("objective", "loss"):
            section[name] = {
                key: weight != 0 if isinstance(weight, float) else weight
                for key, weight in (section.get(name) or {}).items()
            }
    source = (recipe.data.source, recipe.data.root)
    if source not in image_channels:
        image_channels[source] = _image_channels(recipe)
    return json.dumps([*_kind(cell), image_channels[source], recipe.data.tiles is not None, content], sort_keys=True)


def _kind(cell: Cell) -> tuple[bool, bool, bool]:
    """Which other cells a cell may need: its teacher, its training, and a cell that itself needs a training."""
    return cell.teacher is not None, cell.trained_in is not None, cell.shares_score


def _image_channels(recipe: Recipe) -> int | str:
    try:
        return recipe.model.image_channels or native_channels(recipe.data)
    except KdganError as error:  # the worker reports it for each of these cells
        return str(error)


def _trained_channels(cell: Cell) -> tuple[int, ...]:
    """Channels of the networks that any stage trains."""
    model, distillation = cell.recipe.model, cell.recipe.distillation
    teacher = model.channels_for(model.image_size)
    if cell.teacher is None:
        return teacher
    student = distillation.student.channels_for(distillation.student.image_size or model.image_size)
    trains_teacher = any(stage.loss_set.trains_teacher for stage in distillation.stages(1))
    return (*student, *teacher) if trains_teacher else student


def _device(cell: Cell) -> str:
    return cell.recipe.training.device if cell.teacher is None else cell.recipe.distillation.training.device
