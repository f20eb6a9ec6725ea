"""A generator with its fitted statistic and, for photos, its grid of tiles: the module that is scored and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdgan_compress.gans.gan import anomaly_score

if TYPE_CHECKING:
    from jaxtyping import Float

    from kdgan_compress.data.tiles import TileGrid
    from kdgan_compress.scores.settings import Features, PhotoScore
    from kdgan_compress.scores.statistics import Statistic

TOP_FRACTION = 0.05
DISCRIMINATOR_POSITIONS = 16
"""4×4 positions of an image or tile."""


class FittedScorer(nn.Module):
    """Scores images, or photos cut into tiles, with a statistic of the latent codes or of the discriminator's features.

    Args:
        generator: With a method ``latents``: images (B, C, S, S) → z1 and z2, (B, latent) each. Without a statistic, it
            needs ``anomaly_score`` only. For features of the discriminator, the discriminator, with a method
            ``position_features``: images → (B, 16, D).
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

    def position_features(self, images: Tensor) -> Float[Tensor, "B P D"]:
        """The features at each position of images in [−1, 1]: (B, C, S, S), or photos (B, C, H, W) with a grid.

        Positions are tiles or, of the discriminator, 16 for each tile.
        """
        return self._by_position(images, lambda tiles: features_of(self.generator, tiles, self.features))

    def tile_scores(self, images: Tensor) -> Float[Tensor, "B T"]:
        """The score of each tile."""
        if self.statistic is None:
            return self._by_tile(images, lambda tiles: anomaly_score(self.generator, tiles))
        statistic = self.statistic
        projected = self._by_position(
            images, lambda tiles: statistic.project(features_of(self.generator, tiles, self.features))
        )
        return by_tile(statistic.distance(projected), self.features)

    def anomaly_score(self, images: Tensor) -> Tensor:
        """Scores (B,) of images or photos in [−1, 1]; higher is more anomalous."""
        return photo_score(self.tile_scores(images), self.photo)

    def anomaly_map(self, photos: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
        """Where photos are anomalous, in units of the score: bilinear between the centres of tiles.

        The photos need a grid.
        """
        assert self.grid is not None
        return self.grid.map(self.tile_scores(photos))

    def _by_position(self, images: Tensor, compute: Any) -> Tensor:
        """``compute`` of all tiles in one batch, with the positions of an image side by side: (B, P, …)."""
        values = self._by_tile(images, compute)
        return values.flatten(1, 2) if self.features == "discriminator" else values

    def _by_tile(self, images: Tensor, compute: Any) -> Tensor:
        """``compute`` of all tiles in one batch, with the tiles of an image side by side: (B, T, …)."""
        if self.grid is None:
            alone: Tensor = compute(images)
            return alone.unsqueeze(1)
        values: Tensor = compute(self.grid.cut(images).flatten(0, 1))
        by_image: Tensor = values.unflatten(0, (-1, self.grid.num_tiles))
        return by_image


def input_size(scorer: nn.Module, image_size: int) -> tuple[int, int]:
    """Height and width of the images that a module scores: the frame of its tiles, or the network's image size."""
    grid: TileGrid | None = getattr(scorer, "grid", None)
    return (image_size, image_size) if grid is None else grid.frame


def features_of(network: nn.Module, images: Tensor, features: Features) -> Float[Tensor, "B *P D"]:
    """The features of images in [−1, 1]: z1 − z2 or [z1; z2], (B, D), or the discriminator's at 16 positions."""
    if features == "discriminator":
        positions: Tensor = network.position_features(images)  # type: ignore[operator]
        return positions
    z1, z2 = network.latents(images)  # type: ignore[operator]
    return z1 - z2 if features == "residual" else torch.cat([z1, z2], dim=1)


def by_tile(position_scores: Float[Tensor, "B P"], features: Features) -> Float[Tensor, "B T"]:
    """Scores of tiles: of the discriminator, the mean over a tile's 16 positions; else each position is a tile."""
    if features != "discriminator":
        return position_scores
    means: Tensor = position_scores.unflatten(1, (-1, DISCRIMINATOR_POSITIONS)).mean(2)
    return means


def photo_score(tile_scores: Float[Tensor, "B P"], photo: PhotoScore) -> Tensor:
    """A photo's score (B,): the maximum over its tiles, or the mean of the highest 5 % (at least one)."""
    if photo == "max":
        return tile_scores.amax(1)
    number = max(1, round(TOP_FRACTION * int(tile_scores.shape[1])))
    top: Tensor = tile_scores.topk(number, dim=1).values
    return top.mean(1)
