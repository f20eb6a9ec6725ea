"""Recipes: one experiment (a teacher and its student) as YAML, validated whole, all problems told at once."""

import difflib
import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
    with_config,
)

from kdgan_compress.accel.precision import Precision
from kdgan_compress.accel.teacher_cache import CacheDtype
from kdgan_compress.data import DataSettings
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import FROM_SCRATCH, STRUCTURES, LossSet, Stage, parse_schedule
from kdgan_compress.distillation.trainer import TrainingSettings
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import FAMILIES, Architecture, Norm, channels_from_width
from kdgan_compress.gans.cvgad_objective import CvgadObjective
from kdgan_compress.gans.ganomaly_objective import GanomalyObjective
from kdgan_compress.gans.objectives import OBJECTIVES

PACKAGE = Path(__file__).parents[1]
INSTALLED = PACKAGE / "recipes"
RECIPES = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "recipes"
"""Where shipped recipes are: inside an installed wheel, or beside the package in a checkout."""

DEFAULT = "default"

HINT = "Mend all of them; `kdgan-compress recipes show default` prints every key"

EXCLUSIVE = (("width", "channels"), ("channels", "width"), ("num_images", "epochs"))
"""Naming the first of a pair sets the second aside."""

FamilyObjective = CvgadObjective | GanomalyObjective
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Plan = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is none of {', '.join(FAMILIES)}")


def _objective(settings: object, family: str) -> FamilyObjective:
    adapter: TypeAdapter[FamilyObjective] = TypeAdapter(with_config(extra="forbid")(OBJECTIVES[family]))
    return adapter.validate_python(settings)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChannelsSection(_Section):
    """A channel plan: a width u for (u, 2u, 4u, …), or the numbers themselves; neither takes the default width."""

    default_width: ClassVar[int] = 2

    width: Annotated[int, Field(ge=1)] | None = None
    channels: Plan | None = None

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.width is not None and self.channels is not None:
            raise ValueError("only one of width and channels can be given")
        return self

    def plan(self, image_size: int) -> tuple[int, ...]:
        """The channel numbers for an image size."""
        return self.channels or channels_from_width(self.width or self.default_width, image_size)


class ModelSection(ChannelsSection):
    """The teacher's architecture; ``image_channels`` None takes the data's own."""

    default_width: ClassVar[int] = 64

    family: str = "ede"
    image_channels: Literal[1, 3] | None = None
    image_size: int = 32
    latent_size: Annotated[int, Field(ge=1)] = 256
    norm: Norm = "instance"
    num_clusters: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        _check_family(self.family)
        self.architecture(native_channels=1)
        return self

    def architecture(self, native_channels: int) -> Architecture:
        """What to build for data with this many channels."""
        return Architecture(
            family=self.family,
            channels=self.plan(self.image_size),
            image_channels=self.image_channels or native_channels,
            image_size=self.image_size,
            latent_size=self.latent_size,
            norm=self.norm,
            num_clusters=self.num_clusters,
        )


class TrainingSection(_Section):
    """How steps are made; every value is per stage."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    num_images: Annotated[int, Field(ge=1)] = 12_000
    epochs: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Rate = 1e-3
    learning_rate_decay: Literal["linear", "constant"] = "linear"
    betas: tuple[Beta, Beta] = (0.5, 0.99)
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1)] | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "float32"

    def settings(self) -> TrainingSettings:
        """The engine's part of this section."""
        return TrainingSettings(self.batch_size, self.learning_rate_decay, self.seed, self.precision)

    def num_epochs(self, num_train: int) -> int:
        """``epochs``, or as many as come nearest to ``num_images``."""
        return self.epochs or max(1, round(self.num_images / num_train))


class StudentSection(ChannelsSection):
    """The student's channel plan and norm; its family where that is not its teacher's, and how it trains then."""

    norm: Norm = "batch"
    family: str | None = None
    objective: SerializeAsAny[FamilyObjective] | None = None

    @field_validator("family")
    @classmethod
    def _known(cls, family: str | None) -> str | None:
        if family is not None:
            _check_family(family)
        return family

    @field_validator("objective", mode="plain")
    @classmethod
    def _of_family(cls, objective: object, info: ValidationInfo) -> FamilyObjective | None:
        family = info.data.get("family")
        if objective is None or "family" not in info.data:
            return None
        if family is None:
            raise ValueError("it goes with a student's family; a student of its teacher's trains by the recipe's own")
        return _objective(objective, family)


class StudentTrainingSection(TrainingSection):
    """The same with a student's rate."""

    learning_rate: Rate = 4e-3


class CacheSection(_Section):
    """Whether and where a frozen teacher's outputs are kept; without a folder, in memory and only if they fit."""

    enabled: bool = True
    folder: Annotated[str, Field(min_length=1)] | None = None
    dtype: CacheDtype = "float32"
    memory_mb: Annotated[int, Field(ge=0)] = 1024


class StageSection(_Section):
    """One stage of a schedule; what is left out is taken from ``distillation.training``."""

    structure: Literal[1, 2, 3, 4] | None = None
    loss_set: LossSet | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Rate | None = None
    teacher_learning_rate: Rate | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.structure is None) == (self.loss_set is None):
            raise ValueError("exactly one of structure and loss_set must be given")
        return self


class DistillationSection(_Section):
    """The student, its schedule and K_l.

    ``schedule`` is a chain such as ``"2->3"``, or a list of stages with their own epochs and rates and, for a loss set
    the paper doesn't have, coefficients. ``teacher`` is filled in by ``distill``.
    """

    teacher: str | None = None
    student: StudentSection = StudentSection()
    schedule: str | tuple[StageSection, ...] = "2->3"
    loss: Distillation = Distillation()
    training: StudentTrainingSection = StudentTrainingSection()
    cache: CacheSection = CacheSection()
    teacher_learning_rate: Rate = 1e-4

    @field_validator("schedule", mode="before")
    @classmethod
    def _one_structure(cls, schedule: object) -> object:
        return str(schedule) if isinstance(schedule, int) else schedule

    @field_validator("schedule")
    @classmethod
    def _has_stages(cls, schedule: str | tuple[StageSection, ...]) -> str | tuple[StageSection, ...]:
        if not schedule:
            raise ValueError("a schedule must have at least one stage")
        if isinstance(schedule, str):
            parse_schedule(schedule)
        return schedule

    def stages(self, num_train: int) -> tuple[Stage, ...]:
        """The schedule for this many training images."""
        sections = self.schedule
        if isinstance(sections, str):
            sections = tuple(StageSection.model_validate({"structure": k}) for k in parse_schedule(sections))
        return tuple(
            Stage(
                name=str(section.structure or "custom"),
                loss_set=section.loss_set or STRUCTURES[section.structure or 1],
                epochs=section.epochs or self.training.num_epochs(num_train),
                learning_rate=section.learning_rate or self.training.learning_rate,
                teacher_learning_rate=section.teacher_learning_rate or self.teacher_learning_rate,
            )
            for section in sections
        )


class Recipe(_Section):
    """One experiment: the data, the teacher and how it trains, the student and how it is distilled."""

    description: str = ""
    data: DataSettings = DataSettings()
    model: ModelSection = ModelSection()
    objective: SerializeAsAny[FamilyObjective] = Field(default_factory=dict, validate_default=True)
    training: TrainingSection = TrainingSection()
    distillation: DistillationSection = DistillationSection()

    @field_validator("data", mode="before")
    @classmethod
    def _numbered_class(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return data | {key: str(data[key]) for key in ("normal", "novel") if isinstance(data.get(key), int)}

    @field_validator("objective", mode="plain")
    @classmethod
    def _of_family(cls, objective: object, info: ValidationInfo) -> FamilyObjective:
        model = info.data.get("model")
        return GanomalyObjective() if model is None else _objective(objective, model.family)

    def student_objective(self) -> FamilyObjective:
        """How the student trains on its own losses."""
        student = self.distillation.student
        own = OBJECTIVES[student.family or self.model.family]
        return student.objective or (self.objective if own is type(self.objective) else own())

    def alone(self, num_train: int) -> tuple[Stage, ...]:
        """The one stage in which a GAN trains on its own losses."""
        rate = self.training.learning_rate
        return (Stage("alone", FROM_SCRATCH, self.training.num_epochs(num_train), rate, rate),)

    def to_yaml(self) -> str:
        """The whole recipe, every value written out."""
        text: str = yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
        return text

    def replace(self, *changes: dict[str, Any]) -> "Recipe":
        """A copy with other values, checked like a file; sections are merged key by key.

        Another family that trains otherwise sets the objective aside.

        Args:
            *changes: Nested as a recipe file is, later ones first in rank; a value None is passed over.
        """
        unset = self.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        changed: dict[str, Any] = functools.reduce(_merge, changes, {})
        _drop_other_objective(unset, _section(changed, "model"), self.objective)
        student, changed_student = (_section(_section(r, "distillation"), "student") for r in (unset, changed))
        _drop_other_objective(student, changed_student, self.distillation.student.objective)
        return parse_recipe(_merge(unset, changed), "the options")


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str = DEFAULT) -> Recipe:
    """Read a shipped recipe by name, or a file.

    Raises:
        KdganError: No such recipe, no YAML, or values that don't fit; all problems of a file in one message.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{name_or_path}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise KdganError(
            "The recipe must be a shipped one or a .yaml file that can be read",
            f"got {name_or_path!r} ({getattr(error, 'strerror', None) or error})",
            f"Choose one of {', '.join(recipe_names())}, or give a path",
        ) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise KdganError("The recipe must be YAML", f"{path}: {reason}", "Mend the file") from None
    return parse_recipe({} if content is None else content, str(path))


def parse_recipe(content: object, origin: str) -> Recipe:
    """Validate a recipe's content, nested dictionaries as YAML gives them.

    Raises:
        KdganError: All problems at once, an unknown key with the nearest known one.
    """
    if not isinstance(content, dict):
        raise KdganError("A recipe must be a mapping of sections", f"{origin} is {type(content).__name__}", "Mend it")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [
            _problem(tuple(part for part in detail["loc"] if "[" not in str(part)), detail["type"], detail["msg"])
            for detail in error.errors()
            if detail["loc"][-1] != "str"  # a list of stages is no string, and need not be told so
        ]
        found = f"found {len(problems)} problem{'s' if len(problems) > 1 else ''} in {origin}: {'; '.join(problems)}"
        raise KdganError("Settings must be ones that a recipe knows", found, HINT) from None


def _problem(location: tuple[str | int, ...], kind: str, message: str) -> str:
    where = ".".join(str(part) for part in location)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(str(location[-1]), sorted(_known_keys() - {str(location[-1])}), n=1)
        return f"{where} is no key" + (f" (did you mean {near[0]}?)" if near else "")
    return f"{where}: {message.removeprefix('Value error, ').rstrip('.')}"


def _known_keys() -> set[str]:
    keys: set[str] = set()
    for section in (
        Recipe,
        ModelSection,
        StudentSection,
        TrainingSection,
        DistillationSection,
        CacheSection,
        StageSection,
    ):
        keys |= section.model_fields.keys()
    for settings in (DataSettings, *OBJECTIVES.values(), Distillation, LossSet):
        keys |= settings.__dataclass_fields__.keys()
    return keys


def _section(content: dict[str, Any], key: str) -> dict[str, Any]:
    section = content.get(key)
    return section if isinstance(section, dict) else {}


def _drop_other_objective(kept: dict[str, Any], changes: dict[str, Any], objective: object) -> None:
    """Take the objective out of a section whose family is to change to one that trains otherwise."""
    family = changes.get("family")
    if isinstance(family, str) and OBJECTIVES.get(family) is not type(objective):
        kept.pop("objective", None)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict):
            if not isinstance(merged.get(key, {}), dict):
                raise KdganError("A recipe's key must be a section or a value", f"{key} is given as both", HINT)
            merged[key] = _merge(_section(merged, key), value)
        elif value is not None:
            merged[key] = value
    for given, dropped in EXCLUSIVE:
        if changes.get(given) is not None and changes.get(dropped) is None:
            merged.pop(dropped, None)
    return merged
