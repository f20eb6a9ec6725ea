"""``kdgan-compress score``: runs on the device, so nothing here imports torch."""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.output import print_json

if TYPE_CHECKING:
    from kdgan_compress.runtime import FileScore

COLUMNS = ("path", "score", "is_anomaly", "error")


@click.command()
@click.argument("detector", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--threshold", type=float, help="Scores above it are anomalies.  [default: in the file]")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Maximum batch size.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads to read and score.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per image and line.")
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
    """Score image files, or all images in folders, with an exported DETECTOR; prints one line per image.

    Unreadable files are reported and skipped; the exit code is 1 if there were any.

    \b
    kdgan-compress score student.onnx photo.jpg more_photos/
    kdgan-compress score student.onnx archive/ --csv --threads 4 > scores.csv
    """
    from kdgan_compress.runtime import Detector, score_files
    from kdgan_compress.runtime.image_files import find_images

    if as_json and as_csv:
        raise click.UsageError("Give --json or --csv, not both.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may not be UTF-8
    loaded = Detector(detector, threads, threshold)
    paths = [path for image in images for path in (find_images(image) if image.is_dir() else [image])]
    print_score = _print_json if as_json else _csv_printer() if as_csv else _print_line
    num_failed = num_anomalies = 0
    results = score_files(loaded, paths, batch, threads)
    is_hidden = sys.stdout.isatty() or not sys.stderr.isatty()
    with click.progressbar(results, length=len(paths), file=sys.stderr, hidden=is_hidden) as shown:
        for result in shown:
            num_failed += result.error is not None
            num_anomalies += result.is_anomaly is True
            print_score(result)
    if len(paths) > 1:
        summary = f"{len(paths):,} images: {num_anomalies:,} above the threshold {loaded.threshold:.6g}"
        click.echo(summary + (f", {num_failed} could not be read" if num_failed else ""), err=True)
    if num_failed:
        context.exit(1)


def _print_line(result: "FileScore") -> None:
    if result.error is not None:
        click.echo(f"Error: {result.error}", err=True)
    else:
        click.echo(f"{result.score:12.6g}  {'anomaly' if result.is_anomaly else 'normal '}  {result.path}")


def _print_json(result: "FileScore") -> None:
    values: dict[str, Any] = {"score": result.score, "is_anomaly": result.is_anomaly}
    if result.error is not None:
        values = {"error": result.error}
    print_json({"path": str(result.path)} | values)


def _csv_printer() -> "Callable[[FileScore], None]":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    return lambda result: writer.writerow((result.path, *(getattr(result, column) for column in COLUMNS[1:])))
