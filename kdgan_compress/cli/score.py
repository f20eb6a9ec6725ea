"""``kdgan-compress score``: runs on the device, so nothing here imports torch."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.output import print_json
from kdgan_compress.cli.streams import one_line

if TYPE_CHECKING:
    from kdgan_compress.runtime import FileScore

COLUMNS = ("path", "score", "is_anomaly", "error", "relative")


@click.command()
@click.argument("detector", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--threshold", type=float, help="Scores above it are anomalies.  [default: in the file]")
@click.option("--maps", type=click.Path(path_type=Path), metavar="DIR", help="Draw each anomaly map over its photo.")
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
    maps: Path | None,
    batch: int,
    threads: int,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Score image files, or all images in folders, with an exported DETECTOR; prints one line per image.

    A line has the score, the score relative to the threshold (above 1.00 is an anomaly), the decision and the path.
    Unreadable files are reported and skipped; the exit code is 1 if there were any.

    \b
    kdgan-compress score student.onnx photo.jpg more_photos/ --maps maps
    kdgan-compress score student.onnx archive/ --csv --threads 4 > scores.csv
    """
    from kdgan_compress.runtime import Detector, score_files
    from kdgan_compress.runtime.overlay import check_overlay_folder, draw_result, overlay_paths, write_overlay

    if as_json and as_csv:
        raise click.UsageError("Give --json or --csv, not both.")
    loaded = Detector(detector, threads, threshold)
    photos, others = _photos(images)
    overlays: list[Path | None] = [None] * len(photos)
    if maps is not None:
        check_overlay_folder(maps, (image for image in images if image.is_dir()))
        overlays = [*overlay_paths(maps, photos)]
    results = score_files(loaded, (path for path, _ in photos), batch, threads, maps is not None)
    print_score = _print_json if as_json else _csv_printer(maps is not None) if as_csv else _print_line
    num_failed = num_anomalies = 0
    is_hidden = sys.stdout.isatty() or not sys.stderr.isatty()
    with click.progressbar(results, length=len(photos), file=sys.stderr, hidden=is_hidden) as shown:
        for result, overlay in zip(shown, overlays, strict=True):
            num_failed += result.error is not None
            num_anomalies += result.is_anomaly is True
            if overlay is not None and result.error is None:
                write_overlay(overlay, draw_result(loaded, result))
            print_score(result, None if result.error else overlay)
    for line in others:
        click.echo(one_line(line), err=True)
    if len(photos) > 1:
        summary = f"{len(photos):,} images: {num_anomalies:,} above the threshold {loaded.threshold:.6g}"
        click.echo(summary + (f", {num_failed} could not be read" if num_failed else ""), err=True)
    if num_failed:
        context.exit(1)


def _photos(images: tuple[Path, ...]) -> tuple[list[tuple[Path, Path]], list[str]]:
    """The image files that the arguments name, and a line for each folder with other files too.

    Each image comes with the folder below which its overlay keeps its path.

    Raises:
        KdganError: There is no image at all, or no such folder.
    """
    from kdgan_compress.runtime.image_files import find_images, list_images

    photos: list[tuple[Path, Path]] = []
    others: list[str] = []
    for image in images:
        if not image.is_dir():
            photos.append((image, image.parent))
            continue
        found = list_images(image)
        photos += [(path, image) for path in found.images]
        if found.masks or found.skipped:
            others.append(f"{image}: {found}")
    if not photos:
        find_images(images[0])
    return photos, others


def _print_line(result: "FileScore", _: Path | None) -> None:
    if result.error is not None:
        click.echo(one_line(f"Error: {result.error}"), err=True)
    else:
        relative = "–" if result.relative is None else f"{result.relative:.2f}"
        decision = "anomaly" if result.is_anomaly else "normal "
        click.echo(f"{result.score:12.6g}  {relative:>6}  {decision}  {one_line(str(result.path))}")


def _print_json(result: "FileScore", overlay: Path | None) -> None:
    values: dict[str, Any] = {"score": result.score, "is_anomaly": result.is_anomaly, "relative": result.relative}
    if overlay is not None:
        values["map"] = str(overlay)
    if result.error is not None:
        values = {"error": result.error}
    print_json({"path": str(result.path)} | values)


def _csv_printer(with_maps: bool) -> "Callable[[FileScore, Path | None], None]":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*COLUMNS, "map"] if with_maps else COLUMNS)

    def print_row(result: "FileScore", overlay: Path | None) -> None:
        row = [result.path, *(getattr(result, column) for column in COLUMNS[1:])]
        writer.writerow([*row, overlay] if with_maps else row)

    return print_row
