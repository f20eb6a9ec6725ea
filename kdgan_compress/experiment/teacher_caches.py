"""Teacher caches of a command's jobs: computed once per teacher and images, in memory or in a folder."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kdgan_compress.accel.cache_folder import CacheFolder
from kdgan_compress.accel.teacher_cache import TeacherCache, cache_key, cache_shapes, cache_size_bytes, teacher_rows
from kdgan_compress.distillation.loss import DistillationLoss
from kdgan_compress.distillation.scheduler import ProgressiveScheduler, num_frozen_stages
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.recipe import CacheSection
from kdgan_compress.gans import Gan

KEEP_SECONDS = 2.0
"""A cache that takes longer to compute is kept in the run folder until the run is finished, for a resume."""


@dataclass
class TeacherCaches:
    """Provides caches; jobs with the same teacher and images share one."""

    _by_key: dict[str, TeacherCache] = field(default_factory=dict)

    def attach(self, section: CacheSection, scheduler: ProgressiveScheduler, kept: Path) -> str:
        """Let a scheduler read its teacher's features from a cache, if there can be one; describe what was done.

        Args:
            section: Settings.
            scheduler: Of the run.
            kept: Where a cache that belongs in memory is kept for a resume.

        Raises:
            KdganError: A folder is given and nothing can be cached, or it can't be written.
        """
        teacher = scheduler.teacher
        if not section.enabled or teacher is None:
            return "none: disabled"
        try:
            num_frozen_stages(scheduler.stages)
            shapes = cache_shapes(teacher.gan, scheduler.images, scheduler.k_l)
        except KdganError as error:
            if section.folder is not None:
                raise
            return f"none: {error.found}"
        size_mb = cache_size_bytes(shapes, len(scheduler.images), section.dtype) / 1e6
        if section.folder is None and size_mb > section.memory_mb:
            return f"none: {size_mb:.3g} MB exceed the {section.memory_mb} MB allowed in memory, and no folder is given"
        cache, note = self._get(section, teacher.gan, scheduler.images, scheduler.k_l, shapes, kept)
        scheduler.use_targets(cache)
        if not scheduler.trains_teacher:
            scheduler.teacher = None
        return note

    def _get(
        self,
        section: CacheSection,
        teacher: Gan,
        images: Tensor,
        k_l: DistillationLoss,
        shapes: dict[str, tuple[int, ...]],
        kept: Path,
    ) -> tuple[TeacherCache, str]:
        key = cache_key(teacher, images, k_l, section.dtype)
        if key in self._by_key:
            return self._by_key[key], "shared with another run"
        size = f"{cache_size_bytes(shapes, len(images), section.dtype) / 1e6:.1f} MB"
        rows = teacher_rows(teacher, images, k_l, section.dtype)
        if section.folder is None:
            start, folder = time.perf_counter(), CacheFolder(kept, section.memory_mb)
            cache, _ = folder.load(key)
            note = f"kept from before, {size} in memory"
            if cache is None or len(cache.rows) != len(images) or dict(cache.shapes) != shapes:
                cache, note = TeacherCache(torch.cat(list(rows)), shapes), f"computed, {size} in memory"
                if time.perf_counter() > start + KEEP_SECONDS:
                    with suppress(KdganError):  # a full disk
                        folder.save(key, shapes, len(images), section.dtype, [cache.rows.cpu()])
        else:
            folder = CacheFolder(Path(section.folder), section.memory_mb)
            loaded, note = folder.load(key)
            if loaded is not None and (len(loaded.rows), dict(loaded.shapes)) != (len(images), shapes):
                loaded, note = None, "that of the folder was of other images"
            if loaded is None:
                folder.save(key, shapes, len(images), section.dtype, rows)
                note, reason = f"computed, {size} in the cache folder ({note})", note
                loaded, reason = folder.load(key)
                if loaded is None:
                    raise KdganError("A cache that was just written can't be read", reason, "Check the disk")
            cache = loaded
        if images.device != cache.rows.device:
            cache = TeacherCache(cache.rows.to(images.device), cache.shapes)
        self._by_key[key] = cache
        return cache, note
