"""Cells that differ only in how they are evaluated: one of them trains, and the others use its training."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from kdgan_compress.data.settings import MISO_PROTOCOLS
from kdgan_compress.experiment.recipe import Recipe
from kdgan_compress.scores import ScoreSettings
from kdgan_compress.sweeps.grid import Cell, Plan, recipe_fingerprint


def share_trainings(plan: Plan, has_training: Callable[[Cell], bool] = lambda _: False) -> Plan:
    """The plan with ``trained_in`` set where another cell differs only in its score or its test images.

    Where a cell has the same score as an earlier one, ``trained_in`` is that one, whose fit is shared as well.

    Not for sweeps that measure AUC after every epoch: the weights of earlier epochs can't be evaluated afterwards.

    Args:
        plan: Without shared trainings.
        has_training: Whether a cell is trained, or its training has begun; the others share it. By default, the first
            cell trains.
    """
    teachers = _share(plan.teachers, {}, has_training)
    source = {teacher.run: teacher.trained_in for teacher in teachers if teacher.trained_in is not None}
    trained = {run: source.get(trained_in, trained_in) for run, trained_in in source.items()}
    return dataclasses.replace(plan, teachers=teachers, cells=_share(plan.cells, trained, has_training))


def _share(
    cells: Sequence[Cell], teachers_training: Mapping[str, str], has_training: Callable[[Cell], bool]
) -> tuple[Cell, ...]:
    """The cells in their order, of which students share a training if their teachers do."""

    def training(cell: Cell) -> tuple[str | None, str]:
        teacher = cell.teacher and teachers_training.get(cell.teacher, cell.teacher)
        return teacher, _training_fingerprint(cell.recipe)

    trained: dict[tuple[str | None, str], str] = {}
    fitted: dict[tuple[tuple[str | None, str], ScoreSettings], str] = {}
    for cell in sorted(cells, key=has_training, reverse=True):
        trained.setdefault(training(cell), cell.run)
        fitted.setdefault((training(cell), cell.recipe.score), cell.run)
    shared = []
    for cell in cells:
        first, same_score = trained[training(cell)], fitted[training(cell), cell.recipe.score]
        if cell.run == first:
            shared.append(cell)
        elif cell.run == same_score:
            shared.append(dataclasses.replace(cell, trained_in=first))
        else:
            shared.append(dataclasses.replace(cell, trained_in=same_score, shares_score=True))
    return tuple(shared)


def _training_fingerprint(recipe: Recipe) -> str:
    """A hash of what decides the weights; protocols of one kind train on the same images."""
    data = recipe.data
    protocol = MISO_PROTOCOLS[0] if data.protocol in MISO_PROTOCOLS else data.protocol
    data = dataclasses.replace(data, outliers=None, protocol=protocol)
    return recipe_fingerprint(recipe.model_copy(update={"score": ScoreSettings(), "data": data}))
