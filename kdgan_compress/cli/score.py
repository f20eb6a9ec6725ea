"""``kdgan-compress score``: what the device does, so nothing here imports torch."""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdgan_compress.cli.output import print_json

if TYPE_CHECKING:
    from kdgan_compress.runtime import FileScore

COLUMNS = ("path", "score", "is_anomaly", "error")


@click.command()
@click.argument("detector", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--threshold", type=float, help="Scores above it are anomalies.  [default: the detector's own]")
@click.option(
    "--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Small images scored together."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="For reading, and of a call.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image, on a line of its own.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values with a header.")
@click.pass_context
def score(
    context: click.Context,
    /,
    detector: Path,
    images: tuple[Path, ...],
    threshold: float | None,
    batch: int,
    threads: int,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Score image files, or all images below folders, with an exported DETECTOR; a line an image.

    Files that can't be read are told and counted while the rest go on; the exit code is 1 then.

    \b
    kdgan-compress score student.onnx photo.jpg more_photos/
    kdgan-compress score student.onnx archive/ --csv --threads 4 > scores.csv
    """
    from kdgan_compress.runtime import Detector, score_files
    from kdgan_compress.runtime.images import find_images

    if as_json and as_csv:
        raise click.UsageError("Give --json or --csv, not both.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name needn't be UTF-8
    opened = Detector(detector, threads, threshold)
    paths = [path for given in images for path in (find_images(given) if given.is_dir() else [given])]
    show = _print_json if as_json else _csv_printer() if as_csv else _print_line
    num_failed = num_anomalies = 0
    with click.progressbar(
        score_files(opened, paths, batch, threads),
        length=len(paths),
        file=sys.stderr,
        hidden=sys.stdout.isatty() or not sys.stderr.isatty(),
    ) as scores:
        for found in scores:
            num_failed += found.error is not None
            num_anomalies += found.is_anomaly is True
            show(found)
    if len(paths) > 1:
        unread = f", {num_failed} could not be read" if num_failed else ""
        click.echo(
            f"{len(paths):,} images: {num_anomalies:,} above the threshold {opened.threshold:.6g}{unread}", err=True
        )
    if num_failed:
        context.exit(1)


def _print_line(found: "FileScore") -> None:
    if found.error is not None:
        click.echo(f"Error: {found.error}", err=True)
    else:
        click.echo(f"{found.score:12.6g}  {'anomaly' if found.is_anomaly else 'normal '}  {found.path}")


def _print_json(found: "FileScore") -> None:
    if found.error is not None:
        print_json({"path": str(found.path), "error": found.error})
    else:
        print_json({"path": str(found.path), "score": found.score, "is_anomaly": found.is_anomaly})


def _csv_printer() -> "Callable[[FileScore], None]":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    return lambda found: writer.writerow((found.path, *(getattr(found, column) for column in COLUMNS[1:])))
