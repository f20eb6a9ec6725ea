"""``kdgan-compress distill``."""

from pathlib import Path
from typing import Any

import click

from kdgan_compress.cli.options import data_option, forbid_beside_resume, training_changes, training_options
from kdgan_compress.cli.output import print_run, progress_display


@click.command()
@click.option("--teacher", metavar="RUN|FILE", help="A run folder or model file that train wrote.")
@click.option("--schedule", help='Structures in a row.  [default: the recipe\'s, "2->3"]')
@click.option("--teacher-learning-rate", type=float, help="Adam's rate for a teacher that goes on training (③, ④).")
@data_option
@training_options
@click.pass_context
def distill(
    context: click.Context,
    /,
    teacher: str | None,
    schedule: str | None,
    teacher_learning_rate: float | None,
    data: str | None,
    data_root: str | None,
    recipe: str | None,
    settings: tuple[dict[str, Any], ...],
    out: Path | None,
    resume: Path | None,
    track_auc: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Distil a teacher into a narrow student; the teacher remembers its data and preprocessing.

    \b
    kdgan-compress distill --teacher runs/teacher --width 8
    kdgan-compress distill --teacher runs/teacher --channels 8,16,64 --schedule "2->4" --out runs/student
    """
    from kdgan_compress.recipe import load_recipe
    from kdgan_compress.workflows.distill import distill as run_distill
    from kdgan_compress.workflows.distill import resume_distill

    if resume is not None:
        forbid_beside_resume(context)
        with progress_display() as show:
            print_run(resume_distill(resume, track_auc=track_auc, show_progress=show), as_json)
        return
    if teacher is None:
        raise click.UsageError("Give --teacher RUN_OR_FILE, or --resume RUN.")
    plan, training = training_changes(**options)
    section = {
        "student": plan,
        "schedule": schedule,
        "training": training,
        "teacher_learning_rate": teacher_learning_rate,
    }
    changed = load_recipe(recipe or "default").replace(*settings, {"distillation": section})
    with progress_display() as show:
        result = run_distill(
            teacher, changed, out, data=data, data_root=data_root, track_auc=track_auc, show_progress=show
        )
    print_run(result, as_json)
