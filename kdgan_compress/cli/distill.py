"""``kdgan-compress distill``."""

import glob
from pathlib import Path
from typing import Any

import click

from kdgan_compress.cli.options import (
    data_option,
    forbid_beside_resume,
    training_changes,
    training_options,
    with_seeds,
)
from kdgan_compress.cli.output import finish, print_fleet, print_run, progress_display


@click.command()
@click.option(
    "--teacher",
    "first_teachers",
    multiple=True,
    metavar="RUN|FILE",
    help="A run folder or model file that train wrote; several of them (runs/*) for a student each.",
)
@click.argument("more_teachers", nargs=-1, metavar="")
@click.option("--schedule", help='Structures in a row.  [default: the recipe\'s, "2->3"]')
@click.option(
    "--norm",
    type=click.Choice(["instance", "batch"]),
    help="The student's; batch costs nothing on the device.  [default: the recipe's, batch]",
)
@click.option("--teacher-learning-rate", type=float, help="Adam's rate for a teacher that goes on training (③, ④).")
@click.option(
    "--cache",
    metavar="DIR|off",
    help="Keep frozen teachers' outputs in a folder, for other runs too.  [default: in memory]",
)
@click.option("--cache-dtype", type=click.Choice(["float32", "float16"]), help="Of these outputs.  [default: float32]")
@click.option("--cache-memory-mb", type=int, help="Larger caches stay in their file.  [default: 1024]")
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
    schedule: str | None,
    norm: str | None,
    teacher_learning_rate: float | None,
    data: str | None,
    data_root: str | None,
    recipe: str | None,
    settings: tuple[dict[str, Any], ...],
    out: Path | None,
    resume: Path | None,
    track_auc: bool,
    as_json: bool,
    fleet: int | None,
    **options: Any,
) -> None:
    """Distil a teacher into a narrow student; the teacher remembers its data and preprocessing.

    Of several teachers or seeds, all students at once.

    \b
    kdgan-compress distill --teacher runs/teacher --width 8
    kdgan-compress distill --teacher runs/teacher --channels 8,16,64 --schedule "2->4" --out runs/student
    kdgan-compress distill --teacher runs/teachers/* --width 2 --out runs/students
    """
    from kdgan_compress.api.distill import distill as run_distill
    from kdgan_compress.api.distill import distill_fleet, resume_distill, resume_distill_fleet
    from kdgan_compress.experiment.recipe import load_recipe

    if resume is not None:
        forbid_beside_resume(context)
        finish(resume, resume_distill, resume_distill_fleet, fleet=fleet, track_auc=track_auc, as_json=as_json)
        return
    if not first_teachers:
        raise click.UsageError("Give --teacher RUN_OR_FILE, or --resume RUN.")
    teachers = _expand(first_teachers + more_teachers)
    seeds = options.pop("seed")
    plan, training = training_changes(**options)
    section = {
        "student": plan | {"norm": norm},
        "schedule": schedule,
        "training": training,
        "teacher_learning_rate": teacher_learning_rate,
        "cache": _cache_changes(cache) | {"dtype": cache_dtype, "memory_mb": cache_memory_mb},
    }
    changed = load_recipe(recipe or "default").replace(*settings, {"distillation": section})
    chosen = with_seeds(changed, seeds, "distillation", "training")
    where: dict[str, Any] = {"data": data, "data_root": data_root, "track_auc": track_auc}
    with progress_display() as show:
        if len(teachers) * len(chosen) > 1:
            several = distill_fleet(teachers, chosen, out or "runs", fleet=fleet, show_progress=show, **where)
            print_fleet(several, as_json)
        else:
            print_run(run_distill(teachers[0], chosen[0], out, show_progress=show, **where), as_json)


def _cache_changes(cache: str | None) -> dict[str, Any]:
    """A recipe's changes for ``--cache``: off, or a folder."""
    if cache is None:
        return {}
    return {"enabled": False} if cache == "off" else {"enabled": True, "folder": cache}


def _expand(teachers: tuple[str, ...]) -> list[str]:
    """Teachers by their paths; a pattern that the shell left alone is every run folder that fits it."""
    expanded: list[str] = []
    for teacher in teachers:
        found = glob.glob(teacher)  # noqa: PTH207  # pathlib's takes no absolute pattern
        runs = sorted(path for path in found if (Path(path) / "recipe.yaml").exists())
        expanded += runs if runs and glob.has_magic(teacher) else [teacher]
    return expanded
