"""``kdgan-compress pictures``."""

from pathlib import Path

import click

from kdgan_compress.cli.options import data_root_option, json_option, own_code_option
from kdgan_compress.cli.output import print_report


@click.command()
@click.option("--model", required=True, metavar="RUN|FILE", help="A run folder or model file.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: the model's folder]")
@data_root_option
@own_code_option
@json_option
def pictures(model: str, out: Path | None, data_root: str | None, as_json: bool) -> None:
    """Plot reconstructions, neighbours in latent space and, for cvgad, samples of each cluster.

    \b
    kdgan-compress pictures --model runs/teacher
    """
    from kdgan_compress.api.pictures import pictures as run_pictures

    paths = run_pictures(model, out, data_root)
    written = [path for path in vars(paths).values() if path is not None]
    print_report(paths, as_json, lambda _: click.echo("\n".join(written)))
