"""The tables of a report as rows of text, and a report as Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from kdgan_compress.reports.results import Entry, Report

DASH = "–"
INTERVAL_NOTE = (
    "AUC in %, of the last epoch: the mean over the classes, ± the half-width of the 95 % confidence interval over the "
    "seeds (Student's t). The papers' figures are means over all classes. A best epoch is an oracle: the test labels "
    "chose it. Bytes are those of the detector file, or what a baseline has to store."
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: Its caption.
        header: Names of the columns.
        num_labels: How many of the first columns name a row.
        rows: One text per column.
        baselines: Whether each row is a baseline's.
    """

    title: str
    header: list[str]
    num_labels: int
    rows: list[list[str]]
    baselines: list[bool]


def results_tables(report: Report) -> list[Table]:
    """One table per data set or, where each column is one, a single table."""
    single = len(report.columns) == 1
    has_best = any(entry.best_auc is not None for entry in report.entries)
    has_paper = any(entry.paper is not None for entry in report.entries)
    tables = []
    for group in report.groups:
        if single:
            header = [
                "AUC %",
                *(["paper"] if has_paper else []),
                *(["best epoch"] if has_best else []),
                "runs",
                "bytes",
            ]
            rows = [_single(row.entries[0], has_paper, has_best) for row in group.rows]
        else:
            header = report.columns
            rows = [[_compact(entry) for entry in row.entries] for row in group.rows]
        labels = [list(row.labels) for row in group.rows]
        title = f"Results: {group.data}"
        if not single:
            title += f"; columns: {', '.join(report.column_axes)}"
        tables.append(
            Table(
                title,
                [*report.axes, *header],
                len(report.axes),
                [[*names, *cells] for names, cells in zip(labels, rows, strict=True)],
                [row.is_baseline for row in group.rows],
            )
        )
    return tables


def class_tables(report: Report) -> list[Table]:
    """One table per data set with several classes: one row per class, one column per model and baseline."""
    tables = []
    for data in dict.fromkeys(entry.data for entry in report.entries):
        entries = [entry for entry in report.entries if entry.data == data]
        classes = list(dict.fromkeys(name for entry in entries for name in entry.by_class))
        if len(classes) < 2:
            continue
        columns: list[tuple[str, list[str]]] = []
        for entry in entries:
            columns.append((entry.name, [percent(entry.by_class.get(name)) for name in classes]))
            if len(entry.paper_by_class) == len(entry.by_class) and not entry.is_baseline:
                columns.append((f"{entry.name}: paper", [percent(entry.paper_by_class.get(name)) for name in classes]))
        rows = [[name, *(values[number] for _, values in columns)] for number, name in enumerate(classes)]
        title = f"By class: {data}; AUC in %, mean over the seeds"
        tables.append(Table(title, ["class", *(name for name, _ in columns)], 1, rows, [False] * len(rows)))
    return tables


def cost_table(report: Report) -> Table:
    """What each model and baseline costs on the device, next to its AUC."""
    entries = report.entries
    rows = [
        [
            entry.name,
            entry.data,
            percent(entry.auc.mean),
            *(
                DASH if value is None else f"{value:,}"
                for value in (entry.size_bytes, entry.num_params, entry.conv_macs)
            ),
            DASH if entry.latency_us is None else f"{entry.latency_us:,.0f}",
            DASH if entry.seconds is None else f"{entry.seconds:,.0f}",
        ]
        for entry in entries
    ]
    header = ["model", "data", "AUC %", "bytes", "parameters", "MACs", "latency µs", "training s"]
    title = "Cost: of the first run of each row; MACs of convolutions; training time of one run"
    return Table(title, header, 2, rows, [entry.is_baseline for entry in entries])


def markdown_text(report: Report) -> str:
    """The report without pictures, for a repository or an issue."""
    variant = f"Variant: **{report.variant}**." if report.variant else ""
    parts = [f"# {report.title}", " ".join(filter(None, [report.description, variant])), f"    {report.command}"]
    parts += [INTERVAL_NOTE]
    for table in [*results_tables(report), *class_tables(report), cost_table(report)]:
        parts += [f"**{table.title}**", _markdown_table(table)]
    if report.problems:
        parts += ["**Missing**", "\n".join(f"- {line}" for line in report.problems)]
    parts += ["**Environment**", "\n".join(f"- {name}: {value}" for name, value in report.environment)]
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def csv_text(report: Report) -> str:
    """One line per model, or baseline, and data set; AUCs as fractions."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fields = ["data", *report.axes, "column", "kind", "auc", "ci95", "paper_auc", "best_epoch_auc_oracle"]
    numbers = ["size_bytes", "num_params", "conv_macs", "latency_us", "seconds"]
    writer.writerow([*fields, "num_runs", "num_classes", "num_repeats", *numbers])
    for entry in report.entries:
        auc = entry.auc
        values: list[object] = [entry.data, *entry.labels, entry.column, "baseline" if entry.is_baseline else "model"]
        values += [auc.mean, auc.ci95, entry.paper, entry.best_auc, auc.num_runs, auc.num_classes, auc.num_repeats]
        writer.writerow([*values, *(getattr(entry, name) for name in numbers)])
    return stream.getvalue()


def percent(fraction: float | None) -> str:
    """A fraction in percent with two digits, without a unit."""
    return DASH if fraction is None else f"{100 * fraction:.2f}"


def auc_text(entry: Entry) -> str:
    """AUC with its interval; an asterisk where runs are missing."""
    interval = "" if entry.auc.ci95 is None else f" ± {100 * entry.auc.ci95:.2f}"
    return f"{percent(entry.auc.mean)}{interval}{'' if entry.auc.is_complete else ' *'}"


def _single(entry: Entry | None, has_paper: bool, has_best: bool) -> list[str]:
    if entry is None:
        return [DASH] * (3 + has_paper + has_best)
    auc = entry.auc
    classes = f" ({auc.num_classes} classes)" if auc.num_classes > 1 else ""
    return [
        auc_text(entry),
        *([percent(entry.paper)] if has_paper else []),
        *([percent(entry.best_auc)] if has_best else []),
        DASH if entry.is_baseline else f"{auc.num_runs}{classes}",
        DASH if entry.size_bytes is None else f"{entry.size_bytes:,}",
    ]


def _compact(entry: Entry | None) -> str:
    """AUC, and in brackets the paper's, the best epoch's and the bytes."""
    if entry is None:
        return DASH
    details = [
        f"paper {percent(entry.paper)}" if entry.paper is not None else "",
        f"best epoch {percent(entry.best_auc)}" if entry.best_auc is not None else "",
        f"{entry.size_bytes:,} B" if entry.size_bytes is not None else "",
    ]
    shown = "; ".join(filter(None, details))
    return f"{auc_text(entry)}{f' ({shown})' if shown else ''}"


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---"] * table.num_labels + ["---:"] * (len(table.header) - table.num_labels)
    names = [
        [f"*{cell}*" if is_baseline and cell else cell for cell in row[: table.num_labels]] + row[table.num_labels :]
        for row, is_baseline in zip(table.rows, table.baselines, strict=True)
    ]
    return "\n".join(line(cells) for cells in (table.header, rule, *names))
