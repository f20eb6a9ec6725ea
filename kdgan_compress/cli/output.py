"""Output of the commands: results as JSON or text, and training progress on stderr."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from kdgan_compress.cli.streams import escape_surrogates, has_unicode

if TYPE_CHECKING:
    from kdgan_compress.experiment.results import FleetResult, Progress, RunResult, ShowProgress

Report = TypeVar("Report")
LOGGER = logging.getLogger("kdgan_compress")


class MessageHandler(logging.Handler):
    """Keeps the package's log messages, each text once, and prints them on stderr when it is flushed."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()
        self._pending: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        text = record.getMessage()
        if text not in self._shown:
            self._shown.add(text)
            self._pending.append(text)

    def flush(self) -> None:
        """Print the messages."""
        for text in self._pending:
            click.echo(text, err=True)
        self._pending.clear()


@contextmanager
def show_messages() -> Iterator[None]:
    """Show the package's log messages, such as what a folder of photos is used for, before the first output.

    A command that fails before it has any output shows its error alone.
    """
    handler = MessageHandler()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
        handler.flush()
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(logging.NOTSET)


def flush_messages() -> None:
    """Print the messages that are kept until a command has some output."""
    for handler in LOGGER.handlers:
        handler.flush()


def print_json(result: Any) -> None:
    """One object (a dataclass or plain values) on stdout."""
    plain = dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result  # type: ignore[arg-type]
    flush_messages()
    click.echo(escape_surrogates(json.dumps(plain, ensure_ascii=not has_unicode(sys.stdout))))


def print_report(report: Report, as_json: bool, print_text: Callable[[Report], None]) -> None:
    """Print a command's report: as JSON, or as text by a function."""
    if as_json:
        print_json(report)
    else:
        flush_messages()
        print_text(report)


def print_result(result: "RunResult | FleetResult", as_json: bool) -> None:
    """Print the result of one training or of several; exit code 1 if one of several failed."""
    flush_messages()
    failed: dict[str, str] = getattr(result, "failed", {})
    if as_json:
        print_json(result)
    elif hasattr(result, "members"):
        _print_fleet(cast("FleetResult", result))
    else:
        _print_run(result)
    for run, error in failed.items():
        click.echo(f"{run}: {error}", err=True)
    if failed:
        raise click.exceptions.Exit(1)


def _print_run(result: "RunResult") -> None:
    click.echo(f"run          {result.run}")
    click.echo(f"AUC          {_auc(result)}")
    if result.best_epoch_auc_oracle is not None:
        click.echo(f"             {percent(result.best_epoch_auc_oracle)} best epoch (an oracle: test labels chose it)")
    click.echo(
        f"training     {result.num_images} images in {result.seconds:.1f} s ({result.images_per_s:.0f} images/s), "
        f"{result.epochs} epochs, seed {result.seed}"
    )
    if result.score:
        click.echo(f"score        {result.score}")
    if result.teacher_cache is not None:
        click.echo(f"cache        {result.teacher_cache}")
    click.echo(f"machine      {_machine(result)}")


def _print_fleet(result: "FleetResult") -> None:
    for member in result.members:
        click.echo(f"{member.run}  AUC {_auc(member)}  seed {member.seed}")
    click.echo(
        f"{len(result.members)} models, {result.num_images} images in {result.seconds:.1f} s "
        f"({result.images_per_s:.0f} images/s), {result.fleet} at once"
    )
    if result.note is not None:
        click.echo(f"one by one   {result.note}")
    if result.members:
        click.echo(f"machine      {_machine(result.members[0])}")


def _auc(result: "RunResult") -> str:
    raw = "" if result.auc_raw is None else f", {percent(result.auc_raw)} without EMA"
    return f"{percent(result.auc)}{raw}"


def _machine(result: "RunResult") -> str:
    return f"{result.machine}, {result.threads} thread{'s' if result.threads > 1 else ''}"


def percent(fraction: float | None) -> str:
    """A fraction as percent with two digits; ``–`` for None."""
    return "–" if fraction is None else f"{100 * fraction:.2f} %"


def human_count(number: float) -> str:
    """A count as the paper prints it: 5.12M, 172k, 83."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


@contextmanager
def progress_display() -> Iterator["ShowProgress"]:
    """Show training progress on stderr: a bar on a terminal, one line per epoch elsewhere."""
    if not sys.stderr.isatty():
        yield _print_epoch
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", table_column=Column(min_width=20, no_wrap=True)),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[rate]}", table_column=Column(min_width=25, no_wrap=True)),
        TextColumn("{task.fields[losses]}", table_column=Column(ratio=1, no_wrap=True)),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task("starting", total=None, rate="", losses="")

        def show(progress: "Progress") -> None:
            flush_messages()
            bar.update(
                task,
                total=progress.images_total,
                completed=progress.images_done,
                description=_stage_label(progress),
                rate=_rate(progress),
                losses=_losses(progress),
            )
            if progress.record.epoch_done:
                bar.console.print(_epoch_line(progress), highlight=False)

        yield show


def _print_epoch(progress: "Progress") -> None:
    flush_messages()
    if progress.record.epoch_done:
        click.echo(_epoch_line(progress), err=True)


def _epoch_line(progress: "Progress") -> str:
    auc = "" if progress.auc is None else f"  AUC {percent(progress.auc)}"
    return f"{_stage_label(progress)}  {_rate(progress)}  {_losses(progress)}{auc}"


def _stage_label(progress: "Progress") -> str:
    label = f"stage {progress.record.stage}, epoch {progress.record.epoch}"
    return label if progress.run is None else f"{progress.run}, {label}"


def _rate(progress: "Progress") -> str:
    left = (progress.images_total - progress.images_done) / progress.images_per_s
    return f"{progress.images_per_s:.0f} images/s, {left:.0f} s left"


def _losses(progress: "Progress") -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in progress.record.losses.items())
