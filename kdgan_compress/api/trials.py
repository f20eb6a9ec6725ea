"""One experiment repeated with other seeds and, if the protocol is random, other splits."""

import dataclasses
import functools
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.api.distill import distill
from kdgan_compress.api.evaluate import evaluate, labelled_split
from kdgan_compress.api.resume import start_or_resume
from kdgan_compress.api.train import train
from kdgan_compress.data import native_channels
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import DetectionMetrics, MeanStd, detection_metrics, mean_std
from kdgan_compress.evaluation.baselines import BASELINES
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.files import write_text
from kdgan_compress.gans import FAMILIES, is_entry_point, load_family
from kdgan_compress.profiling.machine import machine_name


@dataclass(frozen=True)
class TrialMetrics:
    """AUC and highest F1 (an oracle) of one detector in one trial."""

    auc: float
    best_f1: float


@dataclass(frozen=True)
class Trial:
    """One trial: number, run folder, time, the metrics of each detector and the bytes of each baseline by name."""

    trial: int
    run: str
    seconds: float
    figures: dict[str, TrialMetrics]
    baseline_bytes: dict[str, int]


@dataclass(frozen=True)
class TrialsReport:
    """All trials.

    Attributes:
        data: Name of the data of the first trial.
        machine: The machine that they ran on.
        auc: Mean and spread for each detector: ``model``, ``student`` if there is one, and the baselines.
        best_f1: The same for the highest F1.
        trials: In order.
    """

    data: str
    machine: str
    auc: dict[str, MeanStd]
    best_f1: dict[str, MeanStd]
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
    """Train and evaluate a recipe with seeds and splits 0 to n − 1; trials that are finished in ``out`` are kept.

    Args:
        recipe: None for the shipped ``default``; its seeds and its trial are replaced.
        out: Output folder, with one run folder per trial and ``trials.json``.
        num_trials: n, ≥ 1.
        with_student: Also distil each trial's model, by the recipe's ``distillation``.
        jobs: Number of processes, each with one thread; 1 runs in this process with the recipe's threads.
        announce: Called with each finished trial, in order.

    Raises:
        KdganError: Invalid numbers, a folder of another recipe, or any error of a trial; finished trials are kept.
    """
    if num_trials < 1 or jobs < 1:
        raise KdganError("Trials and jobs must be at least 1", f"got {num_trials} and {jobs}", "Give larger numbers")
    recipe, out = recipe or load_recipe(), Path(out)
    tasks = [
        (_trial_recipe(recipe, number, jobs), number, str(out / f"trial-{number}"), with_student)
        for number in range(num_trials)
    ]
    _check_or_write_recipe(out, recipe.relative_to(out).to_yaml())
    finished = []
    families = [name for name in FAMILIES if is_entry_point(name)]
    processes = functools.partial(ProcessPoolExecutor, jobs, multiprocessing.get_context("spawn"))
    with processes(initializer=_load_families, initargs=(families,)) if jobs > 1 else nullcontext() as pool:
        for trial in (pool.map if pool else map)(_run, tasks):
            finished.append(trial)
            if announce:
                announce(trial)
    auc, best_f1 = (
        {name: mean_std([getattr(trial.figures[name], metric) for trial in finished]) for name in finished[0].figures}
        for metric in ("auc", "best_f1")
    )
    report = TrialsReport(tasks[0][0].data.name, machine_name(), auc, best_f1, finished)
    stored = dataclasses.replace(report, trials=[dataclasses.replace(t, run=Path(t.run).name) for t in finished])
    write_text(out / "trials.json", json.dumps(dataclasses.asdict(stored), indent=2) + "\n")
    return report


def _load_families(names: Sequence[str]) -> None:
    """Let a process know the user's families that this one knows."""
    for name in names:
        load_family(name)


def _check_or_write_recipe(out: Path, recipe: str) -> None:
    """Write the recipe to the folder, or check that the trials in it have the same one."""
    path = out / "recipe.yaml"
    if not path.exists():
        write_text(path, recipe)
    elif path.read_text(encoding="utf-8") != recipe:
        raise KdganError("All trials in a folder need one recipe", f"{path} is another", "Give another --out")


def _trial_recipe(recipe: Recipe, number: int, jobs: int) -> Recipe:
    training = {"seed": number, "threads": None if jobs == 1 else 1}
    changed = recipe.replace({"training": training, "distillation": {"training": training}})
    return changed.model_copy(update={"data": dataclasses.replace(recipe.data, trial=number)})


def _run(task: tuple[Recipe, int, str, bool]) -> Trial:
    recipe, number, path, with_student = task
    architecture = recipe.model.architecture(native_channels(recipe.data))
    whole_images = dataclasses.replace(recipe.data, tiles=None)
    split = labelled_split(whole_images, architecture.image_size, architecture.image_channels)
    runs = {"model": start_or_resume(path, lambda: train(recipe, path))}
    if with_student:
        out = f"{path}-student"
        runs["student"] = start_or_resume(out, lambda: distill(path, recipe, out))
    metrics: dict[str, DetectionMetrics] = {name: evaluate(result.run) for name, result in runs.items()}
    baselines = {name: baseline(split.train, split.test) for name, baseline in BASELINES.items()}
    for name, result in baselines.items():
        metrics[name] = detection_metrics(result.scores, split.test_is_anomalous)
    figures = {name: TrialMetrics(values.auc, values.best_f1) for name, values in metrics.items()}
    size_bytes = {name: result.size_bytes for name, result in baselines.items()}
    return Trial(number, path, sum(result.seconds for result in runs.values()), figures, size_bytes)
