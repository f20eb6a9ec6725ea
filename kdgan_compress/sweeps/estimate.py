"""How long a sweep still takes, from the fleets that are finished and the progress of those in training."""

from collections.abc import Sequence

from kdgan_compress.sweeps.fleets import Fleet

MIN_FRACTION = 0.02
"""A fleet that has done less says nothing yet about its time."""


class TimeEstimate:
    """Seconds per cell of each shape; a shape that is not known yet takes as long as the mean of the others."""

    def __init__(self) -> None:
        self._by_shape: dict[str, tuple[int, float]] = {}

    def add(self, fleet: Fleet, seconds: float) -> None:
        """Take a finished fleet into account."""
        num_cells, total = self._by_shape.get(fleet.shape, (0, 0.0))
        self._by_shape[fleet.shape] = num_cells + len(fleet.cells), total + seconds

    def seconds_left(
        self, waiting: Sequence[Fleet], running: Sequence[tuple[Fleet, float, float]], num_workers: int
    ) -> float | None:
        """Seconds until the last cell is finished, if all workers stay busy; None if nothing is known.

        Args:
            waiting: Fleets that have not started.
            running: Fleets in training, each with the seconds since its start and the fraction that is done.
            num_workers: Fleets that run at once.
        """
        known = dict(self._by_shape)
        for fleet, seconds, fraction in running:
            if fraction >= MIN_FRACTION:
                known.setdefault(fleet.shape, (len(fleet.cells), seconds / fraction))
        if not known:
            return None
        left = [
            seconds * (1 / fraction - 1) if fraction >= MIN_FRACTION else max(0.0, _seconds(fleet, known) - seconds)
            for fleet, seconds, fraction in running
        ]
        total = sum(left) + sum(_seconds(fleet, known) for fleet in waiting)
        return max([total / num_workers, *left])


def _seconds(fleet: Fleet, known: dict[str, tuple[int, float]]) -> float:
    num_cells, total = known.get(fleet.shape) or tuple(map(sum, zip(*known.values(), strict=True)))
    return len(fleet.cells) * total / num_cells
