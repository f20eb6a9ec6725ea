"""The dispatch of fleets costs no time: two workers take half as long as one, and none waits while a fleet is ready."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from kdgan_compress.sweeps import execution
from kdgan_compress.sweeps.axes import parse_axes
from kdgan_compress.sweeps.execution import SweepExecution
from kdgan_compress.sweeps.fleets import Fleet
from kdgan_compress.sweeps.grid import plan_sweep
from kdgan_compress.sweeps.sweep_folder import SweepFolder
from kdgan_compress.sweeps.worker import FleetOutcome, FleetTask
from kdgan_compress.sweeps.workers import given_executor

SECONDS = 0.25


def sleep(task):
    time.sleep(SECONDS)
    return FleetOutcome({cell.run: SimpleNamespace() for cell in task.cells}, SECONDS)


def seconds(recipe, path, num_workers):
    made = plan_sweep(recipe, "test", parse_axes({"normal": "0..3", "schedule": "1"}), distill=True)
    fleets = [Fleet("shape", (cell,)) for cell in (*made.teachers, *made.cells)]
    with ThreadPoolExecutor(num_workers) as pool, given_executor(pool, num_workers) as workers:
        start = time.perf_counter()
        ended = SweepExecution(SweepFolder(path), fleets, workers, 0, FleetTask(str(path), ())).run()
        assert len(ended) == len(fleets) == 8
        return time.perf_counter() - start


def test_two_workers_take_half_as_long_and_teachers_come_first(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "run_fleet", sleep)
    one, two = (seconds(recipe, tmp_path, number) for number in (1, 2))
    assert one < 1.1 * 8 * SECONDS + 0.5
    assert one / two > 1.7
