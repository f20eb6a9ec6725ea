"""What makes an experiment: a resumed run is refused if any of it has changed since the run began.

The training images are checked by the scheduler, whose state has their checksum.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml
from torch import Tensor

from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.job import Job
from kdgan_compress.profiling.machine import versions

PATH_KEYS = frozenset({"description", "data.source", "data.root", "distillation.teacher"})
"""Keys of a recipe that may change: the same images and teacher may have moved. So may the cache's settings."""

CACHE_KEYS = "distillation.cache."
NAMES = {"held_out": "the held-out images", "test": "the test images", "teacher": "the teacher's weights"}


def fingerprint(job: Job) -> dict[str, str]:
    """The experiment as short texts by name: hashes, settings and versions."""
    split = job.split
    return {
        "held_out": _sha256(split.calibration),
        "test": _sha256(split.test),
        "teacher": job.teacher_sha256 or "",
        "recipe": json.dumps(_settings(job), ensure_ascii=False, sort_keys=True),
        "versions": json.dumps(versions(), sort_keys=True),
    }


def check_fingerprint(saved: Any, job: Job, current: Mapping[str, str]) -> None:
    """Check that a saved state belongs to the same experiment.

    Raises:
        KdganError: It does not; the message says what has changed.
        TypeError: It is not a fingerprint.
    """
    if not isinstance(saved, dict) or not all(isinstance(saved.get(name), str) for name in current):
        raise TypeError("it does not say which experiment it belongs to")
    changed = [text for name, text in NAMES.items() if saved[name] != current[name]]
    for name in ("recipe", "versions"):
        try:
            before, now = json.loads(saved[name]), json.loads(current[name])
            names = before.keys() | now.keys()  # a setting that an older version did not have yet is off
            keys = sorted(key for key in names if (before.get(key) or 0) != (now.get(key) or 0))
            changed += [f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys]
        except (ValueError, AttributeError):
            raise TypeError(f"its {name} can't be read") from None
    if changed:
        found = f"in {job.folder.path} {'; '.join(changed)}"
        hint = "Restore what has changed, or start a new run"
        raise KdganError("A resumed run must continue the same experiment", found, hint)


def _settings(job: Job) -> dict[str, Any]:
    """The recipe's values by dotted key, without those that only say where something is."""
    flat: dict[str, Any] = {}
    pending: list[tuple[str, Any]] = list(yaml.safe_load(job.recipe.to_yaml()).items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{key}.{inner}", each) for inner, each in value.items()]
        elif key not in PATH_KEYS and not key.startswith(CACHE_KEYS):
            flat[key] = value
    return flat


def _sha256(images: Tensor) -> str:
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()
