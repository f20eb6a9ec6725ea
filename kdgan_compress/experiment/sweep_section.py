"""The ``sweep`` section of a recipe: a grid of experiments, its quick variant and how its report is laid out."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kdgan_compress.experiment.recipe_yaml import parse_yaml

METRICS = ("auc", "best_f1")
"""Keys of a paper's row that are figures; all others name axes."""

RANGE = re.compile(r"(\d+)\.\.(\d+)")


def parse_values(text: object) -> Any:
    """Values of an axis from a text: separated by commas, ``A..B`` for whole numbers; a list or mapping stays.

    ``"0..2"`` → ``[0, 1, 2]``, ``"2->3,none"`` → ``["2->3", "none"]``, ``"[2,4,8],[1,2,4]"`` → two lists.

    Raises:
        ValueError: No values, one of them twice, or a range that ends before it starts.
    """
    values: Any = text
    if isinstance(text, str):
        try:
            values = parse_yaml(f"[{text}]")
        except ValueError:
            raise ValueError(f"{text!r} is not a list of values such as 1,2,8 or a range such as 0..9") from None
    if not isinstance(values, dict):
        values = [values] if not isinstance(values, list | tuple) else values
        values = [each for value in values for each in _expand(value)]
    names = [repr(value) for value in values]
    if not names or "None" in names or len(set(names)) < len(names):
        raise ValueError(f"{text!r} must name at least one value, and each of them once")
    return values


def _expand(value: object) -> list[Any]:
    match = RANGE.fullmatch(str(value))
    if match is None:
        return [value]
    first, last = map(int, match.groups())
    if first > last:
        raise ValueError(f"{value!r} is not a range such as 0..9")
    return list(range(first, last + 1))


AxisValues = Annotated[
    list[Any] | dict[str | int | float, dict[str, Any]],
    BeforeValidator(parse_values),
]
"""Values, or each value with further settings that it brings: dotted recipe keys and their values."""

Axes = dict[str, AxisValues]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class QuickSection(_Section):
    """What the quick variant changes: axes with other values, and settings by dotted recipe key."""

    axes: Axes = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)


class ReportSection(_Section):
    """Which axes make the rows and columns of the results table, and the paper's figures for cells of it."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    paper: tuple[dict[str, Any], ...] = ()


class SweepSection(_Section):
    """A grid over a recipe.

    ``command`` is ``train`` for GANs without a teacher, or ``distill`` for students and their teachers. An axis is
    named by an alias or a dotted recipe key; an axis of any other name maps each of its values to settings.
    """

    command: Literal["train", "distill"] = "train"
    axes: Axes = Field(default_factory=dict)
    quick: QuickSection | None = None
    track_auc: bool = False
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _report_names_axes(self) -> Self:
        named = {*self.report.rows, *self.report.columns, *(key for row in self.report.paper for key in row)}
        unknown = sorted(named - {*self.axes, *METRICS})
        if unknown:
            raise ValueError(f"the report names {', '.join(unknown)}, which is not an axis of the sweep")
        return self
