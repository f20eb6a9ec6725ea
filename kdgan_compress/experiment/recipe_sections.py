"""The sections of a recipe as validated settings; ``recipe.py`` puts them together."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PydanticUserError,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
    with_config,
)

from kdgan_compress.accel.teacher_cache import CacheDtype
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.policies import STRUCTURES, LossSet, Stage, parse_schedule
from kdgan_compress.distillation.stage_run import Precision, TrainingSettings
from kdgan_compress.errors import first_line
from kdgan_compress.gans import FAMILIES, Architecture, Norm, channels_from_width, find_family, is_entry_point


def objective_type(objective: type) -> str:
    """The ``type`` of an objective section, such as ``ganomaly`` for ``GanomalyObjective``."""
    return objective.__name__.removesuffix("Objective").lower()


def parse_objective(section: object, family: str) -> Any:
    """An objective section as the dataclass of its family; ``type`` may be left out, as the family implies it."""
    expected = FAMILIES[family].objective
    if isinstance(section, dict) and "type" in section:
        if section["type"] != objective_type(expected):
            raise ValueError(f"type {section['type']!r} does not fit family {family}: use {objective_type(expected)}")
        section = {key: value for key, value in section.items() if key != "type"}
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(with_config(ConfigDict(extra="forbid"))(expected))
    except (PydanticUserError, NameError) as error:
        raise ValueError(f"a recipe can't hold the fields of {expected.__name__}: {first_line(error)}") from None
    return adapter.validate_python(section)


def _dump_objective(objective: Any) -> dict[str, Any] | None:
    return objective and {"type": objective_type(type(objective)), **dataclasses.asdict(objective)}


def _check_family(family: str) -> str:
    if is_entry_point(family):
        find_family(family)
    elif family not in FAMILIES:
        raise ValueError(f"family {family!r} is not one of {', '.join(FAMILIES)}")
    return family


LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_COUNT = 2**31 - 1
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Channels = Annotated[tuple[Count, ...], Field(min_length=1)]
FamilyName = Annotated[str, AfterValidator(_check_family)]
Objective = Annotated[Any, PlainSerializer(_dump_objective)]
"""The dataclass that the family's objective is registered as."""


class Section(BaseModel):
    """A mapping without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChannelsSection(Section):
    """Channels of the strided blocks: a width u for (u, 2u, 4u, …), or the numbers; by default, the default width."""

    default_width: ClassVar[int] = 2

    width: Count | None = None
    channels: Channels | None = None

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.width is not None and self.channels is not None:
            raise ValueError("only one of width and channels can be given")
        return self

    def channels_for(self, image_size: int) -> tuple[int, ...]:
        """Channels of each block for an image size."""
        return self.channels or channels_from_width(self.width or self.default_width, image_size)


class ModelSection(ChannelsSection):
    """The teacher's architecture; ``image_channels`` None means that of the data."""

    default_width: ClassVar[int] = 64

    family: FamilyName = "ede"
    image_channels: Literal[1, 3] | None = None
    image_size: int = 32
    latent_size: Count = 256
    norm: Norm = "instance"
    num_clusters: Count | None = None
    extra_layers: Count | None = None

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        self.architecture(native_channels=1)
        return self

    def architecture(self, native_channels: int) -> Architecture:
        """The architecture for images that are stored with this many channels."""
        values = self.model_dump(exclude={"width"})
        values["channels"] = self.channels_for(self.image_size)
        return Architecture(**values | {"image_channels": self.image_channels or native_channels})


class TrainingSection(Section):
    """Optimiser, batches and length of each stage."""

    batch_size: Count = 16
    num_images: Count = 12_000
    epochs: Count | None = None
    learning_rate: LearningRate = 1e-3
    learning_rate_decay: Literal["linear", "constant"] = "linear"
    betas: tuple[Decay, Decay] = (0.5, 0.99)
    ema_decay: Decay = 0.99
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Count | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "float32"

    def settings(self) -> TrainingSettings:
        """The part that the trainer reads."""
        return TrainingSettings(self.batch_size, self.learning_rate_decay, self.seed, self.precision)

    def num_epochs(self, num_train: int) -> int:
        """``epochs``, or the whole number of epochs nearest to ``num_images``."""
        return self.epochs or max(1, round(self.num_images / num_train))


class StudentSection(ChannelsSection):
    """The student's channels and norm; its image size, family and objective if they are not the teacher's."""

    norm: Norm = "batch"
    image_size: int | None = None
    family: FamilyName | None = None
    objective: Objective = None

    @field_validator("objective", mode="plain")
    @classmethod
    def _fits_family(cls, objective: object, info: ValidationInfo) -> Any:
        if objective is None or "family" not in info.data:
            return None
        if info.data["family"] is None:
            raise ValueError("it needs a student's family; otherwise the student trains by the recipe's objective")
        return parse_objective(objective, info.data["family"])


class StudentTrainingSection(TrainingSection):
    """Training settings with a student's default learning rate."""

    learning_rate: LearningRate = 4e-3


class CacheSection(Section):
    """Whether and where a frozen teacher's outputs are cached; without a folder, in memory and only if they fit."""

    enabled: bool = True
    folder: Annotated[str, Field(min_length=1, pattern=r"\A[^\x00]*\z")] | None = None
    dtype: CacheDtype = "float32"
    memory_mb: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 1024


class StageSection(Section):
    """One stage of a schedule; missing values are those of ``distillation.training``."""

    structure: Literal[1, 2, 3, 4] | None = None
    loss_set: LossSet | None = None
    epochs: Count | None = None
    learning_rate: LearningRate | None = None
    teacher_learning_rate: LearningRate | None = None

    @model_validator(mode="after")
    def _has_one_loss_set(self) -> Self:
        if (self.structure is None) == (self.loss_set is None):
            raise ValueError("exactly one of structure and loss_set must be given")
        return self


class DistillationSection(Section):
    """The student, its schedule and K_l.

    ``schedule`` is a chain such as ``"2->3"``, or a list of stages. A stage may set its epochs and learning rates, and
    the coefficients of a loss set that is not in the paper. ``distill`` fills in ``teacher``.
    """

    teacher: str | None = None
    student: StudentSection = StudentSection()
    schedule: str | tuple[StageSection, ...] = "2->3"
    loss: DistillationLoss = DistillationLoss()
    training: StudentTrainingSection = StudentTrainingSection()
    cache: CacheSection = CacheSection()
    teacher_learning_rate: LearningRate = 1e-4

    @field_validator("schedule", mode="before")
    @classmethod
    def _has_stages(cls, schedule: object) -> object:
        if schedule in ("", [], ()):
            raise ValueError("a schedule needs at least one stage")
        if not isinstance(schedule, int | str):
            return schedule
        parse_schedule(str(schedule))
        return str(schedule)

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
