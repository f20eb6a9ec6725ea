"""Statistics of normal features as modules: a linear projection, then a distance in the projected space.

The projection is applied to each tile (or image) alone, so it folds into the layers before it on export.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from kdgan_compress.errors import KdganError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float


class Statistic(nn.Module, ABC):
    """A fitted statistic.

    Attributes:
        projection: (D, r), what the features are multiplied by.
        offset: (r,), the projection of their mean, which is subtracted.
    """

    name: ClassVar[str]
    shapes: ClassVar[dict[str, str]] = {"projection": "Dr", "offset": "r"}
    """Buffers and their dimensions; equal letters are equal numbers."""

    projection: Tensor
    offset: Tensor

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name in self.shapes:
            self.register_buffer(name, buffers[name].to(torch.get_default_dtype()))

    def project(self, features: Float[Tensor, "*B D"]) -> Float[Tensor, "*B r"]:
        """The features in the coordinates of the distance."""
        return features @ self.projection - self.offset

    @abstractmethod
    def distance(self, projected: Float[Tensor, "B P r"]) -> Float[Tensor, "B P"]:
        """Scores of P tiles of B images; higher is more anomalous."""

    def forward(self, features: Float[Tensor, "B P D"]) -> Float[Tensor, "B P"]:
        return self.distance(self.project(features))

    def check(self) -> None:
        """Check the statistics.

        Raises:
            KdganError: A value is NaN or infinite, or a covariance is not positive definite.
        """
        sides = dict(zip("Dr", self.projection.shape, strict=False))
        for name, letters in self.shapes.items():
            shape = tuple(getattr(self, name).shape)
            if len(shape) != len(letters) or any(
                sides.setdefault(k, n) != n for k, n in zip(letters, shape, strict=True)
            ):
                hint = "Use a model file that this version wrote"
                raise KdganError("The score's statistics must fit each other", f"{name} has shape {shape}", hint)
        bad = [name for name, value in self.named_buffers() if not torch.isfinite(value).all()]
        if bad:
            hint = "Train or fit again with --resume, or on more images"
            raise KdganError("The score's statistics must be finite", f"found NaN or infinity in {bad[0]}", hint)


class Gaussian(Statistic):
    """Mahalanobis distance ‖W(f − m)‖₂, one Gaussian for all tiles; ``projection`` is Wᵀ."""

    name = "gaussian"

    def distance(self, projected: Float[Tensor, "B P r"]) -> Float[Tensor, "B P"]:
        distance: Tensor = torch.linalg.vector_norm(projected, dim=-1)
        return distance


class PositionGaussian(Statistic):
    """Mahalanobis distance with a Gaussian per grid position, in directions that all positions share.

    The directions are sorted by how much narrower normal features are within a position than overall, and whitening is
    upper triangular, so the first k directions alone are the statistic of rank k (``truncate``).

    Attributes:
        means: (P, r).
        whitening: (P, r, r), upper triangular; the projected features of a position are multiplied by it.
    """

    name = "position-gaussian"
    shapes: ClassVar[dict[str, str]] = Statistic.shapes | {"means": "Pr", "whitening": "Prr"}

    means: Tensor
    whitening: Tensor

    def distance(self, projected: Float[Tensor, "B P r"]) -> Float[Tensor, "B P"]:
        centred = (projected - self.means).transpose(0, 1)
        distance: Tensor = torch.linalg.vector_norm(centred @ self.whitening, dim=-1)
        return distance.transpose(0, 1)

    def truncate(self, rank: int) -> PositionGaussian:
        """The marginal statistic of the first ``rank`` directions."""
        return PositionGaussian(
            projection=self.projection[:, :rank],
            offset=self.offset[:rank],
            means=self.means[:, :rank],
            whitening=self.whitening[:, :rank, :rank],
        )

    def check(self) -> None:
        super().check()
        _check_positive(self.whitening)


class Mixture(Statistic):
    """Negative log-likelihood under K Gaussians on the leading principal components, in nats.

    Attributes:
        means: (K, r).
        whitening: (K, r, r), upper triangular.
        log_weights: (K,), log of weight × normalising constant.
    """

    name = "mixture"
    shapes: ClassVar[dict[str, str]] = Statistic.shapes | {"means": "Kr", "whitening": "Krr", "log_weights": "K"}

    means: Tensor
    whitening: Tensor
    log_weights: Tensor

    def distance(self, projected: Float[Tensor, "B P r"]) -> Float[Tensor, "B P"]:
        num_images, num_tiles, rank = projected.shape
        flat = projected.reshape(1, num_images * num_tiles, rank)
        squares = ((flat - self.means[:, None]) @ self.whitening).square().sum(-1)  # (K, B·P)
        log_likelihood = torch.logsumexp(self.log_weights[:, None] - squares / 2, dim=0)
        return -log_likelihood.reshape(num_images, num_tiles)

    def check(self) -> None:
        super().check()
        _check_positive(self.whitening)


STATISTICS: dict[str, type[Statistic]] = {kind.name: kind for kind in (Gaussian, PositionGaussian, Mixture)}
"""Every kind of statistic by the name that a checkpoint stores."""


def load_statistic(name: str, buffers: Mapping[str, Tensor]) -> Statistic:
    """A statistic from its stored buffers.

    Raises:
        KdganError: An unknown kind, missing buffers, or values that are not a valid statistic.
    """
    kind = STATISTICS.get(name)
    is_float = all(buffer.is_floating_point() for buffer in buffers.values())
    if kind is None or set(kind.shapes) != set(buffers) or not is_float:
        hint = "Use a model file that this version wrote"
        raise KdganError("The model file's score must be a known one", f"got {name} with {sorted(buffers)}", hint)
    statistic = kind(**buffers)
    statistic.check()
    return statistic


def log_determinant_term(whitening: Tensor) -> Tensor:
    """log|W| − (r/2)·log 2π of triangular whitenings (..., r, r): the constant of a Gaussian's log-density."""
    diagonal = torch.diagonal(whitening, dim1=-2, dim2=-1)
    return diagonal.log().sum(-1) - whitening.shape[-1] / 2 * math.log(2 * math.pi)


def _check_positive(whitening: Tensor) -> None:
    if not (torch.diagonal(whitening, dim1=-2, dim2=-1) > 0).all():
        hint = "Train or fit again with --resume, or on more images"
        raise KdganError("The score's covariances must be positive definite", "found one that is not", hint)
