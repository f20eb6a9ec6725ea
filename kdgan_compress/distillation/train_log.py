"""Mean losses of an epoch, copied from the device only when a record is due."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdgan_compress.errors import KdganError

RECORD_EVERY_IMAGES = 512


class DivergedError(KdganError):
    """A loss became NaN or infinite, so the training cannot continue."""


@dataclass(frozen=True)
class EpochPosition:
    """How far an epoch is, between two of its steps.

    Attributes:
        steps: Steps done.
        num_images: Images seen.
        seconds: Time spent.
        sums: Each loss summed over images, and the number of images that had it.
    """

    steps: int
    num_images: int
    seconds: float
    sums: dict[str, tuple[float, int]]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a saved state."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "EpochPosition":
        """The position from ``state_dict()``.

        Raises:
            KeyError: A value is missing.
            TypeError: A value has another type.
            ValueError: A value can't be.
        """
        steps, num_images, seconds = state["steps"], state["num_images"], state["seconds"]
        if type(steps) is not int or type(num_images) is not int or steps < 1 or num_images < 1:
            raise ValueError("it has no such step of an epoch")
        sums = {str(name): (float(total), int(seen)) for name, (total, seen) in state["sums"].items()}
        if not 0 <= seconds < np.inf or any(seen < 1 for _, seen in sums.values()):
            raise ValueError("it has no such losses of an epoch")
        return cls(steps, num_images, float(seconds), sums)


@dataclass(frozen=True)
class TrainRecord:
    """The progress of a stage.

    Attributes:
        stage: Name of the stage.
        epoch: The running epoch, from 1.
        epoch_done: Whether this record closes the epoch.
        num_images: Images seen in this epoch so far.
        losses: Mean of every unweighted loss over the images that had it; the teacher's begin with ``teacher_``.
        seconds: Time spent on this epoch's steps so far; a fleet's time is divided evenly among its members.
        within_epoch: Where the epoch can be continued, if a state may be saved here.
        steps: Steps of the stage so far.
    """

    stage: str
    epoch: int
    epoch_done: bool
    num_images: int
    losses: dict[str, float]
    seconds: float
    within_epoch: EpochPosition | None = None
    steps: int = 0


class EpochLog:
    """The running epoch of one model.

    Attributes:
        num_images: Images seen.
        seconds: Time spent.
        error: The error for the first loss that is not finite; None while there is none.
        steps: Steps of the stage so far.
    """

    def __init__(self, stage: str, epoch: int, restored: EpochPosition | None = None) -> None:
        self.num_images, self.seconds = (restored.num_images, restored.seconds) if restored else (0, 0.0)
        self.error: DivergedError | None = None
        self.steps = 0
        self._stage, self._epoch = stage, epoch
        self._sums: dict[str, tuple[float, int]] = dict(restored.sums) if restored else {}
        self._num_recorded = self.num_images

    @property
    def is_due(self) -> bool:
        """Whether it is time for a record."""
        return self.num_images - self._num_recorded >= RECORD_EVERY_IMAGES

    def add(self, name: str, totals: NDArray[np.float64], num_images: int) -> None:
        """Add a loss of several steps, each summed over its images.

        Steps are added one by one, so the sum does not depend on how often losses are copied from the device.
        """
        previous, seen = self._sums.get(name, (0.0, 0))
        self._sums[name] = float(np.add.accumulate([previous, *totals])[-1]), seen + num_images

    def record_nonfinite(self, step: int, name: str, value: float) -> None:
        """Keep the first loss that is not finite as an error."""
        self.error = DivergedError(
            "Losses must stay finite",
            f"{name} is {value} at step {step + 1} of stage {self._stage} (epoch {self._epoch})",
            "Lower the learning rate, or raise the batch size",
        )

    def record(self, epoch_done: bool, steps: int | None = None) -> TrainRecord | DivergedError:
        """The epoch so far, or the error; with the number of steps, a record at which a state may be saved."""
        if self.error is not None:
            return self.error
        self._num_recorded = self.num_images
        means = {name: total / seen for name, (total, seen) in self._sums.items()}
        within = None if steps is None else EpochPosition(steps, self.num_images, self.seconds, dict(self._sums))
        counts = (self._epoch, epoch_done, self.num_images)
        return TrainRecord(self._stage, *counts, means, self.seconds, within, self.steps)


class LossBuffer:
    """Losses of the latest steps, still on their device; those of a fleet are (K,) each."""

    def __init__(self) -> None:
        self._losses: dict[str, list[tuple[Sequence[int], Sequence[int], Tensor]]] = {}

    def add(self, steps: Sequence[int], num_images: Sequence[int], losses: Mapping[str, Tensor]) -> None:
        """Keep the losses of one step; each model has its own step index and number of images."""
        for name, loss in losses.items():
            self._losses.setdefault(name, []).append((steps, num_images, loss.detach()))

    def flush(self, logs: Sequence[EpochLog]) -> None:
        """Add everything to the models' logs, with the first loss of each that is not finite."""
        nonfinite: dict[int, tuple[int, str, float]] = {}
        for name, entries in self._losses.items():
            steps, sizes = ([entry[field] for entry in entries] for field in (0, 1))
            values = torch.stack([entry[2] for entry in entries]).reshape(len(entries), -1).cpu()
            weights = torch.tensor(sizes)
            totals = values.double() * weights
            for member, (total, seen) in enumerate(zip(totals.unbind(1), weights.sum(0), strict=True)):
                logs[member].add(name, total.numpy(), int(seen))
                logs[member].steps = entries[-1][0][member] + 1
            for row, member in (~values.isfinite()).nonzero().tolist():
                entry = steps[row][member], name, float(values[row, member])
                nonfinite[member] = min(nonfinite.get(member, entry), entry, key=lambda e: e[0])  # ties: the earlier
        self._losses = {}
        for member, first in nonfinite.items():
            logs[member].record_nonfinite(*first)
