"""Resume interrupted trainings and distillations from their run folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Unpack

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.fleet_size import check_requested
from kdgan_compress.experiment.job import resumed_job
from kdgan_compress.experiment.recipe import load_recipe
from kdgan_compress.experiment.results import FleetResult, RunResult, RunResults, read_result
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.run_lock import remove_leftovers
from kdgan_compress.experiment.runner import RunOptions, run_jobs
from kdgan_compress.experiment.teacher_caches import TeacherCaches


def resume(
    path: str | Path, command: Literal["train", "distill"] | None = None, **options: Unpack[RunOptions]
) -> RunResult | FleetResult:
    """Finish an interrupted run, or all interrupted runs in a folder, by their own recipes.

    Args:
        path: A run folder, or a folder of run folders. Finished runs are left as they are.
        command: The command that began the runs; None for either. In a folder of runs, those of the other are left.
        **options: See ``RunOptions``.

    Returns:
        The result of the run; for a folder of runs, the results of all, by name.

    Raises:
        KdganError: There is no run, one of the other command, or one whose teacher or training images are gone.
    """
    path = Path(path)
    is_run = _is_run(path)
    children = [RunFolder(child.parent) for child in sorted(path.glob("*/recipe.yaml")) if _is_run(child.parent)]
    folders = [RunFolder(path)] if is_run else [each for each in children if command in (None, _command_of(each))]
    if not folders and children:
        _check_command(children[0], command)
    if not folders:
        raise KdganError(
            "--resume needs a run folder, or a folder of runs", f"found no run in {path}", "Check the path"
        )
    check_requested(options.get("fleet_size"))
    if is_run:
        _check_command(folders[0], command)
    finished = {folder: result for folder in folders if (result := read_result(folder)) is not None}
    for folder in finished:
        remove_leftovers(folder.path)
    caches = TeacherCaches()
    jobs = [resumed_job(folder, caches) for folder in folders if folder not in finished]
    resumed = run_jobs(jobs, **options) if jobs else RunResults({})
    by_run = {str(folder.path): result for folder, result in finished.items()} | dict(resumed.by_run)
    results = RunResults({str(f.path): by_run[str(f.path)] for f in folders}, resumed.fleet, resumed.note)
    return results.single() if is_run else results.all()


def start_or_resume(path: str | Path, start: Callable[[], RunResult]) -> RunResult:
    """The result of a run: start it, or finish it if its folder has one already.

    Raises:
        KdganError: As ``resume`` or ``start``.
    """
    if not RunFolder(Path(path)).recipe.exists():
        return start()
    result = resume(path)
    assert isinstance(result, RunResult)
    return result


def _is_run(path: Path) -> bool:
    """Whether a folder is a run that may not have started; a folder of trials has a recipe and runs inside."""
    return (path / "recipe.yaml").exists() and not any(path.glob("*/recipe.yaml"))


def _check_command(folder: RunFolder, command: str | None) -> None:
    began = _command_of(folder)
    if command not in (None, began):
        raise KdganError(
            f"{command} --resume cannot finish a run of {began}", f"got {folder.path}", f"Use {began} --resume"
        )


def _command_of(folder: RunFolder) -> str:
    """The command that began a run."""
    return "train" if load_recipe(str(folder.recipe)).distillation.teacher is None else "distill"
