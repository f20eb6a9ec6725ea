"""The teacher cache: a frozen teacher's features of every training image, computed once and stored as rows.

It needs a teacher that is not trained, computes nothing at random, and whose features of an image do not depend on the
batch: every step, epoch and student would compute the same again.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.precision import precision_context
from kdgan_compress.distillation.step import Targets
from kdgan_compress.distillation.train_state import frozen
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, normalize_images
from kdgan_compress.gans.objective import Outputs

CacheDtype = Literal["float32", "float16"]
DTYPES: dict[CacheDtype, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
CACHE_BATCH_SIZE = 64
CACHE_FORMAT_VERSION = 1
"""Version of the rows; raised where the same teacher and images would give other ones."""

CACHE_RTOL = 1e-4
"""Largest difference, relative to the largest value, that the order of additions may cause."""


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """A teacher's features of the images of one data set; called as ``distillation.step.Targets``.

    Attributes:
        rows: (N, D): all features of an image in one row, in memory or mapped from a file.
        shapes: Each feature's shape for one image, in the order of the columns.
    """

    rows: Tensor
    shapes: Mapping[str, tuple[int, ...]]

    def __call__(self, images: Tensor, indices: Tensor) -> Outputs:
        """The features of images by their indices (B,): each (B, ...)."""
        return self.split(self.rows[indices])

    def split(self, rows: Tensor) -> Outputs:
        """Rows (B, D) as features by name, each (B, ...)."""
        columns = rows.to(torch.get_default_dtype()).split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {
            name: part.reshape(-1, *shape) for (name, shape), part in zip(self.shapes.items(), columns, strict=True)
        }


def stacked_targets(members: Sequence[Targets]) -> Targets:
    """The targets of a fleet from one cache per member: features of all members' samples in turn, (B · K, ...).

    Raises:
        KdganError: One is not a cache, or the caches differ in their features.
    """
    caches = [targets for targets in members if isinstance(targets, TeacherCache)]
    if len(caches) < len(members):
        raise KdganError(
            "In a fleet, stored targets are teacher caches",
            f"got {', '.join(sorted({type(targets).__name__ for targets in members}))}",
            "Train these one after the other",
        )
    for cache in caches:
        if list(cache.shapes.items()) != list(caches[0].shapes.items()):
            raise KdganError(
                "Teachers of a fleet differ in their taps",
                f"got {dict(caches[0].shapes)} and {dict(cache.shapes)}",
                "Distil from those that differ one after the other",
            )

    def targets(images: Tensor, indices: Tensor) -> Outputs:
        columns = zip(caches, indices.unbind(1), strict=True)
        return caches[0].split(torch.stack([cache.rows[column] for cache, column in columns], 1).flatten(0, 1))

    return targets


def cache_key(teacher: Gan, images: Tensor, k_l: DistillationLoss, dtype: CacheDtype) -> str:
    """The SHA-256 of everything that the rows depend on: weights, taps, images and preparation (64 hex digits)."""
    kind = type(teacher.generator)
    taps = sorted(k_l.taps(teacher).items())
    header = CACHE_FORMAT_VERSION, dtype, k_l.re_encodes, f"{kind.__module__}.{kind.__qualname__}", taps
    digest = hashlib.sha256(repr(header).encode())
    for name, tensor in [*teacher.generator.state_dict().items(), ("images", images)]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def cache_shapes(teacher: Gan, images: Tensor, k_l: DistillationLoss) -> dict[str, tuple[int, ...]]:
    """Each feature's shape for one image.

    Raises:
        KdganError: The teacher's features are random, or depend on the other images of a batch.
    """
    with (
        torch.random.fork_rng(devices=[]),  # a random teacher must not change the training's random state
        torch.no_grad(),
        precision_context("float32", images.device.type),
        frozen(teacher),
        FeatureHooks(teacher.generator, k_l.taps(teacher)) as hooks,
    ):
        first, again = (k_l.add_reencoded_z2(hooks(normalize_images(images[:8])), hooks) for _ in range(2))
        single = k_l.add_reencoded_z2(hooks(normalize_images(images[:1])), hooks)
    for name, feature in first.items():
        tolerance = CACHE_RTOL * float(feature.abs().max())
        for other, reason in (
            (again[name], "differs from one pass to the next"),
            (single[name], "depends on the batch"),
        ):
            if float((feature[: len(other)] - other).abs().max()) > tolerance:
                raise KdganError(
                    "Only a teacher whose features of an image are always the same can be cached",
                    f"{name} {reason}",
                    "Disable the cache (--cache off)",
                )
    return {name: tuple(feature.shape[1:]) for name, feature in first.items()}


def cache_size_bytes(shapes: Mapping[str, tuple[int, ...]], num_images: int, dtype: CacheDtype) -> int:
    """Size of the rows of a data set."""
    return num_images * sum(map(math.prod, shapes.values())) * DTYPES[dtype].itemsize


def teacher_rows(teacher: Gan, images: Tensor, k_l: DistillationLoss, dtype: CacheDtype) -> Iterator[Tensor]:
    """Rows of all images in their order, (≤ 64, D) at a time, on the CPU."""
    with (
        torch.no_grad(),
        precision_context("float32", images.device.type),
        frozen(teacher),
        FeatureHooks(teacher.generator, k_l.taps(teacher)) as hooks,
    ):
        for batch in images.split(CACHE_BATCH_SIZE):
            features = k_l.add_reencoded_z2(hooks(normalize_images(batch)), hooks)
            rows = torch.cat([feature.flatten(1) for feature in features.values()], dim=1).to(DTYPES[dtype]).cpu()
            if not bool(rows.isfinite().all()):
                raise KdganError(
                    f"A teacher's features must be finite in {dtype} to be cached",
                    f"the largest is {max(float(feature.abs().max()) for feature in features.values()):.3g}",
                    "Choose --cache-dtype float32, or another teacher",
                )
            yield rows
