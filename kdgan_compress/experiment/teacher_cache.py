"""Whether a distillation gets its teacher's outputs from a cache, and from where."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kdgan_compress.accel.cache_folder import CacheFolder
from kdgan_compress.accel.teacher_cache import (
    TeacherCache,
    cache_key,
    cache_shapes,
    cache_size_bytes,
    cacheable_stages,
    teacher_rows,
)
from kdgan_compress.distillation.loss import Distillation
from kdgan_compress.distillation.policies import Stage
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import CacheSection
from kdgan_compress.gans import Gan


@dataclass
class CacheSource:
    """Gives out caches, one and the same for the same teacher and images, so that a command's runs share them."""

    _known: dict[str, TeacherCache] = field(default_factory=dict)

    def get(
        self,
        section: CacheSection,
        stages: Sequence[Stage],
        teacher: Gan,
        images: Tensor,
        distillation: Distillation,
    ) -> tuple[TeacherCache | None, str]:
        """The cache for a distillation, or None; and in words what was done and why.

        Raises:
            KdganError: A folder was named and there is nothing to cache, or it can't be written.
        """
        if not section.enabled:
            return None, "none: switched off"
        try:
            cacheable_stages(stages)
            shapes = cache_shapes(teacher, images, distillation)
        except KdganError as error:
            if section.folder is not None:
                raise
            return None, f"none: {error.found}"
        size_mb = cache_size_bytes(shapes, len(images), section.dtype) / 1e6
        if section.folder is None and size_mb > section.memory_mb:
            reason = f"{size_mb:.3g} MB are more than the {section.memory_mb} MB allowed in memory"
            return None, f"none: {reason}, and no folder is given"
        key = cache_key(teacher, images, distillation, section.dtype)
        if key in self._known:
            return self._known[key], "shared with another run"
        rows = teacher_rows(teacher, images, distillation, section.dtype)
        if section.folder is None:
            cache, note = TeacherCache(torch.cat(list(rows)), shapes), f"computed, {size_mb:.1f} MB in memory"
        else:
            folder = CacheFolder(Path(section.folder), section.memory_mb)
            found, note = folder.load(key)
            if found is None:
                before = note
                folder.save(key, shapes, len(images), section.dtype, rows)
                found, note = folder.load(key)
                note = f"computed, {size_mb:.1f} MB in {section.folder} ({before})"
            if found is None:
                raise KdganError("A cache just written must be readable", note, "Check the disk, or --cache off")
            cache = found
        if images.device != cache.rows.device:
            cache = TeacherCache(cache.rows.to(images.device), cache.shapes)
        self._known[key] = cache
        return cache, note
