"""Fleets: every cell once, one shape each, balanced over the workers; the estimate of the time left."""

import collections
from dataclasses import replace

import pytest

from kdgan_compress.data import sources
from kdgan_compress.errors import KdganError
from kdgan_compress.sweeps.axes import parse_axes
from kdgan_compress.sweeps.downloads import download_data
from kdgan_compress.sweeps.estimate import TimeEstimate
from kdgan_compress.sweeps.fleets import MAX_FLEET_SIZE, Fleet, cut_into_fleets
from kdgan_compress.sweeps.grid import plan_sweep
from kdgan_compress.sweeps.sweep_folder import SweepFolder


def cells_of(recipe, axes, **options):
    made = plan_sweep(recipe, "test", parse_axes(axes), **options)
    return [*made.teachers, *made.cells]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_fleets_have_one_shape_and_hold_every_cell_once(recipe, num_workers):
    cells = cells_of(recipe, {"width": "1,2", "batch_size": "4,8", "normal": "0..2", "seed": "0..4"})
    fleets = cut_into_fleets(cells, num_workers)
    assert sorted(cell.run for fleet in fleets for cell in fleet.cells) == sorted(cell.run for cell in cells)
    shapes = collections.Counter()
    for fleet in fleets:
        (shape,) = {(cell.recipe.model.width, cell.recipe.training.batch_size) for cell in fleet.cells}
        shapes[shape] += 1
        assert len(fleet.cells) <= MAX_FLEET_SIZE
    expected = {1: 2, 2: 2, 3: 3}[num_workers]  # 15 cells of a shape in fleets of at most 10
    assert set(shapes.values()) == {expected}


def test_seeds_learning_rates_and_weights_share_a_fleet_and_a_weight_of_zero_does_not(recipe):
    axes = {"seed": "0,1", "learning_rate": "0.001,0.002", "objective.w_adv": "1.0,2.0"}
    assert len(cut_into_fleets(cells_of(recipe, axes), 1)) == 1
    assert len(cut_into_fleets(cells_of(recipe, axes | {"objective.w_adv": "0.0,2.0"}), 1)) == 2


def test_wide_networks_are_trained_alone(recipe):
    assert len(cut_into_fleets(cells_of(recipe, {"width": "64", "seed": "0..2"}), 1)) == 3


def test_students_of_wide_teachers_are_trained_alone_where_the_teacher_is_trained_too(recipe):
    wide = recipe.replace({"model": {"width": 64}})
    sizes = {
        schedule: [
            len(fleet.cells)
            for fleet in cut_into_fleets(cells_of(wide, {"schedule": schedule, "seed": "0..2"}, distill=True), 1)
            if fleet.cells[0].teacher is not None
        ]
        for schedule in ("2", "2->3")
    }
    assert sizes == {"2": [3], "2->3": [1, 1, 1]}


def test_students_need_their_teachers(recipe):
    fleets = cut_into_fleets(cells_of(recipe, {"normal": "0..1", "schedule": "none,1"}, distill=True), 1)
    assert [len(fleet.cells) for fleet in fleets] == [2, 2, 2]
    assert [fleet.needs for fleet in fleets] == [set(), set(), {"teachers/normal-0", "teachers/normal-1"}]


def test_fleets_of_an_earlier_command_stay_as_they_were(recipe, tmp_path):
    cells = cells_of(recipe, {"seed": "0..6"})
    folder = SweepFolder(tmp_path)
    first = folder.cut_into_fleets(cells[:6], 2)
    assert [len(fleet.cells) for fleet in first] == [3, 3]
    rest = folder.cut_into_fleets([*cells[2:4], cells[6]], 1)  # and a new cell
    assert [[cell.run for cell in fleet.cells] for fleet in rest] == [[c.run] for c in (*cells[2:4], cells[6])]
    assert [fleet.shape for fleet in rest] == [first[0].shape] * 3
    assert folder.cut_into_fleets(cells[:6], 4) == first
    folder.fleets.write_text("[[1]]")
    assert len(folder.cut_into_fleets(cells, 1)) == 1


def test_unreadable_data_does_not_stop_the_cutting(recipe):
    cells = cells_of(recipe, {"data": ["npz:/nowhere.npz", recipe.data.source], "normal": "0"})
    assert [len(fleet.cells) for fleet in cut_into_fleets(cells, 1)] == [1, 1]


def test_the_time_left_is_that_of_the_cells_left(recipe):
    a, b, c = (Fleet(shape, tuple(cells_of(recipe, {"seed": "0..1"}))) for shape in "aab")
    estimate = TimeEstimate()
    assert estimate.seconds_left([a], [(b, 3.0, 0.0)], 1) is None
    assert estimate.seconds_left([a], [(b, 3.0, 0.5)], 1) == pytest.approx(3 + 6)
    estimate.add(a, 10.0, 7.0)
    assert estimate.seconds_left([b], [], 1) == pytest.approx(10)
    assert estimate.seconds_left([b, c], [], 2) == pytest.approx(10)
    assert estimate.seconds_left([], [(b, 4.0, 0.0)], 2) == pytest.approx(6)
    assert estimate.seconds_left([], [(b, 14.0, 0.0)], 2) == 0
    evaluated = Fleet("a, evaluated", tuple(replace(cell, trained_in="runs/0") for cell in a.cells))
    assert estimate.seconds_left([evaluated], [], 1) == pytest.approx(3)
    estimate.add(evaluated, 5.0, 0.0)
    assert estimate.seconds_left([evaluated], [], 1) == pytest.approx(5)


def test_a_data_set_is_downloaded_once_before_the_workers_start(recipe, monkeypatch):
    read = []

    def fail(self):
        read.append(self.name)
        raise KdganError("No network", "got none", "Connect")

    monkeypatch.setattr(sources.TorchvisionSource, "read", fail)
    data = {"data": ["mnist", "cifar10", recipe.data.source], "seed": "0..3"}
    download_data(cells_of(recipe, data, data_root="/nowhere"))
    assert read == ["cifar10", "mnist"]
