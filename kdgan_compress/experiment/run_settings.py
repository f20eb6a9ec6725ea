"""The settings of a run as flat text values, and the few of them that tell several runs apart."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdgan_compress.data import SOURCES, DataSettings
from kdgan_compress.experiment.recipe import Recipe

MODEL, STRUCTURE, CHANNELS = "model", "structure", "channels"
FIRST = (MODEL, "data", STRUCTURE, CHANNELS, "family", "norm")
"""Settings that name a model best, in order."""

NOT_SETTINGS = frozenset({"seed", "threads", "device", "width", "objective.type"})
"""Of a run's own sections: what repeats it, where it ran, and what others repeat."""

CIRCLED = str.maketrans({"1": "①", "2": "②", "3": "③", "4": "④"} | {"-": "", ">": "→"})


def data_label(data: DataSettings) -> str:
    """The data set and protocol without the class and the trial, such as ``mnist`` or ``coil100, 4 categories``."""
    name, _, path = data.source.partition(":")
    parts = [path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".npz") if path else name]
    if data.protocol not in ("simo", parts[0]):
        parts.append(data.protocol)
    if data.protocol == "coil100":
        parts.append(f"{data.num_categories or 1} categor{'y' if (data.num_categories or 1) == 1 else 'ies'}")
    if data.protocol in ("gpnd-5fold", "coil100"):
        parts.append(f"{100 * data.outlier_fraction:g} % outliers")
    return ", ".join(parts)


def class_label(data: DataSettings) -> str:
    """The normal class, or ``not deer`` for a novel one; empty where there is none to choose."""
    if data.novel is not None:
        return f"not {data.novel}"
    kind = SOURCES.get(data.source.partition(":")[0])
    if kind is None or kind.is_presplit:
        return ""
    return data.normal or kind.default_normal or ""


def repeat_label(recipe: Recipe) -> str:
    """What differs between repetitions: the seed and, in protocols with random splits, the trial."""
    training = recipe.training if recipe.distillation.teacher is None else recipe.distillation.training
    trial = "" if recipe.data.protocol == "simo" else f", trial {recipe.data.trial}"
    return f"seed {training.seed}{trial}"


def run_settings(recipe: Recipe) -> dict[str, str]:
    """The settings that a run depends on, by dotted name: those of a student's or of a model's own training."""
    dumped: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    model, training, objective = recipe.model, dumped["training"], dumped["objective"]
    values = {"data": data_label(recipe.data), MODEL: "trained alone", STRUCTURE: "–", "family": model.family}
    channels, norm, rest = model.channels_for(model.image_size), model.norm, dumped["model"]
    section = dumped["distillation"]
    if recipe.distillation.teacher is not None:
        student = recipe.distillation.student
        size = student.image_size or model.image_size
        values |= {
            MODEL: "student",
            STRUCTURE: schedule_label(section["schedule"]),
            "family": student.family or model.family,
        }
        channels, norm, training = student.channels_for(size), student.norm, section["training"]
        rest = dumped["model"] | {"image_size": size}
        objective = section["student"].get("objective", objective)
    values |= {CHANNELS: "-".join(map(str, channels)), "norm": norm}
    sections = {"": {k: v for k, v in rest.items() if k not in (*values, "channels", "image_channels")}}
    sections |= {"training.": training, "objective.": objective, "score.": dumped["score"]}
    if recipe.distillation.teacher is not None:
        teacher_channels = model.channels_for(model.image_size)
        teacher = {CHANNELS: "-".join(map(str, teacher_channels)), "family": model.family, "norm": model.norm}
        sections |= {"loss.": section["loss"], "teacher.": teacher}
        values["teacher_learning_rate"] = str(section["teacher_learning_rate"])
    for prefix, content in sections.items():
        kept = {key: value for key, value in content.items() if key not in NOT_SETTINGS}
        values |= {f"{prefix}{key}": str(value) for key, value in kept.items()}
    return values


def distinguishing(settings: Sequence[Mapping[str, str]], without: Sequence[str] = ()) -> list[str]:
    """The fewest names, most telling first, whose values tell apart all settings that differ.

    A name is left out if those before it already separate everything that it would separate. For equal settings the
    list is empty.
    """
    names = [name for name in FIRST if any(name in each for each in settings)]
    names += sorted({name for each in settings for name in each} - set(names))
    chosen: list[str] = []
    num_groups = 1
    for name in names:
        if name in without:
            continue
        groups = {tuple(each.get(key, "–") for key in (*chosen, name)) for each in settings}
        if len(groups) > num_groups:
            chosen.append(name)
            num_groups = len(groups)
    return chosen


def schedule_label(schedule: Any) -> str:
    """A schedule in the paper's symbols, such as ②→③ for ``2->3`` or for a list of stages; other texts as they are."""
    if isinstance(schedule, str):
        return schedule.translate(CIRCLED) if set(schedule) <= set("1234->") else schedule
    return "→".join(str(stage.get("structure", "custom")).translate(CIRCLED) for stage in schedule)
