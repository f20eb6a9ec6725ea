"""The dispatch of fleets: no worker waits while a fleet is ready, and teachers come before their students."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest

from kdgan_compress.sweeps import execution
from kdgan_compress.sweeps.axes import parse_axes
from kdgan_compress.sweeps.execution import SweepExecution
from kdgan_compress.sweeps.fleets import Fleet
from kdgan_compress.sweeps.grid import plan_sweep
from kdgan_compress.sweeps.sweep_folder import SweepFolder
from kdgan_compress.sweeps.worker import FleetOutcome, FleetTask
from kdgan_compress.sweeps.workers import given_executor

TIMEOUT_S = 60


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_all_workers_are_busy_and_teachers_come_first(recipe, tmp_path, monkeypatch, num_workers):
    meeting, started = Barrier(num_workers), []

    def run_together(task):  # ends only if as many fleets run at the same time as there are workers
        started.extend(cell.run for cell in task.cells)
        meeting.wait(TIMEOUT_S)
        return FleetOutcome({cell.run: SimpleNamespace() for cell in task.cells}, 0.0)

    monkeypatch.setattr(execution, "run_fleet", run_together)
    made = plan_sweep(recipe, "test", parse_axes({"normal": "0..3", "schedule": "1"}), distill=True)
    fleets = [Fleet("shape", (cell,)) for cell in (*made.teachers, *made.cells)]
    with ThreadPoolExecutor(num_workers) as pool, given_executor(pool, num_workers) as workers:
        ended = SweepExecution(SweepFolder(tmp_path), fleets, workers, 0, FleetTask(str(tmp_path), ())).run()
    assert len(ended) == len(fleets) == 8
    for cell in made.cells:
        assert started.index(cell.teacher) < started.index(cell.run)
