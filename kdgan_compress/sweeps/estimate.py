"""How long a sweep still takes, from the fleets that are finished and the progress of those in training."""

from collections.abc import Sequence

from kdgan_compress.sweeps.fleets import Fleet

Total = tuple[int, float]
"""Cells, and the seconds that they took together."""

MIN_FRACTION = 0.02
"""A fleet that has done less says nothing yet about its time."""


class TimeEstimate:
    """Seconds per cell of each shape.

    A shape that is not known yet takes as long as the mean of the others; one whose cells share trainings, as long as
    the evaluation of the others.
    """

    def __init__(self) -> None:
        self._by_shape: dict[str, Total] = {}
        self._evaluation: Total = (0, 0.0)

    def add(self, fleet: Fleet, seconds: float, training_seconds: float) -> None:
        """Take a finished fleet into account: its seconds, and those of its cells' training, earlier commands' too."""
        self._by_shape[fleet.shape] = _plus(self._by_shape.get(fleet.shape, (0, 0.0)), len(fleet.cells), seconds)
        self._evaluation = _plus(self._evaluation, len(fleet.cells), max(0.0, seconds - training_seconds))

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
        left = []
        for fleet, seconds, fraction in running:
            expected = seconds / fraction if fraction >= MIN_FRACTION else self._seconds(fleet, known)
            left.append(max(0.0, expected - seconds))
        total = sum(left) + sum(self._seconds(fleet, known) for fleet in waiting)
        return max([total / num_workers, *left])

    def _seconds(self, fleet: Fleet, known: dict[str, Total]) -> float:
        total = known.get(fleet.shape)
        if total is None and fleet.shares_trainings and self._evaluation[0]:
            total = self._evaluation
        if total is None:
            total = sum(cells for cells, _ in known.values()), sum(seconds for _, seconds in known.values())
        return len(fleet.cells) * total[1] / total[0]


def _plus(total: Total, num_cells: int, seconds: float) -> Total:
    return total[0] + num_cells, total[1] + seconds
