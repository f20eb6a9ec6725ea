"""A generator with its fitted statistic and, for photos, its grid of tiles: the module that is scored and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

    from kdgan_compress.data.tiles import TileGrid
    from kdgan_compress.scores.settings import Features, PhotoScore
    from kdgan_compress.scores.statistics import Statistic

TOP_FRACTION = 0.05


class FittedScorer(nn.Module):
    """Scores images, or photos cut into tiles, with a statistic of the generator's latent codes.

    Args:
        generator: With a method ``latents``: images (B, C, S, S) → z1 and z2, (B, latent) each. Without a statistic, it
            needs ``anomaly_score`` only.
        statistic: None scores each tile by the generator's own ``anomaly_score``.
        features: What the statistic was fitted to.
        grid: How photos are cut into tiles; None for images of the network's size.
        photo: How a photo's score follows from its tiles' scores.
    """

    def __init__(
        self,
        generator: nn.Module,
        statistic: Statistic | None,
        features: Features = "latents",
        grid: TileGrid | None = None,
        photo: PhotoScore = "max",
    ) -> None:
        super().__init__()
        self.generator = generator
        self.statistic = statistic
        self.features = features
        self.grid = grid
        self.photo = photo

    def tile_features(self, images: Tensor) -> Float[Tensor, "B P D"]:
        """The features of each tile of images in [−1, 1]: (B, C, S, S), or photos (B, C, H, W) with a grid."""
        return self._by_tile(images, lambda tiles: features_of(self.generator, tiles, self.features))

    def tile_scores(self, images: Tensor) -> Float[Tensor, "B P"]:
        """The score of each tile."""
        if self.statistic is None:
            return self._by_tile(images, self.generator.anomaly_score)
        statistic = self.statistic
        projected = self._by_tile(
            images, lambda tiles: statistic.project(features_of(self.generator, tiles, self.features))
        )
        return statistic.distance(projected)

    def anomaly_score(self, images: Tensor) -> Tensor:
        """Scores (B,) of images or photos in [−1, 1]; higher is more anomalous."""
        return photo_score(self.tile_scores(images), self.photo)

    def anomaly_map(self, photos: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
        """Where photos are anomalous, in units of the score: bilinear between the centres of tiles.

        The photos need a grid.
        """
        assert self.grid is not None
        return self.grid.map(self.tile_scores(photos))

    def _by_tile(self, images: Tensor, compute: Any) -> Tensor:
        """``compute`` of all tiles in one batch, with the tiles of an image side by side: (B, P, …)."""
        if self.grid is None:
            alone: Tensor = compute(images)
            return alone.unsqueeze(1)
        values: Tensor = compute(self.grid.cut(images).flatten(0, 1))
        by_tile: Tensor = values.unflatten(0, (-1, self.grid.num_tiles))
        return by_tile


def input_size(scorer: nn.Module, image_size: int) -> tuple[int, int]:
    """Height and width of the images that a module scores: the frame of its tiles, or the network's image size."""
    grid: TileGrid | None = getattr(scorer, "grid", None)
    return (image_size, image_size) if grid is None else grid.frame


def features_of(generator: nn.Module, images: Tensor, features: Features) -> Float[Tensor, "B D"]:
    """The features of images in [−1, 1]: z1 − z2, or [z1; z2]."""
    z1, z2 = generator.latents(images)  # type: ignore[operator]
    return z1 - z2 if features == "residual" else torch.cat([z1, z2], dim=1)


def photo_score(tile_scores: Float[Tensor, "B P"], photo: PhotoScore) -> Tensor:
    """A photo's score (B,): the maximum over its tiles, or the mean of the highest 5 % (at least one)."""
    if photo == "max":
        return tile_scores.amax(1)
    number = max(1, round(TOP_FRACTION * tile_scores.shape[1]))
    top: Tensor = tile_scores.topk(number, dim=1).values
    return top.mean(1)
