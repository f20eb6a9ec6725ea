"""The plan of a sweep: the cells of itertools.product, each teacher once, refusals that name the fault."""

import itertools

import pytest

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import load_recipe, parse_recipe
from kdgan_compress.sweeps.axes import axis_keys, parse_axes, recipe_keys
from kdgan_compress.sweeps.grid import plan_sweep, recipe_fingerprint


def plan(recipe, axes, **options):
    return plan_sweep(recipe, "test", parse_axes(axes), **options)


def value_at(recipe, key):
    content = recipe.model_dump()
    for part in key.split("."):
        content = content[part] if isinstance(content, dict) else getattr(content, part)
    return content


def test_the_cells_are_the_product_of_the_axes(recipe):
    axes = {"width": "1,2,8", "normal": "0..2", "seed": "3..4", "objective.w_con": "[10, 30]"}
    cells = plan(recipe, axes | {"objective.w_con": [10, 30]}).cells
    expected = list(itertools.product((1, 2, 8), (0, 1, 2), (3, 4), (10, 30)))
    assert [tuple(cell.axes.values()) for cell in cells] == expected
    keys = ("model.width", "data.normal", "training.seed", "objective.w_con")
    assert [tuple(value_at(cell.recipe, key) for key in keys) for cell in cells] == [
        (width, str(normal), seed, w_con) for width, normal, seed, w_con in expected
    ]
    assert len({cell.run for cell in cells}) == len(expected)
    assert cells[0].run == "runs/width-1_normal-0_seed-3_objective.w_con-10"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,8", [1, 2, 8]),
        ("0..3", [0, 1, 2, 3]),
        ("0..1,7", [0, 1, 7]),
        ("none,1,2->3", ["none", 1, "2->3"]),
        ("[1,2,4],[2,4,8]", [[1, 2, 4], [2, 4, 8]]),
        ("0.1,0.5", [0.1, 0.5]),
        ("sneaker", ["sneaker"]),
        ([5], [5]),
    ],
)
def test_values_are_lists_and_ranges(text, values):
    assert parse_axes({"x": text}) == {"x": values}


@pytest.mark.parametrize("text", ["", "1,1", "3..1", "1,,2", "[1", [], {}])
def test_bad_values_are_refused(text):
    with pytest.raises(KdganError, match="list of values"):
        parse_axes({"width": text})


@pytest.mark.parametrize(
    ("axis", "nearest"),
    [("widht", "width"), ("objective.w_avd", "objective.w_adv"), ("w_adv", "objective.w_adv"), ("seeds", "seed")],
)
def test_an_unknown_axis_is_refused_with_the_nearest_name(recipe, axis, nearest):
    with pytest.raises(KdganError, match=rf"got {axis}\. The nearest name is {nearest}\."):
        plan(recipe, {axis: "1,2"})


def test_a_value_that_a_recipe_refuses_is_refused(recipe):
    with pytest.raises(KdganError, match=r"model\.width"):
        plan(recipe, {"width": "0,1"})


def test_an_axis_of_students_needs_students(recipe):
    with pytest.raises(KdganError, match="--distill"):
        plan(recipe, {"schedule": "1,2"})


def test_every_alias_names_recipe_keys():
    for command in ("train", "distill"):
        for name in ("width", "normal", "seed", "data", "schedule", "batch_size", "family", "trial", "norm"):
            assert set(axis_keys(name, command)) <= recipe_keys()
            assert axis_keys(name, command)


def test_each_distinct_teacher_is_planned_once(recipe):
    axes = {"normal": "0..1", "width": "1,2", "schedule": "none,1,2", "seed": "0..1", "batch_size": "4,8"}
    made = plan(recipe, axes, distill=True)
    assert len(made.cells) == 2 * 2 * 3 * 2 * 2
    assert [teacher.run for teacher in made.teachers] == [
        f"teachers/normal-{normal}_seed-{seed}" for normal in (0, 1) for seed in (0, 1)
    ]
    for cell in made.cells:
        if cell.axes["schedule"] == "none":
            assert cell.teacher is None
            continue
        (teacher,) = [each for each in made.teachers if each.run == cell.teacher]
        assert teacher.axes == {name: cell.axes[name] for name in ("normal", "seed")}
        assert teacher.recipe.training == cell.recipe.training
        assert teacher.recipe.data == cell.recipe.data
        assert teacher.recipe.model.width == 2
        assert cell.recipe.distillation.student.width == cell.axes["width"]
        assert cell.recipe.distillation.training.batch_size == cell.axes["batch_size"]
        assert cell.recipe.distillation.training.seed == cell.axes["seed"]


def test_a_student_without_a_teacher_sees_as_many_images(recipe):
    recipe = recipe.replace({"distillation": {"schedule": "2->3", "training": {"num_images": 500}}})
    recipe = recipe.replace({"distillation": {"student": {"norm": "batch", "channels": [1, 3]}}})
    (alone, distilled) = plan(recipe, {"schedule": "none,2"}, distill=True).cells
    assert alone.recipe.model.channels == (1, 3)
    assert alone.recipe.model.norm == "batch"
    assert alone.recipe.model.latent_size == 8
    assert alone.recipe.training.num_images == 1000
    assert alone.recipe.training.learning_rate == recipe.distillation.training.learning_rate
    assert distilled.recipe.distillation.training.num_images == 500
    stages = {"distillation": {"schedule": [{"structure": 1, "epochs": 3}, {"structure": 2, "epochs": 4}]}}
    (alone,) = plan(recipe.replace(stages), {"schedule": "none"}, distill=True).cells
    assert alone.recipe.training.epochs == 7


def test_a_mapped_axis_brings_settings_and_may_have_any_name(content):
    axes = {
        "normal": {"0": {"model.width": 1}, "1": {"model.width": 3}},
        "left_out": {"nothing": {}, "critic": {"objective.w_adv": 0}},
    }
    made = plan_sweep(parse_recipe(content | {"sweep": {"axes": axes}}, "test"), "test")
    found = [(c.recipe.data.normal, c.recipe.model.width, c.recipe.objective.w_adv) for c in made.cells]
    assert found == [("0", 1, 1), ("0", 1, 0), ("1", 3, 1), ("1", 3, 0)]
    assert made.axes == {"normal": ["0", "1"], "left_out": ["nothing", "critic"]}


def test_the_quick_variant_replaces_axes_and_settings_and_both_give_way_to_the_command(content):
    section = {"axes": {"seed": "0..4"}, "quick": {"axes": {"seed": [0]}, "set": {"model.width": 1}}}
    recipe = parse_recipe(content | {"sweep": section}, "test")
    quick, full = plan(recipe, {}), plan(recipe, {}, quick=False)
    assert (quick.variant, full.variant) == ("quick", "full")
    assert (len(quick.cells), len(full.cells)) == (1, 5)
    assert (quick.cells[0].recipe.model.width, full.cells[0].recipe.model.width) == (1, 2)
    own = plan(recipe, {"seed": "7..8"}, settings={"model.width": 4})
    assert [(c.recipe.training.seed, c.recipe.model.width) for c in own.cells] == [(7, 4), (8, 4)]
    assert plan(recipe.model_copy(update={"sweep": None}), {}).variant == "full"


def test_another_source_clears_the_class_of_the_first():
    (cell,) = plan(load_recipe("fashion-mnist-u1"), {"data": "cifar10"}).cells
    assert (cell.recipe.data.source, cell.recipe.data.normal) == ("cifar10", None)


def test_threads_and_the_place_of_the_data_do_not_make_another_cell(recipe):
    same = recipe.replace({"training": {"threads": 3}, "data": {"root": "elsewhere"}})
    assert recipe_fingerprint(same) == recipe_fingerprint(recipe)
    assert recipe_fingerprint(recipe.replace({"training": {"seed": 3}})) != recipe_fingerprint(recipe)


def test_long_values_give_short_and_different_folder_names(recipe):
    sources = [f"npz:/{'long/' * 30}{name}.npz" for name in "ab"]
    runs = [cell.run for cell in plan(recipe, {"data": sources}).cells]
    assert len(set(runs)) == 2
    assert max(map(len, runs)) < 80


@pytest.mark.parametrize(
    ("axes", "rows", "columns"),
    [
        ({"width": "1,2", "normal": "0,1", "seed": "0,1"}, ("width",), ()),
        ({"data": "mnist,cifar10", "width": "1,2"}, ("width",), ("data",)),
        ({"normal": "0,1", "seed": "0,1"}, ("normal",), ()),
        ({}, (), ()),
    ],
)
def test_a_sweep_without_a_layout_gets_one(recipe, axes, rows, columns):
    report = plan(recipe, axes).report
    assert (report.rows, report.columns) == (rows, columns)


def test_a_further_axis_of_a_shipped_grid_makes_rows():
    report = plan(load_recipe("table5"), {"batch_size": "8,16", "seed": "0"}).report
    assert (report.rows, report.columns) == (("schedule", "batch_size"), ("data",))


def test_a_report_names_axes_only(content):
    bad = {"axes": {"seed": "0..1"}, "report": {"rows": ["sed"]}}
    with pytest.raises(KdganError, match="sed, which is not an axis"):
        parse_recipe(content | {"sweep": bad}, "test")
