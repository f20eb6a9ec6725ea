"""``kdgan-compress sweep``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import data_root_option, json_option, own_code_option, set_option
from kdgan_compress.cli.output import print_json
from kdgan_compress.cli.sweep_display import print_summary, sweep_display

if TYPE_CHECKING:
    from kdgan_compress.api.sweep import SweepReport


class Axis(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """An axis and its values."""

    name = "NAME=VALUES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """``"width=1,2,8"`` → ``("width", "1,2,8")``."""
        if isinstance(value, tuple):
            return value
        name, equals, values = str(value).partition("=")
        if not (name and equals and values):
            self.fail(f"{value!r} is not an axis and its values, such as width=1,2,8 or seed=0..4", param, ctx)
        return name, values


@click.command()
@click.argument("recipe", metavar="RECIPE|FILE")
@click.option(
    "--axis",
    "axes",
    type=Axis(),
    multiple=True,
    help="Values of one setting: width=1,2,8, normal=0..9, seed=0..2 or any recipe key.",
)
@set_option
@click.option("--full", is_flag=True, help="The paper's grid and repeats instead of the recipe's quick variant.")
@click.option("--distill", is_flag=True, help="Train students; each distinct teacher is trained once.")
@click.option("--teachers", type=click.Path(path_type=Path), metavar="DIR", help="Use equal teachers in this folder.")
@click.option("--track-auc", is_flag=True, help="Measure AUC after every epoch.")
@click.option("--workers", type=int, metavar="N", help="Local processes, one thread each.  [default: one per core]")
@click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler, such as tcp://host:8786, instead of processes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the sweep.  [default: runs/RECIPE(-quick)]")
@data_root_option
@own_code_option
@json_option
def sweep(
    recipe: str,
    axes: tuple[tuple[str, str], ...],
    settings: tuple[dict[str, Any], ...],
    full: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a grid of experiments, in fleets and on all cores; the same command continues a killed sweep.

    \b
    kdgan-compress sweep table5
    kdgan-compress sweep mnist-u2 --axis width=1,2,8 --axis normal=0..9 --axis seed=0..2
    """
    from kdgan_compress.api.sweep import sweep as run_sweep

    names = [name for name, _ in axes]
    if len(set(names)) < len(names):
        raise click.UsageError("Give each axis once, such as --axis width=1,2,8.")
    try:
        with sweep_display() as show_progress:
            options |= {"axes": dict(axes), "settings": _dotted(settings), "show_progress": show_progress}
            report = run_sweep(recipe, quick=not full, **options)
    except KeyboardInterrupt:
        click.echo("Interrupted; finished cells are kept, and the same command continues the sweep.", err=True)
        raise click.exceptions.Exit(130) from None
    if as_json:
        print_json(_as_plain(report))
    else:
        print_summary(report)
    for run, error in report.failed.items():
        click.echo(f"{run}: {error} (details in {report.logs[run]})", err=True)
    if report.failed:
        raise click.exceptions.Exit(1)


def _dotted(settings: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """``{"objective": {"w_adv": 0}}`` → ``{"objective.w_adv": 0}``."""
    dotted: dict[str, Any] = {}
    for setting in settings:
        path, value = [], dict(setting)
        while isinstance(value, dict) and len(value) == 1:
            ((key, value),) = value.items()
            path.append(key)
        dotted[".".join(path)] = value
    return dotted


def _as_plain(report: "SweepReport") -> dict[str, Any]:
    import dataclasses

    plain = {field.name: getattr(report, field.name) for field in dataclasses.fields(report) if field.name != "plan"}
    return plain | {"cells": [dataclasses.asdict(cell) for cell in report.cells]}
