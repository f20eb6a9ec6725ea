"""``make gpu``: the tests that need a GPU and the benchmark of docs/performance.md, in at most six minutes.

It needs this checkout and a Python with torch (2.9 or newer, as the package) and numpy; nothing is installed. On one
NVIDIA H100 with torch 2.11 all tests pass, and it takes 190 s.
Without a GPU it says so and ends with exit code 0. It writes ``gpu.json`` and ``gpu.md`` into the given folder.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from kdgan_compress.bench.bench import BenchReport, BenchRow, bench
from kdgan_compress.bench.cases import CASES, Case
from kdgan_compress.profiling.machine import machine_name

ROOT = Path(__file__).parents[1]
GPU_TESTS = "tests/unit/accel/test_gpu.py"
TEST_SECONDS = 120
MAX_SECONDS = 330
NUM_ROUNDS, SECONDS_PER_ROUND = 3, 1.5


def main(out: Path) -> int:
    """Run the tests and the benchmark; exit code 1 if a test failed."""
    if not torch.cuda.is_available():
        print("There is no CUDA GPU here; nothing was measured.")
        return 0
    start = time.perf_counter()
    print(f"{machine_name('cuda')}, torch {torch.__version__}", flush=True)
    tests_passed = _run_tests()
    rows: list[BenchRow] = []
    matrix_gmacs = 0.0
    for case in _cases():
        if time.perf_counter() - start > MAX_SECONDS - 60:
            print(f"Left out for lack of time: {case.structure} {case.channels_str}, batch {case.batch}")
            continue
        report = bench([case], rounds=NUM_ROUNDS, seconds_per_round=SECONDS_PER_ROUND, device="cuda")
        rows, matrix_gmacs = rows + report.rows, report.matrix_gmacs
        print("\n".join(_line(row) for row in report.rows), flush=True)
    report = BenchReport(machine_name("cuda"), matrix_gmacs, rows)
    out.mkdir(parents=True, exist_ok=True)
    content = dataclasses.asdict(report) | {"torch": str(torch.__version__), "tests_passed": tests_passed}
    (out / "gpu.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(_table(report), encoding="utf-8")
    print(f"{out / 'gpu.json'} and {out / 'gpu.md'} written after {time.perf_counter() - start:.0f} s")
    return 1 if tests_passed is False else 0


def _cases() -> list[Case]:
    """The training cases of docs/performance.md, the most important first."""
    wanted = [("2", "2-4-8", 16), ("2", "2-4-8", 1), ("scratch", "64-128-256", 8), ("2", "1-2-4", 1)]
    by_key = {(case.structure, case.channels_str, case.batch): case for case in CASES if case.family == "ede"}
    return [by_key[key] for key in (*wanted, ("scratch", "64-128-256", 1))]


def _run_tests() -> bool | None:
    """Whether the tests marked ``gpu`` passed; None if pytest is not installed."""
    if importlib.util.find_spec("pytest") is None:
        print("pytest is not installed; the tests marked gpu were left out.")
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", GPU_TESTS]
    try:
        return subprocess.run(command, cwd=ROOT, timeout=TEST_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"The tests marked gpu did not end within {TEST_SECONDS} s.")
        return False


def _line(row: BenchRow) -> str:
    path = f"{row.path} {row.fleet}" if row.path == "fleet" else row.path
    times = row.us_per_image
    measured = f"{times.median:,.1f} | {times.min:,.1f} to {times.max:,.1f} | {row.speedup:.2f}"
    return f"| {row.structure} | {row.channels} | {row.batch} | {path} | {measured} |"


def _table(report: BenchReport) -> str:
    lines = [
        f"{report.machine}, torch {torch.__version__}, float32, {NUM_ROUNDS} rounds of {SECONDS_PER_ROUND:g} s",
        "",
        "| structure | channels | batch | path | µs per image and model | min to max | × plain |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in report.rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "gpu")))
