"""Pictures of a model's view of test images: reconstructions, nearest neighbours in latent space, cluster samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from kdgan_compress.data import Split, load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import encode, reconstruct, score_images
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model, model_path
from kdgan_compress.gans import Gan
from kdgan_compress.gans.cvgad import Generator as CvgadGenerator
from kdgan_compress.reports import ImageRow, Reconstruction, plot_reconstructions, plot_rows

NUM_PER_KIND = 6
NUM_QUERIES, NUM_NEIGHBOURS = 6, 10
MAX_CLUSTERS, NUM_CLUSTER_SAMPLES = 10, 12
CLUSTER_SAMPLE_STD = 0.5
"""Spread of a cluster's samples around its mean, in standard deviations of q(z|y)."""


@dataclass(frozen=True)
class Pictures:
    """Paths of the PNG files.

    Attributes:
        reconstructions: Inputs, reconstructions and scores of normal and anomalous test images.
        neighbours: Test images with their nearest and farthest images in latent space (CVGAD's Fig. 7).
        clusters: Images decoded near each learnable mean (its Fig. 6); None for a model without clusters.
    """

    reconstructions: str
    neighbours: str
    clusters: str | None


def pictures(model: str | Path, out: str | Path | None = None, data_root: str | None = None) -> Pictures:
    """Plot reconstructions, neighbours in latent space and cluster samples of a model.

    Args:
        model: A run folder or model file.
        out: Output folder; None for the model's folder.
        data_root: Where named data sets are now.

    Raises:
        KdganError: The model or its data can't be read, it scores tiles, or there are fewer than two test images.
    """
    checkpoint = load_model(model)
    if checkpoint.grid is not None:
        hint = "Draw its anomaly maps: kdgan-compress evaluate --maps DIR"
        raise KdganError("Pictures need a model of whole images", f"{model} scores photos by tiles", hint)
    folder = Path(out) if out else model_path(model).parent
    settings = checkpoint.data.relocate(None, data_root)
    split = load_split(settings, checkpoint.architecture.image_size, checkpoint.architecture.image_channels)
    if len(split.test) < 2:
        found = f"found {len(split.test)} in {settings.name}"
        raise KdganError("Pictures need at least two test images", found, "Add some to the folder's test/good")
    gan = checkpoint.build()
    paths = Pictures(
        reconstructions=str(folder / "reconstructions.png"),
        neighbours=str(folder / "neighbours.png"),
        clusters=str(folder / "clusters.png") if isinstance(gan.generator, CvgadGenerator) else None,
    )
    _plot_reconstructions(checkpoint, gan, split, settings.name, Path(paths.reconstructions))
    _plot_neighbours(gan, split, Path(paths.neighbours))
    if paths.clusters is not None:
        _plot_clusters(cast("CvgadGenerator", gan.generator), Path(paths.clusters))
    return paths


def _plot_reconstructions(checkpoint: Checkpoint, gan: Gan, split: Split, title: str, path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(split.test_is_anomalous == kind) for kind in (False, True)]
    chosen = np.concatenate([_sample_indices(kind, rng) for kind in kinds])
    images = split.test[chosen]
    classes = [f"{split.test_classes[i]}{'*' if split.test_is_anomalous[i] else ''}" for i in chosen]
    row = Reconstruction(
        "x̂", reconstruct(gan, images), score_images(checkpoint.scorer(), images), checkpoint.required_threshold
    )
    plot_reconstructions(images, classes, [row], f"{title}: * is anomalous, red is above the threshold", path)


def _plot_neighbours(gan: Gan, split: Split, path: Path) -> None:
    codes = encode(gan, split.test)
    num_neighbours = min(NUM_NEIGHBOURS, len(codes) - 1)
    queries = _sample_indices(np.arange(len(codes)), np.random.default_rng(0))[:NUM_QUERIES]
    rows = []
    for query in queries:
        order = (codes - codes[query]).square().sum(1).argsort()
        order = order[order != query]
        nearest, farthest = order[:num_neighbours], order[len(order) - num_neighbours :]
        groups = (split.test[query][None], split.test[nearest], split.test[farthest])
        rows.append(ImageRow(str(split.test_classes[query]), [group.float() / 255 for group in groups]))
    plot_rows(rows, ["test", "nearest in latent space, nearest first", "farthest, farthest last"], path)


def _plot_clusters(generator: CvgadGenerator, path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    rows = []
    noise = CLUSTER_SAMPLE_STD * torch.randn(NUM_CLUSTER_SAMPLES, generator.means.shape[1], generator=rng)
    with torch.no_grad():
        for number, mean in enumerate(generator.means[:MAX_CLUSTERS]):
            images = [(generator.decoder(codes) + 1) / 2 for codes in (mean[None], mean + noise)]
            rows.append(ImageRow(f"mean {number}", images))
    plot_rows(rows, ["mean", f"samples at {CLUSTER_SAMPLE_STD:g} σ around it"], path)


def _sample_indices(indices: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(rng.permutation(indices)[:NUM_PER_KIND])
