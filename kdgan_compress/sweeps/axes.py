"""Axes of a sweep: their names, and what a value of an axis changes in a recipe."""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import Recipe
from kdgan_compress.experiment.sweep_section import Axes, AxisValues
from kdgan_compress.gans import FAMILIES

Command = Literal["train", "distill"]

STUDENT = "distillation."
"""Keys that begin so change nothing in a teacher."""

ALIASES: dict[str, tuple[str, ...]] = {
    "data": ("data.source",),
    "normal": ("data.normal",),
    "novel": ("data.novel",),
    "protocol": ("data.protocol",),
    "outliers": ("data.outliers",),
    "num_categories": ("data.num_categories",),
    "score": ("score.type",),
    "schedule": ("distillation.schedule",),
    "seed": ("training.seed", "distillation.training.seed"),
    "trial": ("data.trial", "training.seed", "distillation.training.seed"),
}
"""Name of an axis → recipe keys that its values set."""

MODEL_ALIASES = ("width", "channels", "norm", "family", "image_size")
TRAINING_ALIASES = ("batch_size", "num_images", "epochs", "learning_rate")
"""Names of what both a GAN and a student have; a sweep of students sets the student's."""


def axis_keys(name: str, command: Command) -> tuple[str, ...]:
    """Recipe keys that an axis sets; empty if the name is neither an alias nor a recipe key."""
    if name in MODEL_ALIASES:
        return (f"model.{name}" if command == "train" else f"distillation.student.{name}",)
    if name in TRAINING_ALIASES:
        return (f"training.{name}" if command == "train" else f"distillation.training.{name}",)
    return ALIASES.get(name) or ((name,) if name in recipe_keys() else ())


def parse_axes(texts: Mapping[str, object]) -> Axes:
    """Axes whose values are texts such as ``"1,2,8"`` or ``"0..9"``, lists or mappings.

    Raises:
        KdganError: An axis has no values, or one of them twice.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(AxisValues)
    axes = {}
    for name, text in texts.items():
        try:
            axes[name] = adapter.validate_python(text)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise KdganError("An axis needs a list of values", f"{name}: {message}", "Try 1,2,8 or 0..9") from None
    return axes


def check_axes(axes: Axes, command: Command) -> None:
    """Check that each axis changes something that the command trains by.

    Raises:
        KdganError: An axis names no setting, with the nearest name; or only a student's in a sweep without teachers.
    """
    for name, values in axes.items():
        keys = axis_keys(name, command)
        if not keys and not isinstance(values, dict):
            near = nearest_name(name)
            hint = f"The nearest name is {near}" if near else "`kdgan-compress recipes show default` prints every key"
            raise KdganError("An axis must name a setting", f"got {name}", hint)
        if command == "train" and keys and all(key.startswith(STUDENT) for key in keys):
            problem = f"Axis {name} changes students only"
            raise KdganError(problem, "this sweep trains GANs without a teacher", "Add --distill, or leave it out")


def axis_settings(name: str, value: Any, values: AxisValues, command: Command) -> dict[str, Any]:
    """Settings of one value of an axis, by dotted recipe key."""
    extra = values[value] if isinstance(values, dict) else {}
    return dict.fromkeys(axis_keys(name, command), value) | extra


def nested(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings by dotted key as changes to a recipe: ``{"a.b": 1}`` → ``[{"a": {"b": 1}}]``."""
    return [functools.reduce(lambda inner, key: {key: inner}, reversed(k.split(".")), v) for k, v in settings.items()]


def nearest_name(name: str) -> str | None:
    """The axis that a misspelt name probably means, by its whole name or its last part."""
    names = sorted({*ALIASES, *MODEL_ALIASES, *TRAINING_ALIASES, *recipe_keys()})
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return near[0]
    last_parts = {key.rpartition(".")[2]: key for key in sorted(names, key=len, reverse=True)}
    near = difflib.get_close_matches(name.rpartition(".")[2], sorted(last_parts), n=1)
    return last_parts[near[0]] if near else None


def recipe_keys() -> set[str]:
    """Every dotted key of a recipe, with those of all families' objectives."""
    fields = {
        f"{section}.{field.name}"
        for family in FAMILIES.values()
        for field in dataclasses.fields(family.objective)
        for section in ("objective", "distillation.student.objective")
    }
    keys = {key for key in _keys(Recipe, "") if not key.startswith("sweep.")}
    return (keys | fields) - {"description", "distillation.teacher"}


def _keys(kind: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for name in _fields(kind):
        hint = hints[name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        sections = [each for each in kinds if isinstance(each, type) and _fields(each)]
        for section in sections:
            yield from _keys(section, f"{prefix}{name}.")
        if not sections:
            yield prefix + name


def _fields(kind: type) -> list[str]:
    """Names of a section's fields; none for a plain value."""
    if issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
