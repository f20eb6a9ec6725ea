"""Saves the runs of a fleet at one step, as a two-phase commit: after a kill, all are there or all at the save before.

First each run's next state is written next to its state; then a file says that all are written; then they replace the
states.
"""

import time
from collections.abc import Sequence

from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.stop_signals import StopSignals
from kdgan_compress.experiment.training_run import TrainingRun

MAX_SAVE_FRACTION = 0.1
"""Saving takes at most this fraction of the time."""

SAVE_SECONDS = 20.0
"""Long epochs are saved this often, or as often as ``MAX_SAVE_FRACTION`` allows."""


class StoppedError(Exception):
    """All states are saved after a signal."""


class FleetSaver:
    """Saves a fleet, or a single run, at the end of epochs and now and then within them.

    Args:
        runs: Those that are trained together.
        stop: Catches signals.

    Attributes:
        failed: Runs that are not saved any more.
    """

    def __init__(self, runs: Sequence[TrainingRun], stop: StopSignals) -> None:
        self.failed: list[TrainingRun] = []
        self._runs, self._stop = runs, stop
        self._saved_at, self._save_seconds = time.perf_counter(), 0.0

    def is_due(self, is_epoch_end: bool, is_stage_end: bool) -> bool:
        """Whether to save now, after a step; always where a member ends its stage, and leaves the others."""
        interval = self._save_seconds * (1 / MAX_SAVE_FRACTION - 1)
        if not is_epoch_end:
            interval = max(SAVE_SECONDS, interval)
        return self._stop.received is not None or is_stage_end or time.perf_counter() >= self._saved_at + interval

    def save(self) -> None:
        """Save the runs that have moved on, except those whose weights are not finite: their older state is better.

        Raises:
            StoppedError: They are saved because of a signal.
        """
        start = time.perf_counter()
        moved = [run for run in self._runs if run.job.scheduler.in_stage and not run.is_saved]
        moved = [run for run in moved if run not in self.failed and run.is_finite()]
        for run in moved:
            run.save_state(is_next=len(moved) > 1)
        if len(moved) > 1:
            self._runs[0].job.folder.commit.touch()
            settle_states([run.job.folder for run in self._runs])
        self._saved_at = time.perf_counter()
        self._save_seconds = self._saved_at - start
        if self._stop.received is not None:
            raise StoppedError


def settle_states(fleet: Sequence[RunFolder]) -> None:
    """Replace the states by the next ones if all of those were written, else remove them; a single run uses its own."""
    is_complete = len(fleet) == 1 or any(folder.commit.exists() for folder in fleet)
    for folder in fleet:
        if is_complete:
            folder.use_next_state()
        folder.next_state.unlink(missing_ok=True)
    for folder in fleet:
        folder.commit.unlink(missing_ok=True)
