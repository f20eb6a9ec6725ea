"""Losses that compare relations between values instead of the values: further terms of K_l (``distillation.terms``).

Attention transfer and FSP compare relations within one image: between positions, and between two layers. RKD and SP
compare relations between the images of a batch. They return one value per image whose mean is the loss of the batch,
and take sample weights: images of weight 0 (a fleet's padding) have no relations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, normalize, smooth_l1_loss

from kdgan_compress.errors import KdganError
from kdgan_compress.losses.distances import Distance, check_same_shape, flatten_samples, l2, mean_per_sample

if TYPE_CHECKING:
    from jaxtyping import Float

EPS = 1e-12

MIN_RELATIVE_LENGTH = 1e-4
"""Images closer than this fraction of the mean distance count as equal, so that rounding gives no direction."""


def attention(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B D H W"], distance: Distance = "mean"
) -> Float[Tensor, " B"]:
    """Attention transfer (Zagoruyko & Komodakis 2017, Eq. 2): the distance of attention maps, ≥ 0.

    The attention map of an image is Σ_c A_c² over the channels, divided by its L2 norm over the positions. The channels
    may differ. ``"norm"`` is the paper's ‖Q_S − Q_T‖₂, ``"mean"`` the mean of squares as in the authors' code.

    Example:
        >>> maps = torch.tensor([[[[3.0, 0.0]]], [[[0.0, 4.0]]]])  # (2, 1, 1, 2), all attention on one position
        >>> attention(maps, -2 * maps).tolist()
        [0.0, 0.0]
        >>> attention(maps, maps.flip(3)).tolist()
        [1.0, 1.0]

    Raises:
        KdganError: They are not feature maps of one height and width.
    """
    _check_feature_maps(student, teacher)
    if student.shape[2:] != teacher.shape[2:]:
        raise KdganError(
            "Attention maps need one height and width",
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}",
            "Tap layers of one height and width",
        )
    return l2(_attention_map(student), _attention_map(teacher), distance)


def fsp_matrix(first: Float[Tensor, "B M H W"], second: Float[Tensor, "B N h w"]) -> Float[Tensor, "B M N"]:
    """The matrix of the flow of solution procedure (Yim et al. 2017, Eq. 1) between two layers.

    It has the mean over all positions of the product of two channels. The larger map is max-pooled to the other's size.

    Example:
        >>> fsp_matrix(torch.ones(1, 2, 4, 4), torch.full((1, 3, 2, 2), 0.5)).tolist()
        [[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]]

    Raises:
        KdganError: They are not feature maps.
    """
    _check_feature_maps(first, second)
    height, width = (min(sides) for sides in zip(first.shape[2:], second.shape[2:], strict=True))
    first, second = (adaptive_max_pool2d(features, (height, width)) for features in (first, second))
    return first.flatten(2) @ second.flatten(2).transpose(1, 2) / (height * width)


def fsp(
    student_first: Float[Tensor, "B M H W"],
    student_second: Float[Tensor, "B N h w"],
    teacher_first: Float[Tensor, "B M H W"],
    teacher_second: Float[Tensor, "B N h w"],
    distance: Distance = "mean",
) -> Float[Tensor, " B"]:
    """Distance of the FSP matrices of student and teacher (Yim et al. 2017, Eq. 2), ≥ 0.

    ``"norm"`` is the paper's ‖G_S − G_T‖₂², the sum of squares, ``"mean"`` the mean of squares.

    Example:
        >>> ones = torch.ones(1, 2, 4, 4)
        >>> fsp(3 * ones, ones, ones, ones).tolist(), fsp(3 * ones, ones, ones, ones, "norm").tolist()
        ([4.0], [16.0])

    Raises:
        KdganError: They are not feature maps, or teacher and student differ in channels.
    """
    matrices = fsp_matrix(student_first, student_second), fsp_matrix(teacher_first, teacher_second)
    check_same_shape(*matrices)
    squares = (matrices[0] - matrices[1]).square()
    return mean_per_sample(squares) if distance == "mean" else squares.sum((1, 2))


def rkd_distance(
    student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."], sample_weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, " B"]:
    """Distance-wise relational distillation, RKD-D (Park et al. 2019, section 3.2.1), ≥ 0.

    The distance of two images, divided by the mean distance of all pairs, is compared by the Huber loss with δ = 1. The
    mean of the result is the paper's sum over pairs (i, j), divided by B² as in the authors' code.

    Args:
        student: Features of a batch.
        teacher: The teacher's for the same images; any shape.
        sample_weights: Summing to 1, 0 for images without relations; by default 1/B each.

    Example:
        >>> student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [6.0]])
        >>> rkd_distance(student, teacher).tolist()
        [0.0, 0.0, 0.0]

    Raises:
        KdganError: The numbers of images differ.
    """
    weights = _check_batch(student, teacher, sample_weights)
    distances = [_relative_distances(flatten_samples(features), weights) for features in (student, teacher)]
    return smooth_l1_loss(distances[0], distances[1], reduction="none") @ weights


def rkd_angle(
    student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."], sample_weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, " B"]:
    """Angle-wise relational distillation, RKD-A (Park et al. 2019, section 3.2.2), ≥ 0.

    The cosine of the angle at an image between two others is compared by the Huber loss with δ = 1. The mean of the
    result is the paper's sum over triplets, divided by B³ as in the authors' code. It needs memory for B² features.
    Arguments as for ``rkd_distance``.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_angle(corner, 5 - 3 * corner).abs().round(decimals=4).tolist()
        [0.0, 0.0, 0.0]

    Raises:
        KdganError: The numbers of images differ.
    """
    weights = _check_batch(student, teacher, sample_weights)
    cosines = [_cosines(flatten_samples(features), weights) for features in (student, teacher)]
    return smooth_l1_loss(cosines[0], cosines[1], reduction="none") @ weights @ weights


def similarity_preserving(
    student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."], sample_weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, " B"]:
    """Similarity-preserving distillation, SP (Tung & Mori 2019), ≥ 0.

    The dot products of one image with all images of the batch, divided by their L2 norm, are compared by squares. The
    mean of the result is the paper's ‖G_S − G_T‖² / B². Arguments as for ``rkd_distance``.

    Example:
        >>> similarity_preserving(torch.eye(2), torch.ones(2, 3)).mul(100).round().tolist()  # 1 − √½
        [29.0, 29.0]

    Raises:
        KdganError: The numbers of images differ.
    """
    weights = _check_batch(student, teacher, sample_weights)
    similarities = [_similarities(flatten_samples(features), weights) for features in (student, teacher)]
    return (similarities[0] - similarities[1]).square() @ weights


def _attention_map(features: Tensor) -> Tensor:
    return normalize(features.square().sum(1).flatten(1), dim=1, eps=EPS)


def _relative_distances(x: Tensor, weights: Tensor) -> Tensor:
    """(B, B) distances, divided by their mean over pairs of different images."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / _pair_mean(distances, weights).clamp(min=EPS)


def _cosines(x: Tensor, weights: Tensor) -> Tensor:
    """(B, B, B) cosines of the angle at image i between images j and k; 0 where one of them equals i."""
    differences = x - x[:, None]
    lengths = torch.linalg.vector_norm(differences, dim=2)
    shortest = MIN_RELATIVE_LENGTH * _pair_mean(lengths, weights).detach()
    directions = differences / torch.maximum(lengths, shortest.clamp(min=EPS))[..., None]
    return directions @ directions.transpose(1, 2)


def _similarities(x: Tensor, weights: Tensor) -> Tensor:
    """(B, B) dot products, each row divided by its norm."""
    return normalize((x @ x.T) * (weights > 0), dim=1, eps=EPS)


def _pair_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of values (B, B) over pairs of different images; 0 if there are none."""
    pairs = weights[:, None] * weights * (1 - torch.eye(len(values), dtype=values.dtype, device=values.device))
    mean: Tensor = (values * pairs).sum() / pairs.sum().clamp(min=EPS)
    return mean


def _check_feature_maps(*features: Tensor) -> None:
    for feature in features:
        if feature.dim() != 4:
            raise KdganError(
                "Attention transfer and FSP need feature maps (B, C, H, W)",
                f"got {tuple(feature.shape)}",
                "Tap a convolutional layer, such as encoder.features",
            )


def _check_batch(student: Tensor, teacher: Tensor, sample_weights: Tensor | None) -> Tensor:
    """The weights (B,) of the images."""
    if len(student) != len(teacher):
        raise KdganError(
            "Teacher and student need the same images",
            f"got {len(teacher)} and {len(student)} of them",
            "Compute both features from one batch",
        )
    if sample_weights is None:
        return student.new_full((len(student),), 1 / len(student))
    return sample_weights.to(student.dtype)
