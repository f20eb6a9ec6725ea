"""The numbers of a report: AUC of models and baselines with intervals, bytes, counts and latency."""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdgan_compress.api.evaluate import labelled_split
from kdgan_compress.api.profile import detector_file
from kdgan_compress.data import DataSettings
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import detection_metrics, mean_over_classes
from kdgan_compress.evaluation.baselines import BASELINES
from kdgan_compress.experiment.arrangement import Arrangement, PlacedRun
from kdgan_compress.files import scratch_folder, write_text
from kdgan_compress.profiling.latency import detector_call, measure_latency
from kdgan_compress.reports.paper_figures import paper_auc, paper_auc_of_class
from kdgan_compress.reports.results import Entry
from kdgan_compress.runtime import Detector

Key = tuple[tuple[str, ...], str, str]
"""Row labels, column and data."""

Announce = Callable[[str], None]
BASELINES_VERSION = 1
"""Part of the key under which baselines are kept; raise it when one of them changes."""


def group_runs(arrangement: Arrangement) -> dict[Key, list[PlacedRun]]:
    """The runs of each cell that have an AUC."""
    cells: dict[Key, list[PlacedRun]] = {}
    for run in arrangement.runs:
        if run.run.result.auc is not None:
            cells.setdefault((run.labels, run.column, run.data), []).append(run)
    return cells


def model_entry(key: Key, runs: Sequence[PlacedRun], arrangement: Arrangement) -> Entry:
    """The entry of a cell's runs, at least one, without its costs."""
    labels, column, data = key
    results = [run.run.result for run in runs]
    aucs = {(run.class_name, run.repeat): float(result.auc or 0.0) for run, result in zip(runs, results, strict=True)}
    best = [result.best_epoch_auc_oracle for result in results]
    by_class = _by_class(aucs)
    paper = arrangement.paper.get((labels, column, ""))
    figures = {
        name: arrangement.paper.get((labels, column, name), paper_auc_of_class(runs[0].settings, name))
        for name in by_class
    }
    return Entry(
        labels,
        column,
        data,
        is_baseline=False,
        auc=mean_over_classes(aucs),
        by_class=by_class,
        best_auc=None if None in best else float(np.mean([each for each in best if each is not None])),
        paper=paper if paper is not None else paper_auc(runs[0].settings, len(by_class)),
        paper_by_class={name: value for name, value in figures.items() if value is not None},
        seconds=float(np.mean([result.seconds for result in results])),
        axes=tuple(arrangement.axes),
    )


def with_costs(
    entries: Mapping[Key, Entry], cells: Mapping[Key, Sequence[PlacedRun]], latency: bool, problems: list[str]
) -> list[Entry]:
    """The entries with the counts, bytes and latency of their first run's detector; problems are added to the list."""
    with scratch_folder() as scratch:
        detectors: dict[Key, tuple[Detector, int]] = {}
        for number, key in enumerate(entries):
            try:
                _, path = detector_file(cells[key][0].run.path, scratch / f"{number}.onnx")
                detectors[key] = Detector(path), path.stat().st_size
            except KdganError as error:
                problems.append(f"{entries[key].name}: bytes and latency are left out. {error}")
        calls = [detector_call(detector) for detector, _ in detectors.values()]
        times = [each.p10 for each in measure_latency(calls)] if latency else [None] * len(calls)
    changes: dict[Key, dict[str, Any]] = {
        key: {
            "size_bytes": size_bytes,
            "latency_us": time,
            **{name: int(detector.metadata[name]) for name in ("num_params", "conv_macs")},
        }
        for (key, (detector, size_bytes)), time in zip(detectors.items(), times, strict=True)
    }
    return [dataclasses.replace(entry, **changes.get(key, {})) for key, entry in entries.items()]


def baseline_entries(
    cells: Mapping[Key, Sequence[PlacedRun]],
    num_labels: int,
    data_root: str | None,
    problems: list[str],
    announce: Announce,
) -> list[Entry]:
    """The baselines on the splits of each column and data set; splits that cannot be read become a problem each."""
    figures: dict[tuple[str, str, str], dict[tuple[str, str], float]] = {}
    sizes: dict[tuple[str, str, str], list[int]] = {}
    measured: dict[tuple[DataSettings, int, int], dict[str, tuple[float, int]]] = {}
    for (_, column, data), runs in cells.items():
        for run in runs:
            model = run.run.recipe.model.architecture(native_channels=1)
            settings = dataclasses.replace(run.run.recipe.data.relocate(None, data_root), tiles=None)
            split_key = (settings, model.image_size, model.image_channels)
            if split_key not in measured:
                announce(f"baselines of {settings.name}")
                try:
                    measured[split_key] = _measure_baselines(*split_key)
                except KdganError as error:
                    measured[split_key] = {}
                    problems.append(f"baselines of {settings.name} are left out. {error}")
            trial = "" if settings.protocol == "simo" else f"trial {settings.trial}"
            for name, (auc, size_bytes) in measured[split_key].items():
                figures.setdefault((name, column, data), {})[run.class_name, trial] = auc
                sizes.setdefault((name, column, data), []).append(size_bytes)
    blanks = ("",) * (num_labels - 1)
    return [
        Entry(
            (name, *blanks),
            column,
            data,
            is_baseline=True,
            auc=mean_over_classes(aucs),
            by_class=_by_class(aucs),
            size_bytes=round(float(np.mean(sizes[name, column, data]))),
        )
        for (name, column, data), aucs in figures.items()
    ]


def _by_class(aucs: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """The mean of each class, by number or in order of the names."""
    names = sorted({name for name, _ in aucs}, key=lambda name: (int(name) if name.isdecimal() else 0, name))
    return {name: float(np.mean([value for key, value in aucs.items() if key[0] == name])) for name in names if name}


def _measure_baselines(data: DataSettings, image_size: int, channels: int) -> dict[str, tuple[float, int]]:
    """AUC and bytes of each baseline on a split; kept in the user's cache folder by a hash of the images."""
    split = labelled_split(data, image_size, channels)
    digest = hashlib.sha256(f"{BASELINES_VERSION} {list(BASELINES)}".encode())
    for array in (split.train, split.test):
        digest.update(str(tuple(array.shape)).encode() + array.contiguous().numpy().tobytes())
    digest.update(split.test_is_anomalous.tobytes())
    path = _kept_path(digest.hexdigest())
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):  # not kept yet, or damaged
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {name: (float(kept[name][0]), int(kept[name][1])) for name in BASELINES}
    measured = {}
    for name, baseline in BASELINES.items():
        result = baseline(split.train, split.test)
        measured[name] = detection_metrics(result.scores, split.test_is_anomalous).auc, result.size_bytes
    with contextlib.suppress(KdganError):  # without a folder to keep them in, they are computed again
        write_text(path, json.dumps(measured))
    return measured


def _kept_path(digest: str) -> Path:
    """The file in the user's cache folder; for a user without a home, in the temporary folder."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    except RuntimeError:
        home = Path(tempfile.gettempdir())
    return home / "kdgan-compress" / "baselines" / f"{digest}.json"
