"""``kdgan-compress demo``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdgan_compress.cli.options import json_option
from kdgan_compress.cli.output import percent, print_json, progress_display

if TYPE_CHECKING:
    from kdgan_compress.workflows.demo import Demo


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="A new folder.")
@click.option("--quick", is_flag=True, help="One epoch a stage: shows that all works; its figures mean nothing.")
@json_option
def demo(out: Path, quick: bool, as_json: bool) -> None:
    """Run the whole pipeline on the packaged sample: a few minutes on a laptop's CPU.

    \b
    kdgan-compress demo
    """
    from kdgan_compress.workflows.demo import demo as run_demo

    with progress_display() as show:
        result = run_demo(out, quick=quick, announce=lambda line: click.echo(line, err=True), show_progress=show)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: "Demo") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 110)
    table = Table(title="QUICK RUN: these figures mean nothing" if result.quick else None)
    for heading in ("", "AUC", "params", "conv MACs", "KB", "µs/image", "fewer MACs", "faster", "images", "training"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in result.rows:
        costs = row.profile
        table.add_row(
            row.name,
            percent(row.training.auc),
            f"{costs.num_params:,}",
            f"{costs.conv_macs:,}",
            f"{costs.size_bytes / 1024:,.0f}",
            f"{costs.latency_us.median:.0f}",
            f"{row.ratios.macs or 0:.0f}×",
            f"{row.ratios.latency:.1f}×",
            f"{row.training.num_images:,}",
            f"{row.training.seconds:.0f} s",
        )
    console.print(table)
    training, student = result.rows[0].training, result.rows[-1].profile
    click.echo(f"Fashion-MNIST sample, normal class sneaker, student {student.channels}, seed {training.seed}")
    click.echo(training.machine)
    click.echo("µs/image: ONNX Runtime, one thread, median, the three measured in turns\n")
    click.echo(f"picture    {result.picture}\ndetector   {result.detector}")
    click.echo(f"Try        kdgan-compress score {result.detector} {result.images}")
    for path, score, is_anomaly in result.scored:
        click.echo(f"{score:12.6g}  {'anomaly' if is_anomaly else 'normal '}  {path}")
