"""``kdgan-compress train``."""

from pathlib import Path
from typing import Any

import click

from kdgan_compress.cli.options import (
    PROTOCOL_OPTIONS,
    data_option,
    forbid_beside_resume,
    normal_option,
    protocol_options,
    training_changes,
    training_options,
)
from kdgan_compress.cli.output import print_run, progress_display


@click.command()
@data_option
@normal_option
@protocol_options
@click.option("--family", help="ede, ed, ed_ehat or cvgad.  [default: the recipe's]")
@click.option("--image-channels", type=click.Choice(["1", "3"]), help="Grey or RGB; the data's own if not given.")
@click.option("--image-size", type=int, help="Side in pixels, a power of two from 16 up.")
@click.option("--latent", type=int, help="Length of z1 and z2.")
@click.option("--num-clusters", type=int, help="cvgad: K, how many kinds of normal images there are.")
@click.option("--norm", type=click.Choice(["per_image", "batch"]), help="Whose statistics normalise an image.")
@training_options
@click.pass_context
def train(
    context: click.Context,
    /,
    data: str | None,
    normal: str | None,
    data_root: str | None,
    family: str | None,
    image_channels: str | None,
    image_size: int | None,
    latent: int | None,
    norm: str | None,
    num_clusters: int | None,
    recipe: str | None,
    settings: tuple[dict[str, Any], ...],
    out: Path | None,
    resume: Path | None,
    track_auc: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a GAN on normal images: a teacher, or a student alone.

    \b
    kdgan-compress train --data mnist --normal 5 --out runs/teacher
    kdgan-compress train --data folder:photos --out runs/teacher
    kdgan-compress train --recipe cvgad --data fashion-mnist --normal sneaker --protocol gpnd-5fold --trial 2
    """
    from kdgan_compress.recipe import load_recipe
    from kdgan_compress.workflows.train import resume_train
    from kdgan_compress.workflows.train import train as run_train

    if resume is not None:
        forbid_beside_resume(context)
        with progress_display() as show:
            print_run(resume_train(resume, track_auc=track_auc, show_progress=show), as_json)
        return
    protocol = {name: options.pop(name) for name in PROTOCOL_OPTIONS}
    plan, training = training_changes(**options)
    model = {
        "family": family,
        "image_channels": int(image_channels) if image_channels else None,
        "image_size": image_size,
        "latent_size": latent,
        "norm": norm,
        "num_clusters": num_clusters,
    }
    changed = load_recipe(recipe or "default").replace(*settings, {"model": plan | model, "training": training})
    source = changed.data.override(data, normal, data_root, **protocol)
    with progress_display() as show:
        result = run_train(changed.model_copy(update={"data": source}), out, track_auc=track_auc, show_progress=show)
    print_run(result, as_json)
