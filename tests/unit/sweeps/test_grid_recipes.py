"""The shipped grids open with their command, have the documented number of cells, and name figures of their cells."""

import itertools
import re
from pathlib import Path

import pytest

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import RECIPES, load_recipe
from kdgan_compress.sweeps.grid import plan_sweep
from kdgan_compress.sweeps.summary import summarize

CELLS = {
    "table4": (3 * 3 * 10, 3 * 3 * 10 * 3, 0, 0),
    "table5": (3 * 5 * 2, 3 * 10 * 2 * 3, 3 * 5, 3 * 10 * 3),
    "table6": (2 * 2 * 7 * 2, 3 * 10 * 7 * 3, 2 * 2 * 2, 3 * 10 * 3),
    "fig1": (3 * 7, 3 * 10 * 7 * 3, 0, 0),
    "fig5": (2 * 3 * 2 * 3, 3 * 3 * 10 * 7 * 3, 0, 0),
    "fig6": (3 * 3, 3 * 3 * 3, 3, 3 * 3),
    "cvgad-fig2": (8 * 10, 8 * 10 * 3, 0, 0),
    "cvgad-fig3": (8 * 10, 8 * 10 * 3, 0, 0),
    "cvgad-table1": (4 * 7, 4 * 7 * 3, 0, 0),
    "cvgad-table2": (3 * 5 * 10, 3 * 5 * 10 * 5, 0, 0),
    "cvgad-table3": (6 * 10, 6 * 20, 0, 0),
}
"""Cells of the quick and of the full variant, and distinct teachers of both."""

MEANS = {"cifar10": 0.7376, "mnist": 0.9780}
"""Mean of Table IV's columns, as printed."""


@pytest.mark.parametrize("name", CELLS)
def test_a_grid_has_the_documented_cells(name):
    recipe = load_recipe(name)
    quick, full = (plan_sweep(recipe, name, quick=quick) for quick in (True, False))
    assert (quick.variant, full.variant) == ("quick", "full")
    assert (len(quick.cells), len(full.cells), len(quick.teachers), len(full.teachers)) == CELLS[name]
    grid = list(itertools.product(*quick.axes.values()))
    assert [tuple(cell.axes.values()) for cell in quick.cells] == grid
    assert all(max(cell.recipe.model.channels_for(32)) <= 64 for cell in quick.cells)
    assert all(max(teacher.recipe.model.channels_for(32)) == 64 for teacher in quick.teachers)


@pytest.mark.parametrize("name", [*CELLS, "mnist-u2", "fashion-mnist-u1", "cifar10-8-16-64", "photos"])
def test_a_recipe_opens_with_its_command(name):
    first = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert re.match(rf"# kdgan-compress (sweep {name}\b|train --recipe {name}\b)", first)
    if name in CELLS:
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"# kdgan-compress sweep {name} --full" in text


@pytest.mark.parametrize("name", CELLS)
def test_every_figure_of_a_paper_is_shown_next_to_its_cell(name):
    plan = plan_sweep(load_recipe(name), name, quick=False)
    table = summarize(plan, dict.fromkeys((cell.run for cell in plan.cells), 0.5))
    shown = sum(text.count("(paper ") for row in table for text in row)
    assert shown == len(plan.report.paper)


def test_table_4_has_the_papers_means():
    paper = load_recipe("table4").sweep.report.paper
    for data, mean in MEANS.items():
        aucs = [row["auc"] for row in paper if row["data"] == data]
        assert len(aucs) == 10
        assert sum(aucs) / 10 == pytest.approx(mean, abs=0.0001)


def test_all_schedules_of_table_6_see_equally_many_images():
    for quick in (True, False):
        seen = set()
        for cell in plan_sweep(load_recipe("table6"), "table6", quick=quick).cells:
            section = cell.recipe.distillation
            is_student = cell.teacher is not None
            seen.add(
                section.training.num_images * len(section.stages(1)) if is_student else cell.recipe.training.num_images
            )
        assert len(seen) == 1


def test_the_documents_list_every_grid_with_its_cells():
    text = (Path(__file__).parents[3] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    found = {}
    for names, _, quick, full in (row for row in rows if len(row) == 4):
        names = re.findall(r"`([^`]+)`", names)
        counts = [
            [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?!,\d{3})\b", cell)] for cell in (quick, full)
        ]
        for index, name in enumerate(names):
            found[name] = tuple(each[min(index, len(each) - 1)] for each in counts)
    assert found == {name: counts[:2] for name, counts in CELLS.items()}


def test_chosen_values_of_an_axis_keep_the_settings_that_the_recipe_gives_them():
    recipe = load_recipe("fig6")
    every, chosen = (plan_sweep(recipe, "fig6", axes) for axes in (None, {"data": ["mnist"]}))
    assert [cell.recipe for cell in chosen.cells] == [c.recipe for c in every.cells if c.axes["data"] == "mnist"]
    recipe = load_recipe("table6")
    every, chosen = (plan_sweep(recipe, "table6", axes) for axes in (None, {"schedule": [1, "2->3"]}))
    assert [cell.recipe for cell in chosen.cells] == [
        cell.recipe for cell in every.cells if cell.axes["schedule"] in ("1", "2->3")
    ]
    with pytest.raises(KdganError, match="which lists can't have"):
        plan_sweep(recipe, "table6", {"schedule": ["2->3", [{"structure": 2, "epochs": 3}]]})
    alone = plan_sweep(recipe, "table6", {"schedule": [[{"structure": 2, "epochs": 3}]]})
    assert {cell.recipe.distillation.schedule[0].epochs for cell in alone.cells} == {3}
    with pytest.raises(KdganError, match="must name a setting"):
        plan_sweep(load_recipe("cvgad-table1"), "cvgad-table1", {"left_out": ["nothing", "everything"]})
