"""Mean losses of an epoch, copied from the device only when a record is due."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdgan_compress.errors import KdganError

RECORD_EVERY_IMAGES = 512


class DivergedError(KdganError):
    """A loss became NaN or infinite, so the training cannot continue."""


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
    """

    stage: str
    epoch: int
    epoch_done: bool
    num_images: int
    losses: dict[str, float]
    seconds: float


class EpochLog:
    """The running epoch of one model.

    Attributes:
        num_images: Images seen.
        seconds: Time spent.
        error: The error for the first loss that is not finite; None while there is none.
    """

    def __init__(self, stage: str, epoch: int) -> None:
        self.num_images, self.seconds = 0, 0.0
        self.error: DivergedError | None = None
        self._stage, self._epoch = stage, epoch
        self._sums: dict[str, tuple[float, int]] = {}
        self._num_recorded = 0

    @property
    def is_due(self) -> bool:
        """Whether it is time for a record."""
        return self.num_images - self._num_recorded >= RECORD_EVERY_IMAGES

    def add(self, name: str, total: float, num_images: int) -> None:
        """Add a loss summed over images."""
        previous, seen = self._sums.get(name, (0.0, 0))
        self._sums[name] = previous + total, seen + num_images

    def record_nonfinite(self, step: int, name: str, value: float) -> None:
        """Keep the first loss that is not finite as an error."""
        self.error = DivergedError(
            "Losses must stay finite",
            f"{name} is {value} at step {step + 1} of stage {self._stage} (epoch {self._epoch})",
            "Lower the learning rate, or raise the batch size",
        )

    def record(self, epoch_done: bool) -> TrainRecord | DivergedError:
        """The epoch so far, or the error."""
        if self.error is not None:
            return self.error
        self._num_recorded = self.num_images
        means = {name: total / seen for name, (total, seen) in self._sums.items()}
        return TrainRecord(self._stage, self._epoch, epoch_done, self.num_images, means, self.seconds)


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
            for member, (total, seen) in enumerate(zip((values * weights).sum(0), weights.sum(0), strict=True)):
                logs[member].add(name, float(total), int(seen))
            for row, member in (~values.isfinite()).nonzero().tolist():
                entry = steps[row][member], name, float(values[row, member])
                nonfinite[member] = min(nonfinite.get(member, entry), entry, key=lambda e: e[0])  # ties: the earlier
        self._losses = {}
        for member, first in nonfinite.items():
            logs[member].record_nonfinite(*first)
