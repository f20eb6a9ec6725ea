"""``kdgan-compress demo``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdgan_compress.api.demo_folder import check_demo_folder
from kdgan_compress.cli.options import json_option
from kdgan_compress.cli.output import human_count, percent, print_json, progress_display

if TYPE_CHECKING:
    from kdgan_compress.api.demo import Demo


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="demo",
    show_default=True,
    help="A new folder, or that of an interrupted demo.",
)
@click.option("--quick", is_flag=True, help="Smoke test: a small teacher, one epoch per stage, meaningless metrics.")
@json_option
def demo(out: Path, quick: bool, as_json: bool) -> None:
    """Run the whole pipeline on the packaged sample: a few minutes on a laptop's CPU.

    An interrupted demo continues where it stopped.

    \b
    kdgan-compress demo
    """
    check_demo_folder(out, quick)  # before torch is imported, which takes seconds
    from kdgan_compress.api.demo import demo as run_demo

    with progress_display() as show:
        result = run_demo(out, quick=quick, announce=lambda line: click.echo(line, err=True), show_progress=show)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: "Demo") -> None:
    if result.quick:
        click.echo("QUICK RUN: these metrics are meaningless")
    click.echo(
        f"{'':13}{'AUC':>9}{'params':>8}{'MACs':>7}{'KB':>8}{'µs':>6}{'fewer':>7}{'faster':>8}{'images':>8}{'time':>6}"
    )
    for row in result.rows:
        costs, training = row.profile, row.training
        click.echo(
            f"{row.name:13}{percent(training.auc):>9}{human_count(costs.num_params):>8}{human_count(costs.conv_macs):>7}"
            f"{costs.size_bytes / 1024:>8,.0f}{costs.latency_us.median:>6.0f}{f'{row.ratios.macs or 0:.0f}×':>7}"
            f"{f'{row.ratios.latency:.1f}×':>8}{training.num_images:>8,}{f'{training.seconds:.0f} s':>6}"
        )
    training, student = result.rows[0].training, result.rows[-1].profile
    click.echo(
        f"\nFashion-MNIST sample, normal class sneaker, seed {training.seed}; both students are {student.channels}"
        f"\n{training.machine}; µs per image: ONNX Runtime, one thread, median, measured in alternation\n"
    )
    click.echo(f"picture    {result.picture}\ndetector   {result.detector}")
    click.echo(f"try        kdgan-compress score {result.detector} {result.images}")
    for path, score, is_anomaly in result.scored:
        click.echo(f"{score:12.6g}  {'anomaly' if is_anomaly else 'normal '}  {path}")
