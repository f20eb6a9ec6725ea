"""``kdgan-compress distill``."""

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import (
    data_option,
    load_families,
    reject_options_with_resume,
    training_changes,
    training_options,
    with_seeds,
)
from kdgan_compress.cli.output import print_result, progress_display

if TYPE_CHECKING:
    from kdgan_compress.experiment.runner import RunOptions


@click.command()
@click.option(
    "--teacher",
    "first_teachers",
    multiple=True,
    metavar="RUN|FILE",
    help="Run folder or model file; several (runs/*): one student per teacher.",
)
@click.argument("more_teachers", nargs=-1, metavar="")
@click.option(
    "--family",
    multiple=True,
    callback=load_families,
    help="Student's family; also your own code, of teacher and student.  [default: teacher's]",
)
@click.option("--schedule", help='Chain of structures.  [default: the recipe\'s, "2->3"]')
@click.option("--norm", type=click.Choice(["instance", "batch"]), help="Student normalisation; batch folds at export.")
@click.option("--image-size", type=int, help="Side of the student's images.  [default: the teacher's]")
@click.option("--teacher-learning-rate", type=float, hidden=True, help="Learning rate of a trained teacher (③, ④).")
@click.option("--cache", metavar="DIR|off", help="Keep the teacher's outputs in a folder.  [default: in memory]")
@click.option(
    "--cache-dtype", type=click.Choice(["float32", "float16"]), hidden=True, help="dtype of the cached outputs."
)
@click.option("--cache-memory-mb", type=int, hidden=True, help="Caches above this size are memory-mapped.")
@data_option
@training_options
@click.pass_context
def distill(
    context: click.Context,
    /,
    first_teachers: tuple[str, ...],
    more_teachers: tuple[str, ...],
    cache: str | None,
    cache_dtype: str | None,
    cache_memory_mb: int | None,
    family: tuple[str, ...],
    schedule: str | None,
    norm: str | None,
    image_size: int | None,
    teacher_learning_rate: float | None,
    data: str | None,
    data_root: str | None,
    recipe: str | None,
    settings: tuple[dict[str, Any], ...],
    out: Path | None,
    resume: Path | None,
    track_auc: bool,
    raw: bool,
    as_json: bool,
    fleet: int | None,
    **options: Any,
) -> None:
    """Distil a teacher into a small student; data and preprocessing are the teacher's.

    \b
    kdgan-compress distill --teacher runs/teacher --width 8
    kdgan-compress distill --teacher runs/teachers/* --width 2 --out runs/students
    """
    from kdgan_compress.api.distill import distill as run_distill
    from kdgan_compress.api.resume import resume as resume_runs
    from kdgan_compress.experiment.recipe import load_recipe

    runner: RunOptions = {"fleet_size": fleet, "track_auc": track_auc, "raw": raw}
    if resume is not None:
        reject_options_with_resume(context)
        with progress_display() as runner["show_progress"]:
            result = resume_runs(resume, "distill", **runner)
        print_result(result, as_json)
        return
    if not first_teachers:
        raise click.UsageError("Give --teacher RUN_OR_FILE, or --resume RUN.")
    teachers = _expand(first_teachers + more_teachers)
    seeds = options.pop("seed")
    channels, training = training_changes(**options)
    section = {
        "student": channels | {"norm": norm, "image_size": image_size, "family": family[-1] if family else None},
        "schedule": schedule,
        "training": training,
        "teacher_learning_rate": teacher_learning_rate,
        "cache": _cache_changes(cache) | {"dtype": cache_dtype, "memory_mb": cache_memory_mb},
    }
    changed = load_recipe(recipe or "default").replace(*settings, {"distillation": section})
    recipes = with_seeds(changed, seeds, "distillation", "training")
    is_one = len(teachers) * len(recipes) == 1
    chosen: Any = (teachers[0], recipes[0]) if is_one else (teachers, recipes)
    with progress_display() as runner["show_progress"]:
        result = run_distill(chosen[0], chosen[1], out, data, data_root, **runner)
    print_result(result, as_json)


def _cache_changes(cache: str | None) -> dict[str, Any]:
    """Changes to a recipe for ``--cache``: off, or a folder."""
    if cache is None:
        return {}
    return {"enabled": False} if cache == "off" else {"enabled": True, "folder": cache}


def _expand(teachers: tuple[str, ...]) -> list[str]:
    """Paths of the teachers; a pattern that the shell did not expand stands for every matching run folder."""
    expanded: list[str] = []
    for teacher in teachers:
        matches = glob.glob(teacher)  # noqa: PTH207  # pathlib accepts no absolute pattern
        runs = sorted(path for path in matches if (Path(path) / "recipe.yaml").exists())
        expanded += runs if runs and glob.has_magic(teacher) else [teacher]
    return expanded
