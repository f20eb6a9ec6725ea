"""The pictures of a report: charts of numbers, and images that a few of its runs have scored."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kdgan_compress.api.anomaly_maps import map_split
from kdgan_compress.api.report_entries import Key
from kdgan_compress.data import DataSettings, Split, load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import load_scores, quantile_threshold, reconstruct, score_images
from kdgan_compress.experiment.arrangement import PlacedRun
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.files import scratch_folder
from kdgan_compress.reports import (
    Reconstruction,
    ScoredPhotos,
    curves_figure,
    plot_cases,
    plot_reconstructions,
    scores_figure,
)
from kdgan_compress.reports.cases import case_rows
from kdgan_compress.reports.charts import (
    COST_LABELS,
    epochs_figure,
    pareto_figure,
    roc_figure,
    setting_figure,
    svg_text,
)
from kdgan_compress.reports.results import Cost, Entry, Picture

COST, ROC, CURVES = "AUC against cost", "ROC", "Training"
SCORES, IMAGES, MAPS = "Scores and threshold", "Reconstructions", "Anomaly maps"
MAX_ROWS = 6
"""Rows per data set whose histograms, curves and images are shown."""

RUN_SIZE = (5.2, 3.4)
"""Of the charts of single runs, in inches: their text stays readable on a phone."""

NUM_IMAGES = 6
"""Normal, and as many anomalous, images that are reconstructed."""

Cells = Mapping[Key, Sequence[PlacedRun]]


def cost_pictures(entries: Sequence[Entry]) -> list[Picture]:
    """AUC against bytes and against latency, for each data set."""
    pictures = []
    costs: tuple[Cost, Cost] = ("size_bytes", "latency_us")
    for data in dict.fromkeys(entry.data for entry in entries):
        chosen = [entry for entry in entries if entry.data == data]
        for cost in costs:
            if any(getattr(entry, cost) is not None and not entry.is_baseline for entry in chosen):
                title = f"{data}: AUC against {COST_LABELS[cost]}; baselines far below the best are not shown"
                svg = svg_text(pareto_figure(chosen, cost), f"{title}; the values are in the tables")
                pictures.append(Picture(COST, title, title, svg))
    return pictures


def setting_pictures(entries: Sequence[Entry], axes: Sequence[str]) -> list[Picture]:
    """AUC against each numeric axis that has at least three values in the rows, one line per other row and column."""
    pictures = []
    for data in dict.fromkeys(entry.data for entry in entries):
        models = [entry for entry in entries if entry.data == data and not entry.is_baseline]
        for number, axis in enumerate(axes):
            lines: dict[str, list[tuple[float, Entry]]] = {}
            for entry in models:
                value = _number(entry.labels[number])
                others = [label for index, label in enumerate(entry.labels) if index != number and label]
                if value is not None:
                    lines.setdefault(", ".join([*others, *filter(None, [entry.column])]) or "model", []).append(
                        (value, entry)
                    )
            lines = {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items()}
            if max((len(line) for line in lines.values()), default=0) >= 3:
                title = f"{data}: AUC against {axis}"
                svg = svg_text(setting_figure(axis, lines), f"{title}; the values are in the table")
                pictures.append(Picture(COST, title, title, svg))
    return pictures


def run_pictures(cells: Cells, entries: Mapping[Key, Entry], problems: list[str]) -> list[Picture]:
    """ROC, AUC per epoch, losses, and histograms of scores, from the files of the run folders."""
    pictures: list[Picture] = []
    for data in dict.fromkeys(key[2] for key in cells):
        keys = [key for key in cells if key[2] == data]
        names = {key: entries[key].name for key in keys}
        scored = {key: [load_scores(RunFolder(run.run.path).scores) for run in cells[key]] for key in keys}
        roc = {
            names[key]: [
                (s.test_scores, s.test_is_anomalous)
                for s in scored[key]
                if s is not None and _labelled(s.test_is_anomalous)
            ]
            for key in keys
        }
        roc = {name: runs for name, runs in roc.items() if runs}
        if roc:
            title = f"{data}: mean ROC curves of each row's runs"
            pictures.append(Picture(ROC, title, title, svg_text(roc_figure(roc), title)))
        else:
            problems.append(f"{data}: ROC curves and histograms are left out, the runs have no scores.npz")
        metrics = {key: [_metrics(run, problems) for run in cells[key]] for key in keys}
        tracked = {names[key]: _tracked(metrics[key]) for key in keys}
        if any(tracked.values()):
            title = f"{data}: mean AUC per epoch"
            shown = {name: runs for name, runs in tracked.items() if runs}
            pictures.append(Picture(CURVES, title, title, svg_text(epochs_figure(shown), title)))
        for key in keys[:MAX_ROWS]:
            run, lines, scores = cells[key][0], metrics[key][0], scored[key][0]
            which = f"{data}: {names[key]}, {_which(run)}"
            if lines:
                title = f"{which}; losses per epoch"
                losses = [line | {"auc": None, "auc_raw": None} for line in lines]  # the AUC has its own chart
                pictures.append(Picture(CURVES, title, title, svg_text(_resized(curves_figure(losses)), title)))
            if scores is not None and len(scores.calibration_scores):
                title = f"{which}; histogram of scores"
                threshold = quantile_threshold(scores.calibration_scores)
                figure = scores_figure(
                    scores.calibration_scores, scores.test_scores, scores.test_is_anomalous, threshold
                )
                pictures.append(Picture(SCORES, title, title, svg_text(_resized(figure), title)))
        if len(keys) > MAX_ROWS:
            problems.append(f"{data}: losses, scores and images are shown for the first {MAX_ROWS} of {len(keys)} rows")
    return pictures


def image_pictures(
    cells: Cells, entries: Mapping[Key, Entry], data_root: str | None, problems: list[str]
) -> list[Picture]:
    """Reconstructions of the same test images by each row, and anomaly maps of photos; one run of each row."""
    pictures: list[Picture] = []
    for data in dict.fromkeys(key[2] for key in cells):
        keys = [key for key in cells if key[2] == data]
        runs = {key: run for key in keys[:MAX_ROWS] if (run := _of_class(cells[key], cells[keys[0]][0])) is not None}
        try:
            pictures += _images_of(data, runs, entries, data_root)
        except KdganError as error:
            problems.append(f"{data}: reconstructions and anomaly maps are left out. {error}")
    return pictures


def _images_of(
    data: str, runs: Mapping[Key, PlacedRun], entries: Mapping[Key, Entry], data_root: str | None
) -> list[Picture]:
    pictures, rows, shown = [], [], None
    splits: dict[tuple[DataSettings, int, int], Split] = {}
    for key, run in runs.items():
        checkpoint = load_model(run.run.path)
        settings = checkpoint.data.relocate(None, data_root)
        shape = checkpoint.architecture.image_size, checkpoint.architecture.image_channels
        key_of_split = (settings, *shape)
        if key_of_split not in splits:
            splits[key_of_split] = load_split(settings, *shape)
        split = splits[key_of_split]
        if not split.is_labelled:
            continue
        if split.is_tiled:
            name = f"{data}: {entries[key].name}, {_which(run)}"
            pictures.append(_maps_picture(name, run, checkpoint, split))
        elif shown is None or split.test.shape == shown.test.shape:
            shown = shown or split
            row = _reconstruction(entries[key].name, checkpoint, split)
            rows += [] if row is None else [row]
    if shown is not None and rows:
        chosen = _chosen(shown)
        classes = [f"{shown.test_classes[i]}{'*' if shown.test_is_anomalous[i] else ''}" for i in chosen]
        title = f"{data}, {_which(next(iter(runs.values())))}: test images and their reconstructions"
        with scratch_folder() as scratch:
            path = scratch / "rows.png"
            plot_reconstructions(
                shown.test[chosen], classes, rows, "* is anomalous; a score in red is above the threshold", path
            )
            pictures.append(Picture(IMAGES, title, f"{title}, with scores", path.read_bytes()))
    return pictures


def _maps_picture(name: str, run: PlacedRun, checkpoint: Checkpoint, split: Split) -> Picture:
    saved, scorer = load_scores(RunFolder(run.run.path).scores), checkpoint.scorer()
    scores = saved.test_scores if saved and saved.matches(scorer, split) else score_images(scorer, split.test)
    threshold = checkpoint.required_threshold
    shown = [index for row in case_rows(scores, split.test_is_anomalous, threshold) for index in row.indices]
    maps = np.full((len(scores), *split.test.shape[2:]), np.nan, np.float32)
    masks: list[NDArray[np.bool_] | None] = [None] * len(scores)
    for index in shown:
        photo = dataclasses.replace(
            split,
            test=split.test[[index]],
            test_paths=split.test_paths[index : index + 1],
            test_masks=split.test_masks[index : index + 1],
        )
        found = map_split(checkpoint, photo)
        assert found is not None
        maps[index], masks[index] = found.values[0], found.masks[0]
    classes = [str(each) for each in split.test_classes]
    photos = ScoredPhotos(split.test, maps, masks, scores, split.test_is_anomalous, classes)
    title = f"{name}; best and worst cases with their anomaly maps"
    with scratch_folder() as scratch:
        path = scratch / "cases.png"
        plot_cases(photos, threshold, path, map_threshold=threshold)
        return Picture(MAPS, title, title, path.read_bytes())


def _reconstruction(name: str, checkpoint: Checkpoint, split: Split) -> Reconstruction | None:
    """None for a GAN without a tap of the reconstruction, or a model without a threshold."""
    gan, images = checkpoint.build(), split.test[_chosen(split)]
    if "x_hat" not in gan.taps or checkpoint.threshold is None:
        return None
    scores = score_images(checkpoint.scorer(), images)
    return Reconstruction("\n".join(name.split(", ")), reconstruct(gan, images), scores, checkpoint.threshold)


def _chosen(split: Split) -> NDArray[np.int64]:
    """The first few normal and anomalous test images, of as many classes as there are."""
    chosen = []
    for kind in (False, True):
        indices = np.flatnonzero(split.test_is_anomalous == kind)
        _, first = np.unique(split.test_classes[indices], return_index=True)
        chosen += [*indices[np.sort(first)], *np.delete(indices, first)][:NUM_IMAGES]
    return np.asarray(chosen, dtype=np.int64)


def _of_class(runs: Sequence[PlacedRun], like: PlacedRun) -> PlacedRun | None:
    return next((run for run in runs if run.class_name == like.class_name), None)


def _tracked(runs: Sequence[Sequence[Mapping[str, object]]]) -> list[list[float]]:
    """AUC per epoch of the runs that tracked it and have as many epochs as the first of them."""
    aucs = [
        [line["auc"] for line in lines]
        for lines in runs
        if lines and all(line.get("auc") is not None for line in lines)
    ]
    return [each for each in aucs if len(each) == len(aucs[0])]  # type: ignore[misc]


def _metrics(run: PlacedRun, problems: list[str]) -> list[dict[str, Any]]:
    """The whole lines of the run's metrics; a problem if there are none."""
    lines = RunFolder(run.run.path).read_metrics()
    if not lines:
        problems.append(f"{run.run.path}: training curves are left out, metrics.jsonl is missing or damaged")
    return lines


def _labelled(is_anomalous: NDArray[np.bool_]) -> bool:
    return bool(is_anomalous.any() and not is_anomalous.all())


def _resized(figure: Figure) -> Figure:
    figure.set_size_inches(*RUN_SIZE)
    return figure


def _which(run: PlacedRun) -> str:
    return ", ".join(filter(None, [f"class {run.class_name}" if run.class_name else "", run.repeat]))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
