"""Cells that differ only in how they are evaluated: the first of them trains, and the others use its training."""

import dataclasses
from collections.abc import Mapping, Sequence

from kdgan_compress.data.settings import MISO_PROTOCOLS
from kdgan_compress.experiment.recipe import Recipe
from kdgan_compress.scores import ScoreSettings
from kdgan_compress.sweeps.grid import Cell, Plan, fingerprint


def share_trainings(plan: Plan) -> Plan:
    """The plan with ``trained_in`` set where an earlier cell differs only in its score or its test images.

    Not for sweeps that measure AUC after every epoch: the weights of earlier epochs can't be evaluated afterwards.
    """
    teachers = _share(plan.teachers, {})
    shared = {teacher.run: teacher.trained_in for teacher in teachers if teacher.trained_in is not None}
    return dataclasses.replace(plan, teachers=teachers, cells=_share(plan.cells, shared))


def _share(cells: Sequence[Cell], shared_teachers: Mapping[str, str]) -> tuple[Cell, ...]:
    """The cells in their order, of which students share a training if their teachers do."""
    first: dict[tuple[str | None, str], str] = {}
    shared = []
    for cell in cells:
        teacher = cell.teacher and shared_teachers.get(cell.teacher, cell.teacher)
        trained_in = first.setdefault((teacher, _training_fingerprint(cell.recipe)), cell.run)
        shared.append(cell if trained_in == cell.run else dataclasses.replace(cell, trained_in=trained_in))
    return tuple(shared)


def _training_fingerprint(recipe: Recipe) -> str:
    """A hash of what decides the weights; protocols of one kind train on the same images."""
    data = recipe.data
    protocol = MISO_PROTOCOLS[0] if data.protocol in MISO_PROTOCOLS else data.protocol
    data = dataclasses.replace(data, outliers=None, protocol=protocol)
    return fingerprint(recipe.model_copy(update={"score": ScoreSettings(), "data": data}))
