"""Sweeps in other processes: killed and continued, on a Dask cluster that loses a worker, workers that end."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import yaml

from kdgan_compress.api.sweep import sweep
from kdgan_compress.sweeps.workers import local_processes

SECONDS = 240
"""How long a step may take on a busy machine."""


@pytest.fixture
def recipe_file(content, tmp_path):
    """Cells that take long enough to be killed in training."""
    training = {"batch_size": 4, "epochs": 60}
    slow = content | {"training": training, "sweep": {"axes": {"width": [2, 3], "seed": [0, 1]}}}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(slow))
    return path


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def command(path, out, *options):
    options = ["--set", "training.threads=1", "--out", str(out), *options]
    return [sys.executable, "-m", "kdgan_compress", "sweep", str(path), *options]


def children_of(pid):
    """Processes of a process, by Linux's /proc."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def process_id():
    return os.getpid()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
def test_a_killed_sweep_continues_with_the_same_command(recipe_file, tmp_path):
    out = tmp_path / "killed"
    process = subprocess.Popen(command(recipe_file, out, "--workers", "2"), stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(out.glob("runs/*/state.pt"))) >= 1)
    children = children_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_running, children)))
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    assert len(finished) < 4
    subprocess.run(command(recipe_file, out, "--workers", "2"), check=True, timeout=SECONDS, capture_output=True)
    assert len(list(out.glob("runs/*/result.json"))) == 4
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    for folder in out.glob("runs/*"):  # each epoch was trained once
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 60


@pytest.mark.slow
def test_a_lost_process_is_replaced():
    with local_processes(1) as workers:
        first = workers.executor.submit(process_id).result(timeout=SECONDS)
        with pytest.raises(BrokenProcessPool):
            workers.executor.submit(die).result(timeout=SECONDS)
        workers.reopen()
        assert workers.executor.submit(process_id).result(timeout=SECONDS) != first
        assert workers.num == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Dask
def test_a_dask_cluster_that_loses_a_worker_finishes_the_sweep(recipe_file, tmp_path):
    pytest.importorskip("distributed")
    address_file = tmp_path / "scheduler.json"
    log = (tmp_path / "dask.log").open("w")
    run = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen(
        [*run, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", address_file],
        stdout=log,
        stderr=log,
    )
    processes = [scheduler]
    try:
        wait_for(lambda: address_file.exists() and "tcp://" in address_file.read_text())
        address = yaml.safe_load(address_file.read_text())["address"]
        worker = [*run, "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        processes += [
            subprocess.Popen([*worker, "--local-directory", tmp_path / str(number)], stdout=log, stderr=log)
            for number in range(2)
        ]
        out, killed = tmp_path / "dask", []

        def kill_a_worker(progress):
            if not killed and list(out.glob("runs/*/state.pt")) and progress.running > 1:
                killed.append(progress)
                processes[1].kill()

        report = sweep(str(recipe_file), out, scheduler=address, show_progress=kill_a_worker)
        assert killed
        assert report.failed == {}
        assert all(cell.result is not None for cell in report.cells)
        assert len({cell.result.auc for cell in report.cells}) > 1
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()
