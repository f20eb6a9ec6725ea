"""Distil a trained teacher into a small student by a schedule of loss sets (P-KDGAN)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, overload

from kdgan_compress.experiment.job import RUNS, distillation_job
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import FleetResult, RunResult
from kdgan_compress.experiment.runner import RunOptions, run_jobs
from kdgan_compress.experiment.teacher_caches import TeacherCaches

Model = str | Path
Recipes = Recipe | Sequence[Recipe] | None


@overload
def distill(  # type: ignore[overload-overlap]  # a str is a sequence of str too
    teacher: Model,
    recipe: Recipe | None = ...,
    out: Model | None = ...,
    data: str | None = ...,
    data_root: str | None = ...,
    **options: Unpack[RunOptions],
) -> RunResult: ...
@overload
def distill(
    teacher: Model | Sequence[Model],
    recipe: Recipes = ...,
    out: Model | None = ...,
    data: str | None = ...,
    data_root: str | None = ...,
    **options: Unpack[RunOptions],
) -> FleetResult: ...


def distill(
    teacher: Model | Sequence[Model],
    recipe: Recipes = None,
    out: Model | None = None,
    data: str | None = None,
    data_root: str | None = None,
    **options: Unpack[RunOptions],
) -> RunResult | FleetResult:
    """Distil by a recipe's ``distillation`` and ``objective``; data and preprocessing are the teacher's.

    Args:
        teacher: A run folder or model file; several of one shape give one student each.
        recipe: None for the shipped ``default``. A model that it names must be the teacher's except for the channels.
            Several may differ in seed, learning rate and weights; each teacher is distilled by each recipe.
        out: The new run folder, by default ``runs/<teacher>-student-<channels>-seed<n>``; for several students, the
            parent of such folders.
        data: Where the images are now, if not where the teacher was trained.
        data_root: The same for named data sets.
        **options: See ``RunOptions``.

    Returns:
        The result; if ``teacher`` or ``recipe`` is a list, all results.

    Raises:
        KdganError: Something is wrong with a teacher, recipe, its data or folder, and nothing is written; or the
            training of the single student diverged.
    """
    if isinstance(teacher, str | Path) and (recipe is None or isinstance(recipe, Recipe)):
        folder = Path(out) if out else None
        job = distillation_job(teacher, recipe or load_recipe(), folder, data=data, data_root=data_root)
        return run_jobs([job], **options).single()
    teachers = [teacher] if isinstance(teacher, str | Path) else teacher
    recipes = [recipe or load_recipe()] if recipe is None or isinstance(recipe, Recipe) else recipe
    parent, caches = Path(out) if out else RUNS, TeacherCaches()
    jobs = [
        distillation_job(path, one, parent=parent, data=data, data_root=data_root, caches=caches)
        for path in teachers
        for one in recipes
    ]
    return run_jobs(jobs, **options).all()
