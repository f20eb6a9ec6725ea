"""``kdgan-compress import``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import (
    NUMBERS,
    PROTOCOL_OPTIONS,
    data_option,
    data_root_option,
    json_option,
    normal_option,
    protocol_options,
)
from kdgan_compress.cli.output import percent, print_report

if TYPE_CHECKING:
    from kdgan_compress.api.import_checkpoint import ImportResult


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New run folder.")
@data_option
@normal_option
@protocol_options
@data_root_option
@click.option("--mean", type=NUMBERS, help="Mean of the channels of images in 0 … 1.  [default: the project's]")
@click.option("--std", type=NUMBERS, help="Standard deviation of the channels.  [default: the project's]")
@json_option
def import_checkpoint(checkpoint: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Make a run folder of a GANomaly that another project trained: its public code (netG.pth) or anomalib (.ckpt).

    The data set the threshold, and are what distill and evaluate use. No code in CHECKPOINT is executed.

    \b
    kdgan-compress import netG.pth --data folder:photos --out runs/teacher
    kdgan-compress import model.ckpt --data folder:photos --out runs/teacher
    """
    from kdgan_compress.api.import_checkpoint import import_checkpoint as run_import

    protocol = {name: options.pop(name) for name in PROTOCOL_OPTIONS}
    given = {name: value for name, value in protocol.items() if value is not None}
    print_report(run_import(checkpoint, out, **options, protocol=given), as_json, _print)


def _print(result: "ImportResult") -> None:
    network = result.architecture
    extra = f", {network.extra_layers} extra layers" if network.extra_layers else ""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (result.mean, result.std))
    click.echo(f"recognised     {result.project}: {network.channels_str}, latent {network.latent_size}{extra}")
    click.echo(f"images         {network.image_size}×{network.image_size}, {network.image_channels} channels")
    click.echo(f"normalisation  mean {mean}; std {std}")
    click.echo(f"discriminator  {result.discriminator}")
    if result.missing is not None:
        click.echo(f"missing        {result.missing}")
    else:
        click.echo(f"AUC            {percent(result.auc)}")
        click.echo(f"threshold      {result.threshold:.6g}")
    click.echo(f"run            {result.run}")
