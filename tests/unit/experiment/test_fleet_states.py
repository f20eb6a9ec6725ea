"""Runs that are trained together: noted in their folders, and saved all or none."""

import itertools
import json
from types import SimpleNamespace

import pytest

from kdgan_compress.experiment.fleet_record import record_fleet, recorded_fleet, restore_fleets
from kdgan_compress.experiment.fleet_states import FleetSaver, settle_states
from kdgan_compress.experiment.run_folder import RunFolder


class Run:
    """A run whose state is the number of images it has seen."""

    def __init__(self, path):
        path.mkdir()
        scheduler = SimpleNamespace(images_done=0, in_stage=True)
        self.job = SimpleNamespace(folder=RunFolder(path), scheduler=scheduler, resume=True)
        self.is_saved = False

    def is_finite(self):
        return True

    def save_state(self, is_next):
        folder = self.job.folder
        (folder.next_state if is_next else folder.state).write_text(str(self.job.scheduler.images_done))


@pytest.fixture
def runs(tmp_path):
    return [Run(tmp_path / name) for name in "cab"]


def folders_of(runs):
    return [run.job.folder for run in runs]


def states(runs):
    return [folder.state.read_text() for folder in folders_of(runs)]


def save(runs, number):
    for run in runs:
        run.job.scheduler.images_done = number
    FleetSaver(runs, SimpleNamespace(received=None)).save()


CHANGES = ("unlink", "replace", "touch", "write_text")


def save_until(runs, monkeypatch, last):
    """Save and stop at the given change of a file, from 0; whether it was stopped."""
    calls = itertools.count()

    def stopped(change):
        def change_or_stop(*arguments, **options):
            if next(calls) == last:
                raise KeyboardInterrupt
            return change(*arguments, **options)

        return change_or_stop

    kind = type(runs[0].job.folder.path)
    with monkeypatch.context() as patched:
        for name in CHANGES:
            patched.setattr(kind, name, stopped(getattr(kind, name)))
        try:
            save(runs, 2)
        except KeyboardInterrupt:
            return True
    return False


def test_after_a_kill_at_any_change_all_states_are_of_one_save(runs, monkeypatch):
    found, last, is_stopped = [], 0, True
    while is_stopped:
        save(runs, 1)
        is_stopped = save_until(runs, monkeypatch, last)
        settle_states(folders_of(runs))
        assert {file.name for run in runs for file in run.job.folder.path.iterdir()} == {"state.pt"}
        assert len(set(states(runs))) == 1
        found.append(states(runs)[0])
        last += 1
    assert found == sorted(found)
    assert (found.count("1"), found.count("2") > 6) == (4, True)  # three states and the file that says so


def test_a_run_that_is_resumed_alone_has_its_newest_state(runs, monkeypatch):
    save(runs, 1)
    assert save_until(runs, monkeypatch, 2)
    for run, expected in zip(runs, "221", strict=True):
        settle_states([run.job.folder])
        assert run.job.folder.state.read_text() == expected


def test_a_run_that_failed_or_is_where_it_was_is_not_saved(runs):
    save(runs, 1)
    runs[0].is_saved = True
    saver = FleetSaver(runs, SimpleNamespace(received=None))
    saver.failed.append(runs[1])
    for run in runs:
        run.job.scheduler.images_done = 2
    saver.save()
    assert states(runs) == ["1", "1", "2"]


def test_a_fleet_is_restored_in_its_order(runs):
    record_fleet(folders_of(runs))
    assert json.loads(runs[1].job.folder.fleet.read_text()) == ["c", "a", "b"]
    jobs = [run.job for run in sorted(runs, key=lambda run: run.job.folder.path.name)]
    assert restore_fleets(jobs) == ([[run.job for run in runs]], [])
    assert restore_fleets(jobs[:2]) == ([[runs[1].job, runs[2].job]], [])  # the third one is finished


def test_folders_that_were_moved_together_are_still_a_fleet(runs, tmp_path):
    record_fleet(folders_of(runs))
    (tmp_path / "moved").mkdir()
    for run in runs:
        run.job.folder = RunFolder(run.job.folder.path.rename(tmp_path / "moved" / run.job.folder.path.name))
    assert restore_fleets([run.job for run in runs]) == ([[run.job for run in runs]], [])


def test_a_note_that_is_not_in_all_folders_does_not_count(runs):
    record_fleet(folders_of(runs))
    runs[2].job.folder.fleet.unlink()
    assert restore_fleets([run.job for run in runs]) == ([], [run.job for run in runs])


@pytest.mark.parametrize("content", ["", "{}", "1", "[1]", '["\\u0000"]', '[["a"]]', "[" * 9999, "\x00"])
def test_a_damaged_note_does_not_count(runs, content):
    runs[0].job.folder.fleet.write_text(content)
    assert recorded_fleet(runs[0].job.folder) == ()
