"""How long a sweep still takes, from the fleets that are finished."""

from collections.abc import Sequence

from kdgan_compress.sweeps.fleets import Fleet


class TimeEstimate:
    """Seconds per cell of each shape; a shape without a finished fleet takes as long as the mean of the others."""

    def __init__(self) -> None:
        self._by_shape: dict[str, tuple[int, float]] = {}

    def add(self, fleet: Fleet, seconds: float) -> None:
        """Take a finished fleet into account."""
        num_cells, total = self._by_shape.get(fleet.shape, (0, 0.0))
        self._by_shape[fleet.shape] = num_cells + len(fleet.cells), total + seconds

    def seconds_left(
        self, waiting: Sequence[Fleet], running: Sequence[tuple[Fleet, float]], num_workers: int
    ) -> float | None:
        """Seconds until the last cell is finished, if all workers stay busy; None without a finished fleet.

        Args:
            waiting: Fleets that have not started.
            running: Fleets in training, each with the seconds since its start.
            num_workers: Fleets that run at once.
        """
        if not self._by_shape:
            return None
        left = [max(0.0, self._seconds(fleet) - seconds) for fleet, seconds in running]
        total = sum(left) + sum(self._seconds(fleet) for fleet in waiting)
        return max([total / num_workers, *left])

    def _seconds(self, fleet: Fleet) -> float:
        num_cells, total = self._by_shape.get(fleet.shape) or tuple(
            map(sum, zip(*self._by_shape.values(), strict=True))
        )
        return len(fleet.cells) * total / num_cells
