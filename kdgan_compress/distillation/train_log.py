"""What the engine tells of a training: means of an epoch's losses, read from the device only when they are due."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdgan_compress.errors import KdganError

RECORD_EVERY_IMAGES = 512


class DivergedError(KdganError):
    """A loss became NaN or infinite, so that training can't go on."""


@dataclass(frozen=True)
class Record:
    """Where a stage stands.

    Attributes:
        stage: Its name.
        epoch: The running epoch, from 1.
        epoch_done: Whether this record closes the epoch.
        num_images: Images seen in this epoch so far.
        losses: Means of every unweighted term over those images that had it; the teacher's start with ``teacher_``.
        seconds: Time spent on this epoch's steps so far; a fleet's member has an even share of its fleet's.
    """

    stage: str
    epoch: int
    epoch_done: bool
    num_images: int
    losses: dict[str, float]
    seconds: float


class Meter:
    """One student's epoch so far.

    Attributes:
        num_images: Images seen.
        seconds: Time spent.
        error: What is said of the first loss that is not finite; None while there is none.
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
        """Take in a term's sum over images."""
        before, seen = self._sums.get(name, (0.0, 0))
        self._sums[name] = before + total, seen + num_images

    def fail(self, step: int, name: str, value: float) -> None:
        """Remember the first loss that is not finite."""
        self.error = DivergedError(
            "Losses must stay finite",
            f"{name} is {value} at step {step + 1} of stage {self._stage} (epoch {self._epoch})",
            "Lower the learning rate, or raise the batch size",
        )

    def record(self, epoch_done: bool) -> Record | DivergedError:
        """Where the epoch stands, or what went wrong."""
        if self.error is not None:
            return self.error
        self._num_recorded = self.num_images
        means = {name: total / seen for name, (total, seen) in self._sums.items()}
        return Record(self._stage, self._epoch, epoch_done, self.num_images, means, self.seconds)


class Waiting:
    """Terms of the latest steps, still on their device; of a fleet each is (K,)."""

    def __init__(self) -> None:
        self._terms: dict[str, list[tuple[Sequence[int], Sequence[int], Tensor]]] = {}

    def add(self, steps: Sequence[int], num_images: Sequence[int], terms: Mapping[str, Tensor]) -> None:
        """Keep one step's terms; each member has its own step number and number of images."""
        for name, term in terms.items():
            self._terms.setdefault(name, []).append((steps, num_images, term.detach()))

    def flush(self, meters: Sequence[Meter]) -> None:
        """Give each member's meter what is its, and the first of its losses that is not finite."""
        bad: dict[int, tuple[int, str, float]] = {}
        for name, waiting in self._terms.items():
            steps, sizes = ([entry[place] for entry in waiting] for place in (0, 1))
            values = torch.stack([entry[2] for entry in waiting]).reshape(len(waiting), -1).cpu()
            numbers = torch.tensor(sizes)
            for member, (total, seen) in enumerate(zip((values * numbers).sum(0), numbers.sum(0), strict=True)):
                meters[member].add(name, float(total), int(seen))
            for place, member in (~values.isfinite()).nonzero().tolist():
                found = steps[place][member], name, float(values[place, member])
                bad[member] = min(bad.get(member, found), found, key=lambda entry: entry[0])  # of a step, the first
        self._terms = {}
        for member, first in bad.items():
            meters[member].fail(*first)
