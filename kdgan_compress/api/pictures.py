"""Pictures of what a model makes of test images: reconstructions, neighbours in its latent space, its clusters."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.data import Split, load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import encode, reconstruct, score_images
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model, model_path
from kdgan_compress.gans import Gan
from kdgan_compress.gans.cvgad import Generator as CvgadGenerator
from kdgan_compress.reports import Reconstruction, Row, plot_reconstructions, plot_rows

NUM_OF_A_KIND = 6
NUM_QUERIES, NUM_NEIGHBOURS = 6, 10
MOST_CLUSTERS, NUM_SAMPLES = 10, 12
NEAR = 0.5
"""Samples of a cluster are drawn at this many standard deviations of q(z|y) from its mean."""


@dataclass(frozen=True)
class Pictures:
    """What was drawn.

    Attributes:
        reconstructions: Inputs, reconstructions and scores of normal and novel test images.
        neighbours: Test images with those nearest and farthest in latent space (CVGAD's Fig. 7).
        clusters: Images decoded near each learnable mean (its Fig. 6); None where the model has no clusters.
    """

    reconstructions: str
    neighbours: str
    clusters: str | None


def pictures(model: str | Path, out: str | Path | None = None, data_root: str | None = None) -> Pictures:
    """Draw a model's pictures.

    Args:
        model: A run folder or model file.
        out: The folder to write to; None for the model's own.
        data_root: Where named sets are now.

    Raises:
        KdganError: The model or its data can't be read, or there are fewer than two test images.
    """
    checkpoint = load_model(model)
    folder = Path(out) if out else model_path(model).parent
    settings = checkpoint.data.override(None, None, data_root)
    split = load_split(settings, checkpoint.architecture.image_size, checkpoint.architecture.image_channels)
    if len(split.test) < 2:
        found = f"found {len(split.test)} in {settings.name}"
        raise KdganError("Pictures must have at least two test images", found, "Add some to a folder's test/good")
    gan, title = checkpoint.build(), settings.name
    made = Pictures(
        reconstructions=str(folder / "reconstructions.png"),
        neighbours=str(folder / "neighbours.png"),
        clusters=str(folder / "clusters.png") if isinstance(gan.generator, CvgadGenerator) else None,
    )
    _draw_reconstructions(checkpoint, gan, split, title, Path(made.reconstructions))
    _draw_neighbours(gan, split, Path(made.neighbours))
    if made.clusters is not None:
        _draw_clusters(cast("CvgadGenerator", gan.generator), Path(made.clusters))
    return made


def _draw_reconstructions(checkpoint: Checkpoint, gan: Gan, split: Split, title: str, path: Path) -> None:
    generator = np.random.default_rng(0)
    chosen = np.concatenate(
        [_draw(np.flatnonzero(split.test_is_anomalous == kind), generator) for kind in (False, True)]
    )
    images = split.test[chosen]
    classes = [f"{split.test_classes[i]}{'*' if split.test_is_anomalous[i] else ''}" for i in chosen]
    row = Reconstruction("x̂", reconstruct(gan, images), score_images(gan.generator, images), checkpoint.threshold)
    plot_reconstructions(images, classes, [row], f"{title}: * is novel, red is called an anomaly", path)


def _draw_neighbours(gan: Gan, split: Split, path: Path) -> None:
    codes = encode(gan, split.test)
    count = min(NUM_NEIGHBOURS, len(codes) - 1)
    queries = _draw(np.arange(len(codes)), np.random.default_rng(0))[:NUM_QUERIES]
    rows = []
    for query in queries:
        order = (codes - codes[query]).square().sum(1).argsort()
        order = order[order != query]
        groups = (split.test[query][None], split.test[order[:count]], split.test[order[len(order) - count :]])
        rows.append(Row(str(split.test_classes[query]), [group.float() / 255 for group in groups]))
    plot_rows(rows, ["test", "nearest in latent space, nearest first", "farthest, farthest last"], path)


def _draw_clusters(generator: CvgadGenerator, path: Path) -> None:
    noise = NEAR * torch.randn(NUM_SAMPLES, generator.means.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = [
            Row(f"mean {number}", [_unit(generator.decoder(mean[None])), _unit(generator.decoder(mean + noise))])
            for number, mean in enumerate(generator.means[:MOST_CLUSTERS])
        ]
    plot_rows(rows, ["mean", f"codes drawn {NEAR:g} σ around it"], path)


def _unit(images: Tensor) -> Tensor:
    return (images + 1) / 2


def _draw(indices: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(generator.permutation(indices)[:NUM_OF_A_KIND])
