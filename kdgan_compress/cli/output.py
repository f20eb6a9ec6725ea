"""What commands print: results as JSON or as lines, and the progress of a training on stderr."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kdgan_compress.experiment.fleets import FleetResult
    from kdgan_compress.experiment.job import Progress, RunResult, ShowProgress


def print_json(result: Any) -> None:
    """One object (a dataclass or plain values) on stdout."""
    plain = dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result  # type: ignore[arg-type]
    click.echo(json.dumps(plain, ensure_ascii=False))


def print_run(result: "RunResult", as_json: bool) -> None:
    """What a training came to."""
    if as_json:
        print_json(result)
        return
    click.echo(f"run          {result.run}")
    click.echo(f"AUC          {percent(result.auc)} averaged weights, {percent(result.auc_raw)} raw weights")
    if result.best_epoch_auc_oracle is not None:
        click.echo(f"             {percent(result.best_epoch_auc_oracle)} best epoch (an oracle: test labels chose it)")
    click.echo(
        f"training     {result.num_images} images in {result.seconds:.1f} s ({result.images_per_s:.0f} images/s), "
        f"{result.epochs} epochs, seed {result.seed}"
    )
    if result.teacher_cache is not None:
        click.echo(f"cache        {result.teacher_cache}")
    click.echo(f"machine      {_machine(result)}")


def _machine(result: "RunResult") -> str:
    return f"{result.machine}, {result.threads} thread{'s' if result.threads > 1 else ''}"


def print_fleet(result: "FleetResult", as_json: bool) -> None:
    """What many trainings came to; ends with exit code 1 where some of them failed."""
    if as_json:
        print_json(result)
    else:
        for member in result.members:
            auc = f"AUC {percent(member.auc)} averaged weights, {percent(member.auc_raw)} raw weights"
            click.echo(f"{member.run}  {auc}  seed {member.seed}")
        click.echo(
            f"{len(result.members)} models, {result.num_images} images in {result.seconds:.1f} s "
            f"({result.images_per_s:.0f} images/s), {result.fleet} at once"
        )
        if result.members:
            click.echo(f"machine      {_machine(result.members[0])}")
    for run, error in result.failed.items():
        click.echo(f"{run}: {error}", err=True)
    if result.failed:
        raise click.exceptions.Exit(1)


def finish(
    path: Path,
    one: Callable[..., "RunResult"],
    several: Callable[..., "FleetResult"],
    *,
    fleet: int | None,
    track_auc: bool,
    as_json: bool,
) -> None:
    """Finish an interrupted run by ``one``, or those in a folder that is no run itself by ``several``, and print it."""
    is_folder_of_runs = not (path / "recipe.yaml").exists() and any(path.glob("*/recipe.yaml"))
    with progress_display() as show:
        if is_folder_of_runs:
            print_fleet(several(path, fleet=fleet, track_auc=track_auc, show_progress=show), as_json)
        else:
            print_run(one(path, track_auc=track_auc, show_progress=show), as_json)


def percent(share: float | None) -> str:
    """A share as percent with two digits; ``–`` for None."""
    return "–" if share is None else f"{100 * share:.2f} %"


def compact(number: float) -> str:
    """A count in the paper's way: 5.12M, 172k, 83."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


@contextmanager
def progress_display() -> Iterator["ShowProgress"]:
    """Show trainings' progress: a bar on a terminal, a line an epoch elsewhere; always on stderr."""
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
            bar.update(
                task,
                total=progress.images_total,
                completed=progress.images_done,
                description=_place(progress),
                rate=_rate(progress),
                losses=_losses(progress),
            )
            if progress.record.epoch_done:
                bar.console.print(_epoch_line(progress), highlight=False)

        yield show


def _print_epoch(progress: "Progress") -> None:
    if progress.record.epoch_done:
        click.echo(_epoch_line(progress), err=True)


def _epoch_line(progress: "Progress") -> str:
    auc = "" if progress.auc is None else f"  AUC {percent(progress.auc)}"
    return f"{_place(progress)}  {_rate(progress)}  {_losses(progress)}{auc}"


def _place(progress: "Progress") -> str:
    place = f"stage {progress.record.stage}, epoch {progress.record.epoch}"
    return place if progress.run is None else f"{progress.run}, {place}"


def _rate(progress: "Progress") -> str:
    left = (progress.images_total - progress.images_done) / progress.images_per_s
    return f"{progress.images_per_s:.0f} images/s, {left:.0f} s left"


def _losses(progress: "Progress") -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in progress.record.losses.items())
