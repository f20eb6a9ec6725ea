"""``kdgan-compress calibrate``: runs on the device, so nothing here imports torch."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdgan_compress.cli.options import json_option
from kdgan_compress.cli.output import percent, print_report

if TYPE_CHECKING:
    from kdgan_compress.api.calibrate import CalibrationResult


@click.command()
@click.argument("detector", type=click.Path(path_type=Path))
@click.argument("good_photos", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="NEW.onnx", required=True, help="The new detector."
)
@click.option("--quantile", type=float, default=0.99, show_default=True, help="Quantile of the photos' scores.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads to read and score.")
@json_option
def calibrate(
    detector: Path, good_photos: tuple[Path, ...], out: Path, quantile: float, threads: int, as_json: bool
) -> None:
    """Write a copy of DETECTOR with a threshold for the place where it works, from photos of good parts taken there.

    Card and golden vectors are written with it. Unreadable files are reported and skipped.

    \b
    kdgan-compress calibrate student.onnx good_photos/ -o here.onnx
    """
    from kdgan_compress.api.calibrate import calibrate as run_calibrate

    result = run_calibrate(detector, good_photos, out, quantile=quantile, threads=threads)
    for message in result.unreadable:
        click.echo(f"Error: {message}", err=True)
    for message in result.warnings:
        click.echo(f"Warning: {message}", err=True)
    print_report(result, as_json, _print)


def _print(result: "CalibrationResult") -> None:
    number = result.num_photos
    skipped = f"; {len(result.unreadable)} could not be read" if result.unreadable else ""
    click.echo(f"threshold     {result.threshold:.6g}, was {result.old_threshold:.6g}")
    click.echo(f"good photos   {number:,}{skipped}")
    for name, alarms in (("before", result.alarms_before), ("now", result.alarms_after)):
        click.echo(f"alarms {name:6} {alarms:,} of {number:,} ({percent(alarms / number)})")
    click.echo("written       " + ", ".join(result.files))
