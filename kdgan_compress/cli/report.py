"""``kdgan-compress report``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdgan_compress.cli.options import data_root_option, json_option, own_code_option
from kdgan_compress.cli.output import percent, print_report

if TYPE_CHECKING:
    from kdgan_compress.api.report import ReportSummary


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUNS...")
@click.option(
    "-o",
    "--out",
    "out",
    multiple=True,
    required=True,
    metavar="FILE",
    help="report.html, report.md or report.csv; may be repeated.",
)
@click.option("--baselines/--no-baselines", default=True, show_default=True, help="Measure trivial detectors too.")
@click.option("--latency/--no-latency", default=True, show_default=True, help="Measure the latency on this machine.")
@data_root_option
@own_code_option
@json_option
def report(
    runs: tuple[str, ...], out: tuple[str, ...], baselines: bool, latency: bool, data_root: str | None, as_json: bool
) -> None:
    """Write one page on finished runs: results next to the paper's and to baselines, curves, ROC, images and cost.

    RUNS are run folders, folders of them, or one folder that sweep wrote. Runs with equal settings are one row: the
    mean over their classes, with its interval over the seeds. The page needs no network and no other file.

    \b
    kdgan-compress report runs -o report.html
    kdgan-compress report runs/table6 -o report.html -o docs/results/table6.md
    """
    from kdgan_compress.api.report import report as write_report

    options = [f"-o {shlex.quote(path)}" for path in out]
    options += [name for name, given in (("--no-baselines", baselines), ("--no-latency", latency)) if not given]
    command = " ".join(["kdgan-compress report", *map(shlex.quote, runs), *options])
    summary = write_report(
        [Path(folder) for folder in runs],
        out,
        baselines=baselines,
        latency=latency,
        data_root=data_root,
        command=command,
        announce=lambda step: click.echo(f"{step} …", err=True),
    )
    print_report(summary, as_json, _print)


def _print(summary: "ReportSummary") -> None:
    for data, aucs in summary.results.items():
        click.echo(data)
        for name, auc in aucs.items():
            click.echo(f"  {percent(auc):>8}  {name}")
    for line in summary.problems:
        click.echo(line, err=True)
    click.echo(f"{summary.num_runs} runs in {', '.join(summary.files)}")
