"""The teacher cache: what a frozen teacher says of every training image, computed once and kept, packed.

It is allowed where the teacher neither moves nor draws anything at random, and where what it says of an image does not
depend on the batch: every step, epoch and student would compute the same again.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdgan_compress.distillation.hooks import FeatureHooks
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.distillation.train_state import frozen
from kdgan_compress.errors import KdganError
from kdgan_compress.gans import Gan, normalize_images
from kdgan_compress.gans.objective import Outputs

Chosen = Sequence[Tensor] | Tensor
"""Indices of each member's images: K tensors (B,), or one (K, B)."""

CacheDtype = Literal["float32", "float16"]
DTYPES: dict[CacheDtype, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
BATCH = 64
FORMAT = 1
"""Of rows; raised where the same teacher and images would give other ones."""

SAME = 1e-4
"""Largest difference, relative to the largest number, that the order of additions may make."""


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """A teacher's tapped outputs for the images of one data set.

    Attributes:
        rows: (N, D): z1, x̂ and z2 of an image one after the other, in memory or mapped from a file.
        shapes: Each tap's shape for one image, in the order of the rows.
    """

    rows: Tensor
    shapes: Mapping[str, tuple[int, ...]]


def cacheable_stages(stages: Sequence[Stage]) -> int:
    """How many stages from the first on may be taught by a cache: those before the teacher first trains.

    Raises:
        KdganError: None of them, and why.
    """
    number = next((place for place, stage in enumerate(stages) if stage.loss_set.trains_teacher), len(stages))
    if not any(stage.loss_set.lam > 0 for stage in stages[:number]):
        reason = f"stage {stages[0].name} trains the teacher" if number == 0 else "no teacher is asked before it trains"
        raise KdganError(
            "A teacher's outputs must stay the same to be cached", reason, "Leave the cache out (--cache off)"
        )
    return number


def cache_key(teacher: Gan, images: Tensor, distillation: Distillation, dtype: CacheDtype) -> str:
    """The hash of everything that rows depend on: weights, taps, images and how they are prepared (64 hex digits)."""
    kind, encodes_again = type(teacher.generator), distillation.encodes_again
    about = FORMAT, dtype, encodes_again, f"{kind.__module__}.{kind.__qualname__}", sorted(teacher.taps.items())
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in [*teacher.generator.state_dict().items(), ("images", images)]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def cache_shapes(teacher: Gan, images: Tensor, distillation: Distillation) -> dict[str, tuple[int, ...]]:
    """Each tap's shape for one image.

    Raises:
        KdganError: The teacher's outputs are random, or depend on the other images of a batch.
    """
    with (
        torch.random.fork_rng(devices=[]),  # a random teacher must not move the training's own noise
        torch.no_grad(),
        frozen(teacher),
        FeatureHooks(teacher.generator, teacher.taps) as taps,
    ):
        first, again = (distillation.with_z2(taps(normalize_images(images[:8])), taps) for _ in range(2))
        alone = distillation.with_z2(taps(normalize_images(images[:1])), taps)
    for name, output in first.items():
        tolerance = SAME * float(output.abs().max())
        for other, reason in (
            (again[name], "differs from one pass to the next"),
            (alone[name], "depends on the batch"),
        ):
            if float((output[: len(other)] - other).abs().max()) > tolerance:
                raise KdganError(
                    "A teacher's outputs must be the same for an image every time to be cached",
                    f"{name} {reason}",
                    "Leave the cache out (--cache off)",
                )
    return {name: tuple(output.shape[1:]) for name, output in first.items()}


def cache_size_bytes(shapes: Mapping[str, tuple[int, ...]], num_images: int, dtype: CacheDtype) -> int:
    """What the rows of a data set take."""
    return num_images * sum(map(math.prod, shapes.values())) * DTYPES[dtype].itemsize


def teacher_rows(teacher: Gan, images: Tensor, distillation: Distillation, dtype: CacheDtype) -> Iterator[Tensor]:
    """Rows of all images in their order, some (≤ 64, D) at a time, on the CPU."""
    with torch.no_grad(), frozen(teacher), FeatureHooks(teacher.generator, teacher.taps) as taps:
        for portion in images.split(BATCH):
            outputs = distillation.with_z2(taps(normalize_images(portion)), taps)
            rows = torch.cat([output.flatten(1) for output in outputs.values()], dim=1).to(DTYPES[dtype]).cpu()
            if not bool(rows.isfinite().all()):
                raise KdganError(
                    f"A teacher's outputs must be finite in {dtype} to be cached",
                    f"the largest is {max(float(output.abs().max()) for output in outputs.values()):.3g}",
                    "Choose --cache-dtype float32, or another teacher",
                )
            yield rows


def cached_outputs(caches: Sequence[TeacherCache], chosen: Chosen) -> Outputs:
    """The teachers' outputs for a step.

    Args:
        caches: One a member.
        chosen: Indices of each member's images, all (B,).

    Returns:
        Each tap as the teacher, or the fleet of teachers, would give it: (B, K · n, …).
    """
    shapes = caches[0].shapes
    for cache in caches:
        if list(cache.shapes.items()) != list(shapes.items()):
            raise KdganError(
                "Teachers of a fleet must have the same taps of the same shapes",
                f"got {dict(shapes)} and {dict(cache.shapes)}",
                "Distil from those that differ one after the other",
            )
    rows = torch.stack([cache.rows[own] for cache, own in zip(caches, chosen, strict=True)], 1)
    rows = rows.to(torch.get_default_dtype())
    parts = rows.split([math.prod(shape) for shape in shapes.values()], dim=2)
    return {
        name: part.reshape(len(rows), -1, *shape[1:]) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
