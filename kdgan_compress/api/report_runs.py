"""How the runs of a report came about: machines, seeds, time, versions, commands and settings."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdgan_compress.api.report_entries import Key
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.arrangement import Arrangement, PlacedRun
from kdgan_compress.experiment.models import load_model
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.profiling.machine import machine_name, versions
from kdgan_compress.reports.results import Entry

Cells = Mapping[Key, Sequence[PlacedRun]]


def environment_of(arrangement: Arrangement, cells: Cells, latency: bool) -> list[tuple[str, str]]:
    """Names and values of what the results depend on."""
    runs = [run for each in cells.values() for run in each]
    results = [run.run.result for run in runs]
    threads = sorted({result.threads for result in results})
    facts = [
        ("runs", str(len(runs))),
        ("variant", arrangement.variant),
        ("seeds", ", ".join(map(str, sorted({result.seed for result in results})))),
        ("trained on", "; ".join(dict.fromkeys(result.machine for result in results))),
        ("threads", ", ".join(map(str, threads))),
        ("training time", f"{_duration(training_seconds(runs))} in total, without evaluation"),
        ("trained with", _versions_of([each[0] for each in cells.values()])),
        ("reported with", ", ".join(f"{name} {version}" for name, version in versions().items())),
        (
            "latency",
            f"{machine_name()}; ONNX Runtime, one thread, one image, 10 % quantile of 300 calls" if latency else "",
        ),
    ]
    return [(name, value) for name, value in facts if value]


def training_seconds(runs: Sequence[PlacedRun]) -> float:
    """Seconds of all trainings; cells of a sweep that share one have the same metrics."""
    seconds: dict[bytes, float] = {}
    for run in runs:
        metrics = RunFolder(run.run.path).metrics
        key = metrics.read_bytes() if metrics.exists() else bytes(run.run.path)
        seconds[key] = run.run.result.seconds
    return sum(seconds.values())


def commands_of(cells: Cells, entries: Mapping[Key, Entry]) -> dict[str, str]:
    """The command that trains the first run of each row again, by name of the row."""
    return {f"{entries[key].name}; {key[2]}": _command(runs[0]) for key, runs in cells.items()}


def recipes_of(cells: Cells, entries: Mapping[Key, Entry]) -> dict[str, str]:
    """The resolved recipe of the first run of each row, without the folders of this machine."""
    return {f"{entries[key].name}; {key[2]}": _recipe(runs[0]) for key, runs in cells.items()}


def _command(run: PlacedRun) -> str:
    recipe = f"--recipe {shlex.quote(str(run.run.path / 'recipe.yaml'))} --out NEW"
    if run.run.recipe.distillation.teacher is None:
        return f"kdgan-compress train {recipe}"
    teacher = Path(run.run.recipe.distillation.teacher).name
    return f"kdgan-compress distill --teacher {shlex.quote(teacher)} {recipe}"


def _recipe(run: PlacedRun) -> str:
    content: dict[str, Any] = yaml.safe_load(run.run.recipe.to_yaml())
    content["data"].pop("root", None)
    kind, colon, path = str(content["data"]["source"]).partition(":")
    content["data"]["source"] = f"{kind}{colon}{Path(path).name}"
    if content["distillation"].get("teacher"):
        content["distillation"]["teacher"] = Path(content["distillation"]["teacher"]).name
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _versions_of(runs: Sequence[PlacedRun]) -> str:
    """The versions in the runs' model files; empty if none can be read."""
    found: dict[str, None] = {}
    for run in runs:
        try:
            stored = load_model(run.run.path).provenance.get("versions", {})
        except KdganError:
            continue
        found[json.dumps(stored)] = None
    texts = [", ".join(f"{name} {version}" for name, version in json.loads(text).items()) for text in found]
    return "; ".join(filter(None, texts))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
