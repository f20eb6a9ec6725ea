"""Changed files against every parser: it accepts them or raises KdganError, in 10 seconds and 1 GB.

``make test`` tries a few thousand; ``make fuzz`` tries FUZZ_INPUTS, by default 100,000. The input that a parser is
working on lies in the folder that pytest names in its report, even if the process dies.
"""

import os
import random
import resource
import sys
import time
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import make_targets

from kdgan_compress.errors import KdganError

NAMES = (
    *("recipe", "setting", "metrics", "result", "checkpoint", "imported", "state", "cache", "npz", "scores"),
    *("golden", "image", "detector", "card"),
)
TOTAL_WEIGHT = 15.7
CI_INPUTS = 2_000
MANY_INPUTS = int(os.environ.get("FUZZ_INPUTS", "100000"))
MAX_SECONDS, MAX_MB = 10.0, 1000


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return make_targets(tmp_path_factory.mktemp("targets"))


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def fuzz(target, folder, num_inputs, seed_range):
    """Try changed files; returns how many were accepted."""
    accepted = 0
    path = folder / f"input{target.suffix}"
    before = peak_mb()

    @settings(
        max_examples=num_inputs,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(*seed_range))
    def try_input(seed):
        nonlocal accepted
        rng = random.Random(seed)
        path.write_bytes(target.mutate(rng.choice(target.seeds), rng))
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target.parse(path)
            accepted += 1
        except KdganError:
            pass
        seconds = time.perf_counter() - start
        assert seconds < MAX_SECONDS, f"seed {seed} took {seconds:.1f} s"
        assert peak_mb() - before < MAX_MB, f"seed {seed} took {peak_mb() - before:.0f} MB"

    try_input()
    return accepted


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_accepted(targets, name, tmp_path):
    target = targets[name]
    for number, seed in enumerate(target.seeds):
        path = tmp_path / f"valid{number}{target.suffix}"
        path.write_bytes(seed)
        if name == "setting":
            continue  # one of them is wrong
        target.parse(path)


@pytest.mark.parametrize("name", NAMES)
def test_changed_files(targets, name, tmp_path):
    target = targets[name]
    fuzz(target, tmp_path, round(CI_INPUTS * target.weight / TOTAL_WEIGHT), (0, 2**40))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_changed_files(targets, name, tmp_path, capsys):
    target = targets[name]
    num_inputs = round(MANY_INPUTS * target.weight / TOTAL_WEIGHT)
    accepted = fuzz(target, tmp_path, num_inputs, (2**40, 2**63))
    with capsys.disabled():
        print(f"{name}: {num_inputs:,} inputs, {accepted:,} accepted")
