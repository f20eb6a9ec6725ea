"""One experiment over trials: other seeds and, where the protocol draws its images, other draws."""

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.api.distill import distill
from kdgan_compress.api.evaluate import evaluate, labelled_split
from kdgan_compress.api.resume import resume
from kdgan_compress.api.train import train
from kdgan_compress.data import native_channels
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import Summary, detection_metrics, summarise
from kdgan_compress.evaluation.baselines import BASELINES
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import RunResult
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.files import atomic_path
from kdgan_compress.profiling.machine import machine_name


@dataclass(frozen=True)
class Figures:
    """AUC and the oracle's F1 of one detector in one trial."""

    auc: float
    best_f1: float


@dataclass(frozen=True)
class Trial:
    """One trial: its number and the figures of each detector, by name."""

    trial: int
    run: str
    seconds: float
    figures: dict[str, Figures]


@dataclass(frozen=True)
class TrialsReport:
    """All trials.

    Attributes:
        data: Name of the data of the first trial.
        machine: Where they ran.
        auc: A summary for each detector: ``model``, ``student`` where there is one, and the baselines.
        best_f1: The same of the highest F1 of any threshold: an oracle, chosen by test labels.
        trials: One by one.
    """

    data: str
    machine: str
    auc: dict[str, Summary]
    best_f1: dict[str, Summary]
    trials: list[Trial]


def trials(
    recipe: Recipe | None = None,
    out: str | Path = "runs/trials",
    *,
    num_trials: int = 10,
    with_student: bool = False,
    jobs: int = 1,
    announce: Callable[[Trial], None] | None = None,
) -> TrialsReport:
    """Train and evaluate a recipe with the seeds and draws 0 to n − 1; what is finished in ``out`` is kept.

    Args:
        recipe: None for the shipped ``default``; its seeds and its trial are replaced.
        out: A folder, with a run folder for each trial below it; ``trials.json`` is written there.
        num_trials: n, ≥ 1.
        with_student: Distil each trial's model too, by the recipe's ``distillation``.
        jobs: Processes at once, each with one thread; 1 runs here with the recipe's own threads.
        announce: Told each trial when it is done, in order.

    Raises:
        KdganError: Bad numbers, a folder with trials of another recipe, or whatever goes wrong in a trial; finished
            trials are kept.
    """
    if num_trials < 1 or jobs < 1:
        raise KdganError("Trials and jobs must be at least 1", f"got {num_trials} and {jobs}", "Give more")
    recipe, out = recipe or load_recipe(), Path(out)
    tasks = [
        (_nth(recipe, number, jobs), number, str(out / f"trial-{number}"), with_student) for number in range(num_trials)
    ]
    _claim(out, recipe.to_yaml())
    done = []
    for trial in _run_all(tasks, jobs):
        done.append(trial)
        if announce:
            announce(trial)
    names = done[0].figures
    report = TrialsReport(
        data=tasks[0][0].data.name,
        machine=machine_name(),
        auc={name: summarise([trial.figures[name].auc for trial in done]) for name in names},
        best_f1={name: summarise([trial.figures[name].best_f1 for trial in done]) for name in names},
        trials=done,
    )
    with atomic_path(out / "trials.json") as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _claim(out: Path, recipe: str) -> None:
    """Leave the recipe in the folder, or check that trials in it are of the same one."""
    path = out / "recipe.yaml"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(recipe, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != recipe:
        raise KdganError("Trials in one folder must be of one recipe", f"{path} is another", "Give another --out")


def _nth(recipe: Recipe, number: int, jobs: int) -> Recipe:
    training = {"seed": number, "threads": None if jobs == 1 else 1}
    changed = recipe.replace({"training": training, "distillation": {"training": training}})
    return changed.model_copy(update={"data": dataclasses.replace(recipe.data, trial=number)})


Task = tuple[Recipe, int, str, bool]


def _run_all(tasks: list[Task], jobs: int) -> Iterator[Trial]:
    if jobs == 1:
        yield from map(_run, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_run, tasks)


def _run(task: Task) -> Trial:
    recipe, number, path, with_student = task
    architecture = recipe.model.architecture(native_channels(recipe.data))
    split = labelled_split(recipe.data, architecture.image_size, architecture.image_channels)
    model = _finish(RunFolder(Path(path)), lambda: train(recipe, path))
    figures, seconds = {"model": _figures(model.run)}, model.seconds
    if with_student:
        into = f"{path}-student"
        student = _finish(RunFolder(Path(into)), lambda: distill(path, recipe, into))
        figures["student"] = _figures(student.run)
        seconds += student.seconds
    for name, scores in BASELINES.items():
        metrics = detection_metrics(scores(split.train, split.test), split.test_is_anomalous)
        figures[name] = Figures(metrics.auc, metrics.best_f1)
    return Trial(number, path, seconds, figures)


def _finish(folder: RunFolder, start: Callable[[], RunResult]) -> RunResult:
    """Start a run, or resume it if its folder has one."""
    result = resume(folder.path) if folder.recipe.exists() else start()
    assert isinstance(result, RunResult)
    return result


def _figures(run: str) -> Figures:
    evaluation = evaluate(run)
    return Figures(evaluation.auc, evaluation.best_f1)
