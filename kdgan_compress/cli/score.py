"""``kdgan-compress score``: what the device does, so nothing here imports torch."""

from pathlib import Path

import click

from kdgan_compress.cli.output import print_json


@click.command()
@click.argument("detector", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--threshold", type=float, help="Scores above it are anomalies.  [default: the detector's own]")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image, on a line of its own.")
@click.pass_context
def score(
    context: click.Context,
    /,
    detector: Path,
    images: tuple[Path, ...],
    threshold: float | None,
    threads: int,
    as_json: bool,
) -> None:
    """Score image files, or all images below folders, with an exported DETECTOR; a line an image.

    \b
    kdgan-compress score student.onnx photo.jpg more_photos/
    """
    from kdgan_compress.errors import KdganError
    from kdgan_compress.images import find_images
    from kdgan_compress.runtime import Detector

    opened = Detector(detector, threads, threshold)
    paths = [path for given in images for path in (find_images(given) if given.is_dir() else [given])]
    num_failed = 0
    for path in paths:
        try:
            value, is_anomaly = opened.score_file(path)
        except KdganError as error:
            num_failed += 1
            if as_json:
                print_json({"path": str(path), "error": str(error)})
            else:
                click.echo(f"Error: {error}", err=True)
            continue
        if as_json:
            print_json({"path": str(path), "score": value, "is_anomaly": is_anomaly})
        else:
            click.echo(f"{value:12.6g}  {'anomaly' if is_anomaly else 'normal '}  {path}")
    if num_failed:
        context.exit(1)
