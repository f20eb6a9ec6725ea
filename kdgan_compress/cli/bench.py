"""``kdgan-compress bench``."""

from typing import TYPE_CHECKING

import click

from kdgan_compress.cli.options import json_option
from kdgan_compress.cli.output import print_json

if TYPE_CHECKING:
    from kdgan_compress.workflows.bench import BenchRow


@click.command()
@json_option
def bench(as_json: bool) -> None:
    """Measure training speed on this machine: the engine against the same steps as a bare loop.

    \b
    kdgan-compress bench
    """
    from kdgan_compress.workflows.bench import bench as run_bench

    report = run_bench(announce=lambda row: click.echo(_line(row), err=as_json))
    if as_json:
        print_json(report)
    else:
        click.echo(f"one thread, in turns, on {report.machine}")


def _line(row: "BenchRow") -> str:
    us = row.us_per_image
    return (
        f"{row.work} {row.path:6}  {row.family:5}  structure {row.structure:5}  {row.channels:10}  "
        f"batch {row.batch:2}  {us.median:8.0f} µs/image ({us.min:.0f} to {us.max:.0f})  {row.speedup:.3f}× plain"
    )
