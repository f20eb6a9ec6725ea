"""``kdgan-compress bench``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdgan_compress.cli.options import json_option
from kdgan_compress.cli.output import print_json

if TYPE_CHECKING:
    from kdgan_compress.bench.bench import BenchRow


@click.command()
@click.option("--work", type=click.Choice(["train", "infer"]), help="Only this kind of work.")
@click.option("--channels", metavar="A-B-C", help="Only models of these channels, such as 2-4-8.")
@click.option("--batch", type=int, help="Only this batch size.")
@click.option("--rounds", type=int, default=7, show_default=True, help="Measurement rounds (about 2 s each).")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="PNG", help="Write a plot of all times.")
@json_option
def bench(
    work: str | None,
    channels: str | None,
    batch: int | None,
    rounds: int,
    device: str,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Benchmark training and scoring on this machine: reference loops, the engine, teacher cache, fleets.

    All cases take about 15 minutes.

    \b
    kdgan-compress bench --plot speed.png
    kdgan-compress bench --work train --channels 2-4-8 --batch 1
    """
    from kdgan_compress.bench.bench import bench as run_bench
    from kdgan_compress.bench.cases import CASES

    wanted = {"work": work, "channels_str": channels, "batch": batch}
    chosen = [
        case for case in CASES if all(value is None or getattr(case, name) == value for name, value in wanted.items())
    ]
    if not chosen:
        plans = ", ".join(dict.fromkeys(case.channels_str for case in CASES))
        raise click.UsageError(f"There is no such case; channels are {plans}, batches 1, 8, 16 and 64.")
    if rounds < 1:
        raise click.UsageError(f"--rounds must be at least 1; got {rounds}.")
    report = run_bench(
        chosen, rounds=rounds, device=device, plot=plot, announce=lambda row: click.echo(_line(row), err=as_json)
    )
    if as_json:
        print_json(report)
    else:
        click.echo(f"one thread, on {report.machine}; {report.matrix_gmacs:.1f} GMAC/s in matrix products")


def _line(row: "BenchRow") -> str:
    ns = 1000 * row.us_per_image.median
    low, high = (1000 * us for us in (row.us_per_image.min, row.us_per_image.max))
    path = f"{row.path} {row.fleet}" if row.path == "fleet" else row.path
    limit = "" if row.fraction_of_peak is None else f"  {100 * row.fraction_of_peak:4.1f} % of the matrix rate"
    memory = "" if row.peak_rss_mb is None else f"  {row.peak_rss_mb:5.0f} MB"
    return (
        f"{row.work:5} {row.family:5} {row.structure:5} {row.channels:10} batch {row.batch:2}  {path:8}  "
        f"{ns:12,.0f} ns ({low:,.0f} to {high:,.0f})  {row.speedup:6.2f}× plain{limit}{memory}"
    )
