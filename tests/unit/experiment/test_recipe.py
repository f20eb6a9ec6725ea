"""Recipes: the shipped ones load and run, all problems are reported at once, replace changes only what is named."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import yaml

from kdgan_compress.api.distill import distill
from kdgan_compress.api.train import train
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import STRUCTURES, LossSet, Stage
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import load_checkpoint
from kdgan_compress.experiment.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.gans import FAMILIES, Family
from kdgan_compress.gans.cvgad import CvgadObjective
from kdgan_compress.gans.ede import GanomalyObjective

CVGAD = ["cvgad", "cvgad-cifar10", "cvgad-coil100", "cvgad-fashion-mnist"]
SHIPPED = [
    *("cifar10-8-16-64", *CVGAD, "default", "fashion-mnist-u1", "from-scratch", "mnist-u2", "paper"),
    "photos",
]
TEACHERS = {"from-scratch": (2, 4, 8), "photos": (16, 32, 64)}
STUDENTS = {
    "cifar10-8-16-64": (8, 16, 64),
    "fashion-mnist-u1": (1, 2, 4),
    "cvgad": (16, 32, 64),
    "cvgad-fashion-mnist": (16, 32, 64),
}
SCHEDULES = {"cvgad": [1], "cvgad-fashion-mnist": [1], "photos": [1]}


def problems_of(content):
    with pytest.raises(KdganError) as info:
        parse_recipe(content, "x.yaml")
    message = str(info.value)
    assert "\n" not in message
    assert "x.yaml" in message
    return message


def replaced(recipe, changes):
    return recipe.replace(changes).model_dump()


def test_the_shipped_recipes_are_these():
    grids = {name for name in recipe_names() if (section := load_recipe(name).sweep) and section.axes}
    assert set(recipe_names()) == {*SHIPPED, *grids}
    assert load_recipe("mnist-2-4-8") == load_recipe("mnist-u2")  # their old names
    assert load_recipe("fashion-mnist-1-2-4") == load_recipe("fashion-mnist-u1")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load_and_have_a_description(name):
    recipe = load_recipe(name)
    assert recipe.description
    students = recipe.distillation.student.channels_for(32)
    assert students == STUDENTS.get(name, (2, 4, 8))
    assert recipe.model.channels_for(32) == TEACHERS.get(name, (64, 128, 256))
    structures = [STRUCTURES[number] for number in SCHEDULES.get(name, [2, 3])]
    assert [stage.loss_set for stage in recipe.distillation.stages(1)] == structures
    assert recipe.model.family == ("cvgad" if name in CVGAD else "ede")
    assert type(recipe.objective) is FAMILIES[recipe.model.family].objective


def test_the_default_recipe_spells_out_the_defaults():
    shipped, implied = load_recipe("default").model_dump(), Recipe().model_dump()
    for content in (shipped, implied):
        del content["description"]
    student = shipped["distillation"].pop("student"), implied["distillation"].pop("student")
    nothing = {"norm": "batch"} | dict.fromkeys(("width", "channels", "image_size", "family", "objective"))
    assert student == (nothing | {"width": 2}, nothing)
    assert Recipe().distillation.student.channels_for(32) == (2, 4, 8)
    assert shipped == implied
    assert load_recipe() == load_recipe("default")


def test_the_papers_recipe_has_the_papers_numbers():
    recipe = load_recipe("paper")
    for section in (recipe.training, recipe.distillation.training):
        assert (section.batch_size, section.epochs, section.learning_rate) == (1, 500, 0.002)
        assert (section.betas, section.learning_rate_decay, section.ema_decay) == ((0.5, 0.99), "constant", 0)
    objective = recipe.objective
    assert (objective.w_con, objective.w_enc, objective.w_adv, objective.distance) == (10, 1, 1, "norm")
    assert recipe.distillation.loss == DistillationLoss(1, 1, 1, "norm")
    assert recipe.distillation.teacher_learning_rate == 0.002


@pytest.mark.parametrize("name", SHIPPED)
def test_yaml_round_trip(name):
    recipe = load_recipe(name)
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), "x") == recipe


def test_yaml_round_trip_of_a_recipe_with_everything(tmp_path):
    stages = [{"structure": 2, "epochs": 3}, {"loss_set": {"mu": 0.5, "lam": 2}, "learning_rate": 0.01}]
    recipe = parse_recipe(
        {
            "description": "Größe → ½",
            "data": {"source": "folder:/a b", "root": "/r"},
            "model": {"channels": [3, 5, 7], "image_channels": 3, "norm": "batch", "family": "ed_ehat"},
            "objective": {"w_adv": 0},
            "training": {"epochs": 2, "threads": 3, "seed": 9},
            "distillation": {"teacher": "runs/t", "student": {"width": 3}, "schedule": stages},
        },
        "x",
    )
    path = tmp_path / "recipe.yml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe.replace({"distillation": {"teacher": str(tmp_path / "runs/t")}})
    assert "Größe → ½" in path.read_text(encoding="utf-8")


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_recipe(str(path)) == Recipe()


def test_all_problems_are_reported_at_once():
    message = problems_of(
        {
            "modle": {},
            "data": {"sorce": "mnist"},
            "objective": {"distance": "sum", "w_conn": 1},
            "training": {"batch_sise": 3, "learning_rate": -1, "ema_decay": 1},
            "distillation": {"student": {"width": 2, "channels": [1, 2, 4]}, "schedule": "2->5"},
        }
    )
    assert "9 problems" in message
    for part in (
        "modle is not a key (did you mean model?)",
        "data.sorce is not a key (did you mean source?)",
        "distillation.student: only one of width and channels can be given",
        "objective.distance: Input should be 'mean' or 'norm'",
        "objective.w_conn is not a key (did you mean w_con?)",
        "training.batch_sise is not a key (did you mean batch_size?)",
        "training.learning_rate: Input should be greater than 0",
        "training.ema_decay: Input should be less than 1",
        "structures 1 to 4 joined by ->; got '2->5'",
    ):
        assert part in message


def test_a_bad_schedule_is_reported_with_the_other_problems_of_its_section():
    message = problems_of({"distillation": {"schedule": "2->5", "teacher_learning_rate": 0}})
    assert "2->5" in message
    assert "teacher_learning_rate" in message


def test_an_unknown_key_without_a_near_one_has_no_suggestion():
    message = problems_of({"zzzzzz": 1})
    assert "1 problem " in message
    assert "zzzzzz is not a key." in message
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"training": {"batch_size": 0}}, "training.batch_size"),
        ({"training": {"num_images": "many"}}, "training.num_images"),
        ({"training": {"seed": -1}}, "training.seed"),
        ({"training": {"threads": 0}}, "training.threads"),
        ({"training": {"betas": [0.5]}}, "training.betas"),
        ({"training": {"betas": [0.5, 1.0]}}, "training.betas"),
        ({"training": {"learning_rate_decay": "cosine"}}, "training.learning_rate_decay"),
        ({"model": {"family": "gan"}}, "family 'gan' is not one of"),
        ({"model": {"image_size": 28}}, "power of two"),
        ({"model": {"image_channels": 2}}, "model.image_channels"),
        ({"model": {"channels": [1, 2]}}, "3 channel numbers"),
        ({"model": {"norm": "layer"}}, "model.norm"),
        ({"distillation": {"student": {"width": 0}}}, "distillation.student.width"),
        ({"distillation": {"student": {"width": 1, "channels": [1, 2, 4]}}}, "only one of width and channels"),
        ({"distillation": {"schedule": []}}, "at least one stage"),
        ({"distillation": {"schedule": ""}}, "at least one stage"),
        ({"distillation": {"schedule": [{"structure": 5}]}}, "structure"),
        ({"distillation": {"schedule": [{"epochs": 1}]}}, "exactly one of structure and loss_set"),
        ({"distillation": {"schedule": [{"structure": 1, "loss_set": {"lam": 1}}]}}, "exactly one of structure and"),
        ({"distillation": {"schedule": [{"loss_set": {"nu": 1}}]}}, "train the student's generator"),
        ({"distillation": {"schedule": [{"loss_set": {"mu": 1, "lambda": 1}}]}}, "lambda is not a key"),
    ],
    ids=str,
)
def test_bad_values(content, part):
    assert part in problems_of(content)


def test_a_recipe_that_is_not_a_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(KdganError, match=r"must be a mapping of sections; .*list\.yaml is list"):
        load_recipe(str(path))


def test_a_recipe_that_is_not_yaml(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("training: [1, 2\nmodel: }\n")
    with pytest.raises(KdganError, match=r"must be YAML; .*bad\.yaml: .*line 2") as info:
        load_recipe(str(path))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["nosuch", "nosuch.yaml", "/nowhere/nosuch.yml"])
def test_an_unknown_recipe_lists_the_known_ones(name):
    with pytest.raises(KdganError, match="No such file") as info:
        load_recipe(name)
    assert "cifar10-8-16-64, cvgad" in str(info.value)


def test_replace_changes_what_is_named_and_nothing_else():
    recipe = load_recipe("mnist-u2")
    expected = recipe.model_dump()
    expected["training"]["seed"] = 4
    expected["distillation"]["training"]["epochs"] = 7
    changes = {"training": {"seed": 4}, "distillation": {"training": {"epochs": 7}}}
    assert replaced(recipe, changes) == expected
    assert recipe == load_recipe("mnist-u2")


@pytest.mark.parametrize("name", SHIPPED)
def test_replace_ignores_none(name):
    recipe = load_recipe(name)
    nothing = {
        "data": {"source": None, "normal": None, "root": None},
        "model": {"width": None, "channels": None, "family": None, "norm": None},
        "objective": None,
        "training": {"batch_size": None, "epochs": None},
        "distillation": {"schedule": None, "student": {"width": None}, "training": {"learning_rate": None}},
    }
    assert replaced(recipe, nothing) == recipe.model_dump()
    assert replaced(recipe, {}) == recipe.model_dump()


def test_replace_of_width_drops_channels_and_the_reverse():
    wide = Recipe().replace({"model": {"width": 3}, "distillation": {"student": {"width": 1}}})
    assert (wide.model.channels_for(32), wide.distillation.student.channels_for(32)) == ((3, 6, 12), (1, 2, 4))
    named = wide.replace({"model": {"channels": [5, 6, 7]}, "distillation": {"student": {"channels": [8, 16, 64]}}})
    assert (named.model.channels_for(32), named.distillation.student.channels_for(32)) == ((5, 6, 7), (8, 16, 64))
    assert named.model.width is None
    back = named.replace({"model": {"width": 2}})
    assert (back.model.channels_for(32), back.distillation.student.channels_for(32)) == ((2, 4, 8), (8, 16, 64))


@pytest.mark.parametrize("name", ["default", "from-scratch"])
def test_replace_by_both_width_and_channels_is_an_error(name):
    with pytest.raises(KdganError, match="only one of width and channels"):
        load_recipe(name).replace({"model": {"width": 4, "channels": [1, 2, 4]}})


def test_replace_is_validated_like_a_file():
    with pytest.raises(KdganError, match=r"2 problems.*batch_size.*2->9"):
        Recipe().replace({"training": {"batch_size": 0}, "distillation": {"schedule": "2->9"}})


def test_a_schedules_stages_share_the_sections_epochs_and_rates():
    recipe = Recipe().replace({"distillation": {"schedule": "1→2 -> 4", "training": {"epochs": 5}}})
    assert recipe.distillation.stages(100) == (
        Stage("1", STRUCTURES[1], 5, 4e-3, 1e-4),
        Stage("2", STRUCTURES[2], 5, 4e-3, 1e-4),
        Stage("4", STRUCTURES[4], 5, 4e-3, 1e-4),
    )


def test_stages_may_have_their_own_epochs_rates_and_loss_sets():
    section = {
        "schedule": [
            {"structure": 2, "epochs": 3, "learning_rate": 0.01},
            {"structure": 3, "teacher_learning_rate": 5e-5},
            {"loss_set": {"mu": 0.5, "lam": 2}, "epochs": 1},
        ],
        "training": {"num_images": 1000, "learning_rate": 0.02},
        "teacher_learning_rate": 3e-4,
    }
    assert parse_recipe({"distillation": section}, "x").distillation.stages(100) == (
        Stage("2", STRUCTURES[2], 3, 0.01, 3e-4),
        Stage("3", STRUCTURES[3], 10, 0.02, 5e-5),
        Stage("custom", LossSet(mu=0.5, lam=2), 1, 0.02, 3e-4),
    )


def test_standalone_training_is_one_stage_without_distillation():
    recipe = Recipe().replace({"training": {"epochs": 4, "learning_rate": 0.5}})
    assert recipe.standalone_stages(100) == (Stage("from-scratch", LossSet(mu=1, nu=1), 4, 0.5, 0.5),)


@pytest.mark.parametrize(
    ("num_images", "num_train", "epochs"),
    [(12_000, 6000, 2), (12_000, 5000, 2), (12_000, 4700, 3), (12_000, 100_000, 1), (12_000, 1, 12_000), (1, 2, 1)],
)
def test_images_are_rounded_to_whole_epochs(num_images, num_train, epochs):
    training = Recipe().replace({"training": {"num_images": num_images}}).training
    assert training.num_epochs(num_train) == epochs
    assert training.model_copy(update={"epochs": 7}).num_epochs(num_train) == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_the_objective_is_that_of_the_family(family):
    assert parse_recipe({"model": {"family": family}}, "x").objective == FAMILIES[family].objective()
    other = "mean" if family == "cvgad" else "norm"
    content = {"model": {"family": family}, "objective": {"w_adv": 0.5, "distance": other}}
    assert parse_recipe(content, "x").objective == FAMILIES[family].objective(w_adv=0.5, distance=other)


def test_cvgads_recipes_have_the_papers_numbers():
    for name in CVGAD:
        recipe = load_recipe(name)
        assert (recipe.model.latent_size, recipe.training.betas) == (256, (0.5, 0.999))
        objective = recipe.objective
        assert (objective.w_ssim, objective.w_l1, objective.w_latent, objective.w_mutual) == (50, 10, 5, 10)
        assert (objective.w_penalty, objective.negative_distance, objective.distance) == (10, 2, "norm")
    data = [load_recipe(name).data for name in CVGAD]
    assert [settings.protocol for settings in data] == ["simo", "miso-8020", "coil100", "gpnd-5fold"]
    assert (data[1].novel, data[2].num_categories, data[3].outliers) == ("deer", 1, 0.5)
    assert load_recipe("cvgad-cifar10").model.num_clusters == 9


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"objective": {"w_ssim": 1}}, "objective.w_ssim is not a key"),
        ({"model": {"family": "cvgad"}, "objective": {"w_con": 1}}, "objective.w_con is not a key"),
        ({"model": {"family": "cvgad"}, "objective": {"w_sim": 1}}, "w_sim is not a key (did you mean w_ssim?)"),
        ({"model": {"family": "cvgad"}, "objective": {"w_ssim": 0, "w_l1": 0}}, "needs a reconstruction loss"),
        ({"model": {"family": "cvgad"}, "objective": {"w_ssim": -1}}, "got w_ssim = -1"),
        ({"model": {"family": "cvgad"}, "objective": {"w_ssim": "x"}}, "objective.w_ssim: Input should be a valid num"),
        ({"objective": 3}, "objective: Input should be a dictionary"),
        ({"model": {"num_clusters": 0}}, "model.num_clusters"),
        ({"data": {"protocol": "gpnd"}}, "data: The protocol must be a known one"),
        ({"data": {"protocl": "simo"}}, "data.protocl is not a key (did you mean protocol?)"),
        ({"data": {"protocol": "coil100", "normal": 3}}, "--normal does not apply to protocol coil100; got 3"),
        ({"distillation": {"loss": {"re_encod": True}}}, "loss.re_encod is not a key (did you mean re_encode?)"),
        ({"distillation": {"loss": {"w_r": -1}}}, "got w_r = -1"),
        ({"distillation": {"student": {"family": "edee"}}}, "student.family: family 'edee' is not one of"),
        ({"distillation": {"student": {"objective": {"w_con": 1}}}}, "student.objective: it needs a student's fam"),
        (
            {"model": {"family": "cvgad"}, "distillation": {"student": {"family": "ede", "objective": {"w_l1": 1}}}},
            "distillation.student.objective.w_l1 is not a key",
        ),
    ],
    ids=str,
)
def test_bad_values_of_families_and_protocols(content, part):
    message = problems_of(content)
    assert "1 problem " in message
    assert part in message


def test_all_problems_of_two_families_are_reported_at_once():
    message = problems_of(
        {
            "data": {"trail": 3},
            "model": {"family": "cvgad"},
            "objective": {"w_enc": 1, "w_latent": "much", "distance": "sum"},
            "training": {"seed": 0.5},
            "distillation": {"student": {"width": 0, "family": "ede", "objective": {"w_mutual": 1, "w_adv": [1]}}},
        }
    )
    assert "8 problems" in message
    for part in (
        "data.trail is not a key (did you mean trial?)",
        "objective.w_enc is not a key",
        "objective.w_latent: Input should be a valid number",
        "objective.distance: Input should be 'mean' or 'norm'",
        "training.seed: Input should be a valid integer",
        "distillation.student.width: ",
        "distillation.student.objective.w_mutual is not a key",
        "distillation.student.objective.w_adv: Input should be a valid number",
    ):
        assert part in message


def test_an_objective_of_an_unknown_family_is_not_validated():
    message = problems_of({"model": {"family": "cvgan"}, "objective": {"w_ssim": 1}})
    assert "1 problem " in message
    assert "family 'cvgan' is not one of cvgad, ed, ed_ehat, ede" in message


@pytest.mark.parametrize(
    ("family", "student"),
    [
        ("cvgad", {"family": "ede", "objective": {"w_con": 3.0, "distance": "norm"}, "width": 1}),
        ("ede", {"family": "cvgad", "objective": {"w_latent": 15.0, "w_adv": 0}, "channels": [1, 2, 4]}),
        ("cvgad", {"family": "cvgad"}),
        ("cvgad", {}),
    ],
    ids=str,
)
def test_yaml_round_trip_between_families(tmp_path, family, student):
    recipe = parse_recipe(
        {
            "data": {"source": "npz:/a.npz", "protocol": "gpnd-5fold", "normal": 7, "outliers": 0.1, "trial": 3},
            "model": {"family": family, "num_clusters": 4, "norm": "batch"},
            "objective": {"w_adv": 0.5},
            "distillation": {"student": student, "loss": {"re_encode": True, "w_r": 500}},
        },
        "x",
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    loaded = load_recipe(str(path))
    assert loaded == recipe
    assert type(loaded.objective) is FAMILIES[family].objective
    assert type(loaded.student_objective()) is FAMILIES[student.get("family", family)].objective
    assert (loaded.data.normal, loaded.data.trial, loaded.distillation.loss.re_encode) == ("7", 3, True)
    assert loaded.distillation.loss.w_r == 500
    written = yaml.safe_load(path.read_text())["distillation"]["student"]
    assert student.get("objective", {}).items() <= written.get("objective", {}).items()


def test_a_students_objective_is_given_or_its_familys_or_the_recipes():
    def of(**student):
        content = {"model": {"family": "cvgad"}, "objective": {"w_l1": 7}, "distillation": {"student": student}}
        return parse_recipe(content, "x").student_objective()

    assert of() == CvgadObjective(w_l1=7)
    assert of(family="cvgad") == CvgadObjective(w_l1=7)
    assert of(family="cvgad", objective={"w_l1": 3}) == CvgadObjective(w_l1=3)
    assert of(family="ede") == GanomalyObjective()
    assert of(family="ede", objective={"w_con": 30}) == GanomalyObjective(w_con=30)


def test_replace_of_a_family_with_another_objective_resets_the_objective():
    recipe = load_recipe("paper")
    assert recipe.replace({"model": {"family": "cvgad"}}).objective == CvgadObjective()
    changes = {"model": {"family": "cvgad"}, "objective": {"w_l1": 3}}
    assert recipe.replace(changes).objective == CvgadObjective(w_l1=3)
    for family in ("ed", "ed_ehat", "ede"):
        assert recipe.replace({"model": {"family": family}}).objective == GanomalyObjective(10, 1, 1, "norm")
    assert load_recipe("cvgad").replace({"model": {"family": "ede"}}).objective == GanomalyObjective()
    with pytest.raises(KdganError, match=r"objective\.w_con is not a key"):
        recipe.replace({"model": {"family": "cvgad"}, "objective": {"w_con": 3}})


def test_an_objective_section_has_the_type_of_its_family():
    for family, name in (("ede", "ganomaly"), ("ed", "ganomaly"), ("cvgad", "cvgad")):
        recipe = parse_recipe({"model": {"family": family}, "objective": {"type": name, "w_adv": 3}}, "x")
        assert recipe.objective == FAMILIES[family].objective(w_adv=3)
        assert recipe.model_dump()["objective"]["type"] == name
    message = problems_of({"model": {"family": "cvgad"}, "objective": {"type": "ganomaly", "w_con": 3}})
    assert "objective: type 'ganomaly' does not fit family cvgad: use cvgad" in message
    student = {"family": "ede", "objective": {"type": "cvgad"}}
    message = problems_of({"distillation": {"student": student}})
    assert "distillation.student.objective: type 'cvgad' does not fit family ede: use ganomaly" in message
    with pytest.raises(KdganError, match="type 'cvgad' does not fit family ede"):
        Recipe().replace({"objective": {"type": "cvgad"}})


def test_replace_of_a_students_family_resets_its_objective_to_the_recipes():
    content = {
        "model": {"family": "cvgad"},
        "objective": {"w_l1": 7},
        "distillation": {"student": {"family": "ede", "objective": {"w_con": 3}}},
    }
    recipe = parse_recipe(content, "x")
    assert recipe.student_objective() == GanomalyObjective(w_con=3)
    changed = recipe.replace({"distillation": {"student": {"family": "cvgad"}}})
    assert changed.distillation.student.objective is None
    assert changed.student_objective() == CvgadObjective(w_l1=7)
    kept = recipe.replace({"distillation": {"student": {"family": "ed"}}})
    assert kept.student_objective() == GanomalyObjective(w_con=3)


def test_replace_of_num_images_drops_epochs():
    recipe = Recipe().replace({"training": {"epochs": 3}})
    assert recipe.training.num_epochs(100) == 3
    assert recipe.replace({"training": {"num_images": 500}}).training.num_epochs(100) == 5
    both = recipe.replace({"training": {"num_images": 500, "epochs": 2}}).training
    assert (both.num_images, both.epochs) == (500, 2)


def test_replace_by_several_changes_is_replace_again_and_again():
    changes = [
        {"model": {"family": "cvgad"}},
        {"objective": {"w_l1": 3}},
        {"objective": {"w_adv": 0}},
        {"objective": {"w_l1": 4}},
        {"distillation": {"student": {"family": "ede"}}},
        {"distillation": {"student": {"objective": {"w_con": 30}}}},
    ]
    recipe = Recipe().replace(*changes)
    assert recipe.objective == CvgadObjective(w_l1=4, w_adv=0)
    assert recipe.student_objective() == GanomalyObjective(w_con=30)
    assert Recipe().replace() == Recipe()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 3},
        {"model": {"family": [1]}},
        {"training": {"batch_size": {"x": 1}}},
        {"distillation": {"schedule": {"x": 1}}},
        {"objective": {"w_adv": {"x": 1}}},
    ],
    ids=str,
)
def test_replace_of_a_section_by_a_value_and_the_reverse_is_a_users_error(changes):
    with pytest.raises(KdganError):
        load_recipe("default").replace(changes)


def test_a_section_given_as_a_value_is_an_error_even_if_a_later_change_has_the_section():
    with pytest.raises(KdganError, match="training is given as both"):
        Recipe().replace({"training": 3}, {"training": {"epochs": 1}})


def tiny_data(recipe, folder):
    """Random images under the recipe's protocol, of which one to two batches train; the data settings to use them."""
    rng = np.random.default_rng(0)
    if recipe.data.source == "coil100":
        images = rng.integers(0, 256, (78, 20, 20, 3), dtype=np.uint8)
        np.savez(folder / "coil100.npz", images=images, object=np.repeat([1, 2, 3], 26), angle=np.tile(range(26), 3))
        return {"root": str(folder)}
    shape = (28, 28, 3) if recipe.data.source == "cifar10" else (28, 28)
    x_train = rng.integers(0, 256, (2 * recipe.training.batch_size, *shape), dtype=np.uint8)
    y_test = np.repeat([0, 1], [2, 10])
    x_test = rng.integers(0, 256, (12, *shape), dtype=np.uint8)
    path = folder / "set.npz"
    np.savez(path, x_train=x_train, y_train=np.zeros(len(x_train), int), x_test=x_test, y_test=y_test)
    return {"source": f"npz:{path}"} | ({"novel": "1"} if recipe.data.protocol == "miso-8020" else {"normal": "0"})


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_run_for_two_steps(name, tmp_path):
    shipped = load_recipe(name)
    structures = SCHEDULES.get(name, [2, 3])
    image_channels = 3 if name in ("cifar10-8-16-64", "cvgad-cifar10", "cvgad-coil100") else 1
    recipe = shipped.replace(
        {
            "data": tiny_data(shipped, tmp_path) | {"tiles": {"enabled": False}},
            "model": {"width": 2},
            "training": {"epochs": 1},
            "distillation": {
                "training": {"epochs": 1, "batch_size": shipped.training.batch_size},
                "student": {"width": 2} if name in ("cvgad", "cvgad-fashion-mnist") else {},
            },
        }
    )

    teacher = train(recipe, tmp_path / "teacher")
    student = distill(tmp_path / "teacher", recipe, tmp_path / "student")

    losses_of_family = ["s_con", "s_adv", "s_enc", "s_ce"]
    if name in CVGAD:
        losses_of_family = ["wasserstein", "penalty", "ssim", "latent", "mutual"]
    expected = {"from-scratch": losses_of_family, "1": [], "2": losses_of_family}
    expected["3"] = [f"teacher_{loss}" for loss in losses_of_family]
    for run, epochs, network, channels in (
        (teacher, 1, "discriminator", (2, 4, 8)),
        (student, len(structures), "generator", recipe.distillation.student.channels_for(32)),
    ):
        assert run.epochs == epochs
        assert shipped.training.batch_size < run.num_images / epochs <= 2 * shipped.training.batch_size
        assert 0 <= run.auc <= 1
        folder = RunFolder(tmp_path / run.run)
        adam = folder.load_state()["student"]["optimizers"][network]["state"]
        steps = [parameter["step"] for parameter in adam.values()]
        unmoved = {0} if name in CVGAD else set()  # what no loss of the family reaches
        assert {int(step) for step in steps} - unmoved == {2}
        lines = folder.read_metrics()
        assert [line["stage"] for line in lines] == (["from-scratch"] if run is teacher else list(map(str, structures)))
        for line in lines:
            losses = [*expected[line["stage"]], *(["k1", "kx"] if run is student else [])]
            assert all(math.isfinite(line[loss]) for loss in losses)
        checkpoint = load_checkpoint(folder.model)
        assert checkpoint.architecture.channels == channels
        assert checkpoint.architecture.image_channels == image_channels
        assert checkpoint.architecture.family == shipped.model.family
        assert checkpoint.architecture.num_clusters == shipped.model.num_clusters
        assert ("raw" in checkpoint.weights) == (shipped.training.ema_decay > 0)
        resolved = load_recipe(str(folder.recipe))
        assert resolved.objective == shipped.objective
        assert resolved.distillation.loss == shipped.distillation.loss
        assert resolved.data.protocol == shipped.data.protocol
    moved = tmp_path / "student" / "teacher.safetensors"
    assert moved.exists() == (3 in structures)
    assert not moved.exists() or load_checkpoint(moved).architecture.channels == (2, 4, 8)


def test_an_objective_that_a_recipe_cannot_hold_is_refused(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class NetworkObjective:
        network: torch.nn.Module | None = None

    monkeypatch.setitem(FAMILIES, "odd", Family(FAMILIES["ede"].build, NetworkObjective))
    with pytest.raises(KdganError, match="a recipe can't hold the fields of NetworkObjective"):
        parse_recipe({"model": {"family": "odd"}}, "this test")


def test_a_recipe_does_not_load_the_code_it_names():
    with pytest.raises(KdganError, match=r"model\.family: .*add --family mygan:build"):
        parse_recipe({"model": {"family": "mygan:build"}}, "this test")


def test_a_cache_folder_with_a_nul_character_is_refused(tmp_path):
    path = tmp_path / "nul.yaml"
    path.write_text('data: {source: "folder:a\\0b"}\ndistillation: {cache: {folder: "a\\0b"}}')
    with pytest.raises(KdganError, match="found 2 problems") as caught:
        load_recipe(str(path))
    assert "distillation.cache.folder" in str(caught.value)
