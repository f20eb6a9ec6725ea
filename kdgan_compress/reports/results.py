"""The content of a report as data: one entry per row and column, arranged in tables, and the Pareto front."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from kdgan_compress.evaluation import ClassMean

Item = TypeVar("Item")


@dataclass(frozen=True)
class Entry:
    """One model, or baseline, on one data set.

    Attributes:
        labels: One value per row axis; a baseline's name and blanks.
        column: Its column; empty if there is only one.
        data: Data set and protocol.
        is_baseline: Whether it is a trivial detector.
        auc: AUC of the last epoch, in [0, 1]: the mean over classes, with its interval over the repeats.
        by_class: AUC of each class: the mean over its repeats.
        best_auc: Mean AUC of the best epoch of each run, an oracle; None unless it was tracked in all runs.
        paper: The paper's AUC.
        paper_by_class: The paper's AUC of single classes.
        size_bytes: Detector file, or what a baseline has to store.
        num_params: Parameters that the score depends on.
        conv_macs: Multiply-accumulates of convolutions for one image, or one photo.
        latency_us: Time for one image in microseconds: the 10 % quantile, which other load disturbs least.
        seconds: Mean training time of one run.
        axes: Names of the labels.
    """

    labels: tuple[str, ...]
    column: str
    data: str
    is_baseline: bool
    auc: ClassMean
    by_class: Mapping[str, float]
    best_auc: float | None = None
    paper: float | None = None
    paper_by_class: Mapping[str, float] = field(default_factory=dict)
    size_bytes: int | None = None
    num_params: int | None = None
    conv_macs: int | None = None
    latency_us: float | None = None
    seconds: float | None = None
    axes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The row's labels, numbers with the names of their axes, and the column unless the data says it already."""
        parts = [label for label in self.labels if label not in ("", "–")]
        if len(self.axes) == len(self.labels) and not self.is_baseline:
            pairs = zip(self.axes, self.labels, strict=True)
            parts = [_with_axis(axis, label) for axis, label in pairs if label not in ("", "–")]
        if self.column and not self.data.startswith(self.column):
            parts.append(self.column)
        return ", ".join(parts) or "model"


@dataclass(frozen=True)
class TableRow:
    """A row of a table: one entry per column, None where there is none."""

    labels: tuple[str, ...]
    is_baseline: bool
    entries: list[Entry | None]


@dataclass(frozen=True)
class TableGroup:
    """Rows that share their data: models, then baselines."""

    data: str
    rows: list[TableRow]


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Attributes:
        section: Heading that it stands under.
        title: What it shows.
        alt: The same for those who do not see it.
        content: SVG text, or a PNG file's bytes.
    """

    section: str
    title: str
    alt: str
    content: str | bytes


@dataclass(frozen=True)
class Report:
    """Everything a report prints.

    Attributes:
        title: Heading.
        description: One or two sentences below it.
        variant: ``quick``, ``full`` or empty.
        axes: Names of the row labels.
        column_axes: Names of the column labels.
        columns: Column labels, in order.
        entries: Models and baselines.
        problems: Runs that are missing, and parts that are left out.
        environment: Names and values: machine, seeds, time, versions.
        command: The command line that wrote the report.
        commands: The command line that repeats a run, by name of the row.
        recipes: A run's settings as YAML, by name of the row.
        pictures: In order.
    """

    title: str
    description: str
    variant: str
    axes: list[str]
    column_axes: list[str]
    columns: list[str]
    entries: list[Entry]
    problems: list[str]
    environment: list[tuple[str, str]]
    command: str
    commands: Mapping[str, str] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)

    @property
    def groups(self) -> list[TableGroup]:
        """The results table: one group if each column has its own data, else one per data set."""
        data = {column: {entry.data for entry in self.entries if entry.column == column} for column in self.columns}
        if all(len(names) == 1 for names in data.values()):
            return [self._group(", ".join(dict.fromkeys(next(iter(each)) for each in data.values())), self.entries)]
        names = dict.fromkeys(entry.data for entry in self.entries)
        return [self._group(name, [entry for entry in self.entries if entry.data == name]) for name in names]

    def _group(self, data: str, entries: Sequence[Entry]) -> TableGroup:
        rows: list[TableRow] = []
        for is_baseline in (False, True):
            chosen = {(e.labels, e.column): e for e in entries if e.is_baseline == is_baseline}
            rows += [
                TableRow(labels, is_baseline, [chosen.get((labels, column)) for column in self.columns])
                for labels in dict.fromkeys(labels for labels, _ in chosen)
            ]
        return TableGroup(data, rows)


Cost = Literal["size_bytes", "latency_us"]


def _with_axis(axis: str, label: str) -> str:
    is_number = label.replace(".", "", 1).isdecimal()
    return f"{axis.rsplit('.', 1)[-1].replace('_', ' ')} {label}" if is_number else label


def pareto_front(
    items: Sequence[Item], cost: Callable[[Item], float | None], auc: Callable[[Item], float]
) -> list[Item]:
    """The items that no other beats: none costs at most as much at a higher AUC, or less at the same; cheapest first.

    Items of unknown cost, None, are left out.
    """
    known = [(value, item) for item in items if (value := cost(item)) is not None]
    front: list[Item] = []
    for _, item in sorted(known, key=lambda pair: (pair[0], -auc(pair[1]))):
        if not front or auc(item) > auc(front[-1]):
            front.append(item)
    return front
