"""``kdgan-compress train``."""

from pathlib import Path
from typing import Any

import click

from kdgan_compress.cli.options import (
    PROTOCOL_OPTIONS,
    data_option,
    forbid_beside_resume,
    normals_option,
    protocol_options,
    training_changes,
    training_options,
    with_seeds,
)
from kdgan_compress.cli.output import finish, print_fleet, print_run, progress_display


@click.command()
@data_option
@normals_option
@protocol_options
@click.option("--family", help="ede, ed, ed_ehat or cvgad.  [default: the recipe's]")
@click.option("--image-channels", type=click.Choice(["1", "3"]), help="Grey or RGB; the data's own if not given.")
@click.option("--image-size", type=int, help="Side in pixels, a power of two from 16 up.")
@click.option("--latent", type=int, help="Length of z1 and z2.")
@click.option("--num-clusters", type=int, help="cvgad: K, how many kinds of normal images there are.")
@click.option("--norm", type=click.Choice(["instance", "batch"]), help="Whose statistics normalise an image.")
@training_options
@click.pass_context
def train(
    context: click.Context,
    /,
    data: str | None,
    normal: list[str] | None,
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
    fleet: int | None,
    **options: Any,
) -> None:
    """Train a GAN on normal images: a teacher, or a student alone. Of several classes or seeds, all at once.

    \b
    kdgan-compress train --data mnist --normal 5 --out runs/teacher
    kdgan-compress train --data folder:photos --out runs/teacher
    kdgan-compress train --data mnist --normal 0..9 --out runs/teachers
    kdgan-compress train --recipe cvgad --data fashion-mnist --normal sneaker --protocol gpnd-5fold --trial 2
    """
    from kdgan_compress.api.train import resume_train, resume_train_fleet, train_fleet
    from kdgan_compress.api.train import train as run_train
    from kdgan_compress.experiment.recipe import load_recipe

    if resume is not None:
        forbid_beside_resume(context)
        finish(resume, resume_train, resume_train_fleet, fleet=fleet, track_auc=track_auc, as_json=as_json)
        return
    protocol = {name: options.pop(name) for name in PROTOCOL_OPTIONS}
    seeds = options.pop("seed")
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
    normals: list[str | None] = [*normal] if normal else [None]
    chosen = [
        seeded.model_copy(update={"data": seeded.data.override(data, one, data_root, **protocol)})
        for one in normals
        for seeded in with_seeds(changed, seeds, "training")
    ]
    with progress_display() as show:
        if len(chosen) > 1:
            several = train_fleet(chosen, out or "runs", fleet=fleet, track_auc=track_auc, show_progress=show)
            print_fleet(several, as_json)
        else:
            print_run(run_train(chosen[0], out, track_auc=track_auc, show_progress=show), as_json)
