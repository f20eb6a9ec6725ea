"""How a sweep is shown: a live table of its cells on a terminal, one line per cell elsewhere, a summary at the end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.output import flush_messages, percent

if TYPE_CHECKING:
    from rich.table import Table

    from kdgan_compress.api.sweep import SweepReport
    from kdgan_compress.sweeps.execution import FinishedCell, ShowSweep, SweepProgress


@contextmanager
def sweep_display() -> Iterator["ShowSweep"]:
    """Show a sweep's progress on stderr."""
    if not sys.stderr.isatty():
        yield _print_ended
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True) as live:

        def show(progress: "SweepProgress") -> None:
            flush_messages()
            for ended in progress.ended:
                live.console.print(_line(ended), highlight=False, markup=False)
            live.update(_table(progress))

        yield show


def _print_ended(progress: "SweepProgress") -> None:
    flush_messages()
    for ended in progress.ended:
        left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
        count = f"{progress.done} of {progress.total} done, {progress.running} running, {progress.failed} failed{left}"
        click.echo(f"{_line(ended)}  ({count})", err=True)


def _table(progress: "SweepProgress") -> "Table":
    from rich.table import Table

    table = Table("cells", "done", "running", "failed", "time left")
    left = "–" if progress.seconds_left is None else duration(progress.seconds_left)
    table.add_row(*map(str, (progress.total, progress.done, progress.running, progress.failed)), left)
    return table


def _line(ended: "FinishedCell") -> str:
    if ended.result is None:
        return f"{ended.cell.run}  failed: {ended.error}"
    result = ended.result
    return f"{ended.cell.run}  AUC {percent(result.auc)}  {result.num_images} images in {duration(result.seconds)}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_summary(report: "SweepReport") -> None:
    """Print the results table, its conditions and where everything is."""
    from kdgan_compress.sweeps.summary import summarize

    summary = summarize(report.plan, {cell.run: cell.result.auc if cell.result else None for cell in report.cells})
    widths = [max(map(len, column)) for column in zip(*summary, strict=True)]
    for row in summary:
        click.echo("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    finished = sum(cell.result is not None for cell in report.cells)
    counts: Any = f"{finished} of {len(report.cells)} cells"
    counts += f", {report.num_teachers} teachers" if report.num_teachers else ""
    click.echo(f"\nmean AUC of the last epoch in %; {counts}, {report.num_reused} of them from an earlier command")
    if report.variant == "quick":
        click.echo(
            "quick variant: smaller networks, fewer images or classes than the paper's; --full runs the paper's grid"
        )
    click.echo(f"training     {duration(report.training_seconds)} in {duration(report.seconds)}")
    click.echo(f"sweep        {report.out}")
