"""Report on finished runs: a page, Markdown or CSV with results, baselines, curves and pictures."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.api.report_entries import baseline_entries, group_runs, model_entry, with_costs
from kdgan_compress.api.report_pictures import cost_pictures, image_pictures, run_pictures, setting_pictures
from kdgan_compress.api.report_runs import commands_of, environment_of, recipes_of
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.arrangement import arrange_runs
from kdgan_compress.files import remove_stale_files, write_text
from kdgan_compress.reports.html_page import html_page
from kdgan_compress.reports.results import Report
from kdgan_compress.reports.tables import csv_text, markdown_text

WRITERS: dict[str, Callable[[Report], str]] = {".html": html_page, ".md": markdown_text, ".csv": csv_text}
"""By the suffix of the output file."""


@dataclass(frozen=True)
class ReportSummary:
    """What was written.

    Attributes:
        files: The written files.
        num_runs: Finished runs in the report.
        problems: Runs that are missing and parts that are left out, one line each.
        results: Mean AUC by data set and name of the row and column.
    """

    files: list[str]
    num_runs: int
    problems: list[str]
    results: dict[str, dict[str, float]]


def report(
    runs: Sequence[str | Path],
    out: Sequence[str | Path],
    *,
    baselines: bool = True,
    latency: bool = True,
    data_root: str | None = None,
    command: str = "",
    announce: Callable[[str], None] = lambda _: None,
) -> ReportSummary:
    """Write a report on run folders, folders of them, or a sweep's folder.

    Args:
        runs: The folders.
        out: Output files, ``.html``, ``.md`` or ``.csv``.
        baselines: Also measure the trivial detectors; they are kept in the user's cache folder.
        latency: Also measure the latency of each row's detector on this machine.
        data_root: Where named data sets are now.
        command: The command line to print.
        announce: Called with each step that takes a while.

    Raises:
        KdganError: There is no finished run, no run has an AUC, or an output has another suffix or is not writable.
    """
    files = [Path(path) for path in out]
    check_suffixes(files)
    arrangement = arrange_runs([Path(folder) for folder in runs])
    problems = list(arrangement.problems)
    cells = group_runs(arrangement)
    if not cells:
        hint = "Add labelled images (a folder's test/good and test/<defect>) and train again"
        raise KdganError("A report needs runs with an AUC", f"none of {len(arrangement.runs)} has one", hint)
    num_scored = sum(len(each) for each in cells.values())
    if num_scored < len(arrangement.runs):
        problems.append(f"{len(arrangement.runs) - num_scored} runs have no AUC and are left out")
    models = {key: model_entry(key, each, arrangement) for key, each in cells.items()}
    announce("bytes and latency" if latency else "bytes")
    entries = with_costs(models, cells, latency, problems)
    if baselines:
        entries += baseline_entries(cells, len(arrangement.axes), data_root, problems, announce)
    content = Report(
        title=arrangement.title,
        description=arrangement.description,
        variant=arrangement.variant,
        axes=arrangement.axes,
        column_axes=arrangement.column_axes,
        columns=arrangement.columns,
        entries=entries,
        problems=problems,
        environment=environment_of(arrangement, cells, latency),
        command=command,
        commands=commands_of(cells, models),
        recipes=recipes_of(cells, models),
    )
    if any(path.suffix == ".html" for path in files):
        announce("pictures")
        pictures = [*cost_pictures(entries), *setting_pictures(entries, arrangement.axes)]
        pictures += run_pictures(cells, models, problems)
        pictures += image_pictures(cells, models, data_root, problems)
        content = dataclasses.replace(content, pictures=pictures)
    for path in files:
        remove_stale_files(path.parent)
        write_text(path, WRITERS[path.suffix](content))
    results: dict[str, dict[str, float]] = {}
    for entry in entries:
        results.setdefault(entry.data, {})[entry.name] = entry.auc.mean
    return ReportSummary([str(path) for path in files], num_scored, problems, results)


def check_suffixes(files: Sequence[Path]) -> None:
    """Raise a KdganError if a report cannot be written to one of the files."""
    for path in files:
        if path.suffix not in WRITERS:
            raise KdganError("A report is .html, .md or .csv", f"got {path}", "Give another -o")
