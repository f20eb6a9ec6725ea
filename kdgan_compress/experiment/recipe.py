"""Recipes: one experiment (a teacher and its student) as YAML. All problems of a recipe are reported at once."""

import dataclasses
import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from kdgan_compress.data import DataSettings, TileSettings
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import FROM_SCRATCH, LossSet, Stage
from kdgan_compress.distillation.terms import Term
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment import aliases
from kdgan_compress.experiment.recipe_sections import (
    CacheSection,
    DistillationSection,
    ModelSection,
    Objective,
    Section,
    StageSection,
    StudentSection,
    TrainingSection,
    parse_objective,
)
from kdgan_compress.experiment.recipe_yaml import MAX_BYTES, parse_yaml
from kdgan_compress.experiment.sweep_section import QuickSection, ReportSection, SweepSection
from kdgan_compress.files import absolute_path, read_text, relative_path
from kdgan_compress.gans import FAMILIES
from kdgan_compress.scores import ScoreSettings

__all__ = ["CacheSection", "Recipe", "StudentSection", "load_recipe", "parse_recipe", "recipe_names"]

PACKAGE = Path(__file__).parents[1]
INSTALLED = PACKAGE / "recipes"
RECIPES = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "recipes"
"""The folder of the shipped recipes: inside an installed wheel, or next to the package in a checkout."""

DEFAULT = "default"

HINT = "Fix all of them; `kdgan-compress recipes show default` prints every key"

MUTUALLY_EXCLUSIVE = {"width": "channels", "channels": "width", "num_images": "epochs"}
"""A change of the first key clears the second one."""


class Recipe(Section):
    """One experiment: the data, the teacher and its training, the student and its distillation.

    ``sweep`` makes it a grid of experiments; only the command of that name reads it.
    """

    description: str = ""
    data: DataSettings = DataSettings()
    model: ModelSection = ModelSection()
    objective: Objective = Field(default_factory=dict, validate_default=True)
    training: TrainingSection = TrainingSection()
    distillation: DistillationSection = DistillationSection()
    score: ScoreSettings = ScoreSettings()
    sweep: SweepSection | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _class_number_as_text(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return data | {key: str(data[key]) for key in ("normal", "novel") if isinstance(data.get(key), int)}

    @field_validator("objective", mode="plain")
    @classmethod
    def _fits_family(cls, objective: object, info: ValidationInfo) -> Any:
        model = info.data.get("model")
        return None if model is None else parse_objective(objective, model.family)  # a bad model has its own message

    def student_objective(self) -> Any:
        """How the student trains on its own losses."""
        student = self.distillation.student
        expected = FAMILIES[student.family or self.model.family].objective
        return student.objective or (self.objective if type(self.objective) is expected else expected())

    def standalone_stages(self, num_train: int) -> tuple[Stage, ...]:
        """The one stage in which a GAN trains on its own losses."""
        rate = self.training.learning_rate
        return (Stage("from-scratch", FROM_SCRATCH, self.training.num_epochs(num_train), rate, rate),)

    def to_yaml(self) -> str:
        """The whole recipe with every value written out."""
        text: str = yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
        return text

    def relative_to(self, folder: Path) -> "Recipe":
        """The recipe as it is stored in a folder: absolute paths become relative to it."""
        return self.with_paths(lambda path: relative_path(path, folder))

    def with_paths(self, convert: Callable[[str], str]) -> "Recipe":
        """A copy with the paths of its images, its teacher and its cache converted."""
        section = self.distillation
        teacher = None if section.teacher is None else convert(section.teacher)
        folder = None if section.cache.folder is None else convert(section.cache.folder)
        cache = section.cache.model_copy(update={"folder": folder})
        distillation = section.model_copy(update={"teacher": teacher, "cache": cache})
        return self.model_copy(update={"data": self.data.with_paths(convert), "distillation": distillation})

    def replace(self, *changes: dict[str, Any]) -> "Recipe":
        """A copy with other values, validated like a file; sections are merged key by key.

        A family with another kind of objective resets the objective.

        Args:
            *changes: Nested like a recipe file; later ones override earlier ones, and a value None changes nothing.
        """
        known = _known_keys()
        changed: dict[str, Any] = functools.reduce(_merge, (aliases.update_names(c, known) for c in changes), {})
        student = self.distillation.student
        reset: Any = {
            "objective": _resets(self.objective, changed, "model"),
            "distillation": {"student": {"objective": _resets(student.objective, changed, "distillation", "student")}},
        }
        kept = self.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude=reset)
        return parse_recipe(_merge(kept, changed), "the command-line options")


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str = DEFAULT) -> Recipe:
    """Read a shipped recipe by name, or a file, whose relative paths start in its folder.

    Raises:
        KdganError: No such recipe, invalid YAML, or invalid values; all problems of a file in one message.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{aliases.RECIPES.get(name_or_path, name_or_path)}.yaml"
    try:
        text = read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        found = f"got {name_or_path!r} ({getattr(error, 'strerror', None) or error})"
        hint = f"Choose one of {', '.join(recipe_names())}, or give a path"
        raise KdganError("The recipe must be a shipped one or a readable .yaml file", found, hint) from None
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise KdganError("The recipe must be YAML", f"{path}: {error}", "Fix the file") from None
    recipe = parse_recipe({} if content is None else content, str(path))
    return recipe if path.parent == RECIPES else recipe.with_paths(functools.partial(_from_folder, path.parent))


def _from_folder(folder: Path, path: str) -> str:
    """A path of a recipe in a folder, relative to the working directory if both are relative."""
    if path.startswith("~") or Path(path).is_absolute():
        return path
    absolute = absolute_path(path, folder)
    return absolute if folder.is_absolute() else relative_path(absolute, Path())


def parse_recipe(content: object, origin: str) -> Recipe:
    """Validate a recipe's content, nested dictionaries as YAML gives them; old names of keys are accepted.

    Raises:
        KdganError: All problems at once, an unknown key with the nearest known one.
    """
    if not isinstance(content, dict):
        found = f"{origin} is {type(content).__name__}"
        raise KdganError("A recipe must be a mapping of sections", found, "Start from `kdgan-compress recipes show`")
    try:
        return Recipe.model_validate(aliases.update_names(content, _known_keys()))
    except ValidationError as error:
        problems = [
            _problem(tuple(part for part in detail["loc"] if "[" not in str(part)), detail["type"], detail["msg"])
            for detail in error.errors()
            if detail["loc"][-1:] != ("str",)  # that a list of stages is not a string
        ]
        found = f"found {len(problems)} problem{'s' if len(problems) > 1 else ''} in {origin}: {'; '.join(problems)}"
        raise KdganError("The settings of a recipe must be valid", found, HINT) from None


def _problem(location: tuple[str | int, ...], kind: str, message: str) -> str:
    where = ".".join(str(part) for part in location) or "one of the keys"
    if location and kind in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(str(location[-1]), sorted(_known_keys() - {str(location[-1])}), n=1)
        return f"{where} is not a key" + (f" (did you mean {near[0]}?)" if near else "")
    return f"{where}: {message.removeprefix('Value error, ').rstrip('.')}"


def _known_keys() -> set[str]:
    sections: tuple[type[BaseModel], ...] = (
        *(Recipe, ModelSection, StudentSection, TrainingSection, DistillationSection, CacheSection, StageSection),
        *(SweepSection, QuickSection, ReportSection),
    )
    settings = (
        DataSettings,
        TileSettings,
        ScoreSettings,
        DistillationLoss,
        Term,
        LossSet,
        *(family.objective for family in FAMILIES.values()),
    )
    fields = {field.name for each in settings for field in dataclasses.fields(each)}
    return fields.union({"type"}, *(section.model_fields for section in sections))


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``changes`` that are not None, section by section."""
    given = {key: value for key, value in changes.items() if value is not None}
    cleared = {MUTUALLY_EXCLUSIVE.get(key) for key in given} - given.keys()
    merged = {key: value for key, value in base.items() if key not in cleared}
    for key, value in given.items():
        if isinstance(value, dict):
            section = merged.get(key, {})
            if not isinstance(section, dict):
                raise KdganError("A recipe's key must be either a section or a value", f"{key} is given as both", HINT)
            value = _merge(section, value)
        merged[key] = value
    return merged


def _resets(objective: Any, changes: dict[str, Any], *section: str) -> bool:
    """Whether the changes name, in a section, a family with another kind of objective."""
    family: Any = changes
    for key in (*section, "family"):
        family = family.get(key) if isinstance(family, dict) else None
    return isinstance(family, str) and (family not in FAMILIES or FAMILIES[family].objective is not type(objective))
