"""SIGKILL at writes and at random times: what is left is whole, and the next command ends as if nothing had happened.

``make test`` kills each command a few times; ``make kills`` at every write and KILL_TIMES=10 times in between.
"""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest
from killed_cases import cases, write_inputs
from killed_command import ForkServer
from whole_files import check_whole, contents, leftovers

NAMES = (
    *("train", "distill-1", "distill-2", "distill-2-3", "distill-2-4", "cache", "fleet", "sweep"),
    *("export", "calibrate", "report", "import"),
)
SLOW_NAMES = (*NAMES, "search")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL and no fork")

CI_WRITES, CI_TIMES = 2, 1
MAX_WRITES = int(os.environ.get("KILL_WRITES", "1000"))
LOG = Path(os.environ["KILL_LOG"]) if "KILL_LOG" in os.environ else None
"""A file with one line per kill, to be read while a long run is on its way."""

TIMES = int(os.environ.get("KILL_TIMES", "10"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    write_inputs(path)
    return path


@pytest.fixture(scope="module")
def trainings(base):
    server = ForkServer()
    ended = server.run(cases(base)["train"].start(base), base)
    assert ended.code == 0, ended.output
    (base / "out").rename(base / "teacher")  # beside it, since a run folder names its data by relative paths
    yield server
    server.close()


@pytest.fixture(scope="module")
def exports(base, trainings):
    server = ForkServer()
    server.warm_up(["export", "--model", base / "teacher", "-o", base / "detector" / "d.onnx"])
    yield server
    server.close()


def kill_and_compare(case, server, folder, num_writes, num_times, log=None):
    """Kill the command at so many of its writes, and at random times; returns how often it was killed."""

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    fresh()
    whole = server.run(case.start(folder), folder)
    assert whole.code == 0, whole.output
    assert whole.num_writes > 5
    check_whole(folder)
    assert not leftovers(folder)
    expected = contents(folder)
    rng = random.Random(case.name)
    everywhere = range(1, whole.num_writes + 1)
    kills = [{"kill_at": n} for n in sorted(rng.sample(everywhere, min(num_writes, len(everywhere))))]
    kills += [{"kill_after": rng.uniform(0, whole.seconds)} for _ in range(num_times)]
    num_killed, failures = 0, []
    for kill in kills:
        bad = len(failures)
        fresh()
        killed = server.run(case.start(folder), folder, **kill)
        num_killed += killed.was_killed
        try:
            assert killed.was_killed or "kill_after" in kill, f"exit code {killed.code}: {killed.output}"
            check_whole(folder)
            ended = case.go_on(server, folder)
            assert ended.code == 0, ended.output
            assert not (left := leftovers(folder)), left
            found = contents(folder)
            different = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            assert not different, f"different: {different}"
        except Exception as error:
            failures.append(f"{kill}: {type(error).__name__}: {error}")
        if log is not None:
            with log.open("a") as file:
                file.write(
                    f"{case.name} {kill} of {whole.num_writes}: {failures[-1:] if len(failures) > bad else 'ok'}\n"
                )
    assert not failures, f"{len(failures)} of {len(kills)}:\n" + "\n".join(failures)
    return num_killed


@pytest.mark.parametrize("name", NAMES)
def test_a_few_kills(base, trainings, exports, name):
    case = cases(base)[name]
    kill_and_compare(case, trainings if case.is_training else exports, base / "w", CI_WRITES, CI_TIMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_NAMES)
def test_a_kill_at_every_write(base, trainings, exports, name, capsys):
    case = cases(base)[name]
    num = kill_and_compare(case, trainings if case.is_training else exports, base / "w", MAX_WRITES, TIMES, LOG)
    with capsys.disabled():
        print(f"{name}: killed {num} times")
