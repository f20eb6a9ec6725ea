"""``kdgan-compress train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import (
    PROTOCOL_OPTIONS,
    data_option,
    load_families,
    normals_option,
    protocol_options,
    reject_options_with_resume,
    tile_changes,
    tile_options,
    training_changes,
    training_options,
    with_seeds,
)
from kdgan_compress.cli.output import print_result, progress_display

if TYPE_CHECKING:
    from kdgan_compress.experiment.runner import RunOptions


@click.command()
@data_option
@normals_option
@protocol_options
@click.option("--family", callback=load_families, help="ede, ed, ed_ehat, cvgad, or own code: mygan:build.")
@click.option("--image-channels", type=click.Choice(["1", "3"]), help="Grey or RGB; by default as the data.")
@click.option("--image-size", type=int, help="Side in pixels, a power of two ≥ 16.")
@click.option("--latent", type=int, hidden=True, help="Length of z1 and z2.")
@tile_options
@click.option("--num-clusters", type=int, hidden=True, help="cvgad: number of kinds of normal images.")
@click.option("--norm", type=click.Choice(["instance", "batch"]), help="Normalisation layer.")
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
    tile: int | str | None,
    photo_size: int | None,
    score: str | None,
    recipe: str | None,
    settings: tuple[dict[str, Any], ...],
    out: Path | None,
    resume: Path | None,
    track_auc: bool,
    raw: bool,
    as_json: bool,
    fleet: int | None,
    **options: Any,
) -> None:
    """Train a GAN on normal images: a teacher, or a student from scratch.

    \b
    kdgan-compress train --data folder:photos --out runs/teacher
    kdgan-compress train --data mnist --normal 0..9 --out runs/teachers
    """
    from kdgan_compress.api.resume import resume as resume_runs
    from kdgan_compress.api.train import train as run_train
    from kdgan_compress.experiment.recipe import load_recipe

    runner: RunOptions = {"fleet_size": fleet, "track_auc": track_auc, "raw": raw}
    if resume is not None:
        reject_options_with_resume(context)
        with progress_display() as runner["show_progress"]:
            result = resume_runs(resume, "train", **runner)
        print_result(result, as_json)
        return
    protocol = {name: options.pop(name) for name in PROTOCOL_OPTIONS}
    seeds = options.pop("seed")
    channels, training = training_changes(**options)
    model = channels | {
        "family": family,
        "image_channels": int(image_channels) if image_channels else None,
        "image_size": tile if isinstance(tile, int) else image_size,
        "latent_size": latent,
        "norm": norm,
        "num_clusters": num_clusters,
    }
    changes = {"model": model, "training": training, "data": tile_changes(tile, photo_size), "score": {"type": score}}
    changed = load_recipe(recipe or "default").replace(*settings, changes)
    normals: list[str | None] = [*normal] if normal else [None]
    recipes = [
        seeded.model_copy(update={"data": seeded.data.override(data, one, data_root, **protocol)})
        for one in normals
        for seeded in with_seeds(changed, seeds, "training")
    ]
    chosen: Any = recipes if len(recipes) > 1 else recipes[0]
    with progress_display() as runner["show_progress"]:
        result = run_train(chosen, out, **runner)
    print_result(result, as_json)
