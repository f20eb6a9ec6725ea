"""Training and scoring for a long time in one process each: their memory stays flat.

``make soak`` runs it for an hour; SOAK_MINUTES sets another time.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

MINUTES = float(os.environ.get("SOAK_MINUTES", "3"))
MAX_GROWTH = 1.05

TRAIN = [sys.executable, "-m", "kdgan_compress", "train", "--data", "sample", "--channels", "8,16,32", "--track-auc"]
SCORE = """
import sys
import numpy as np
from kdgan_compress.runtime import Detector
detector, rng = Detector(sys.argv[1]), np.random.default_rng(0)
calls = 0
while True:
    count, height, width = rng.integers(1, 64), *rng.integers(16, 400, 2)
    detector.score(rng.integers(0, 256, (count, height, width, 1), dtype=np.uint8))
    calls += 1
    print(calls, flush=True)
"""


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_flat(tmp_path: Path) -> None:
    run = tmp_path / "run"
    subprocess.run([*TRAIN, "--epochs", "1", "--out", run], check=True, capture_output=True)
    export = [sys.executable, "-m", "kdgan_compress", "export", "--model", run, "-o", tmp_path / "d.onnx"]
    subprocess.run(export, check=True, capture_output=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    calls = tmp_path / "calls.txt"
    with calls.open("wb") as output, (tmp_path / "train.txt").open("wb") as log:
        long = [*TRAIN, "--epochs", "1000000", "--out", tmp_path / "long"]
        training = subprocess.Popen(long, env=environment, stdout=log, stderr=log)
        scoring = subprocess.Popen([sys.executable, "-c", SCORE, tmp_path / "d.onnx"], env=environment, stdout=output)
        processes = {"training": training, "scoring": scoring}
        memory: dict[str, list[float]] = {name: [] for name in processes}
        while not ((tmp_path / "long" / "metrics.jsonl").exists() and calls.stat().st_size):
            time.sleep(1)
        end = time.monotonic() + 60 * MINUTES
        while time.monotonic() < end:
            time.sleep(1)
            for name, process in processes.items():
                assert process.poll() is None, f"{name} ended"
                memory[name].append(resident_mb(process))
        scoring.kill()
        training.send_signal(signal.SIGTERM)
        assert training.wait(60) == 128 + signal.SIGTERM
        scoring.wait()
    for name, values in memory.items():
        early, late = (
            float(np.mean(part))
            for part in (values[len(values) // 5 : len(values) * 2 // 5], values[-len(values) // 5 :])
        )
        print(f"{name}: {early:.0f} MB early, {late:.0f} MB late, at most {max(values):.0f} MB")
        assert late <= MAX_GROWTH * early, f"{name} grew from {early:.0f} to {late:.0f} MB"
    num_epochs = len((tmp_path / "long" / "metrics.jsonl").read_bytes().splitlines())
    num_calls = len(calls.read_bytes().splitlines())
    print(f"{MINUTES:g} minutes: {num_epochs} epochs, {num_calls} calls")
    assert num_epochs > 1
    assert num_calls > 1
