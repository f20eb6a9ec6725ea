"""Which runs are trained together, noted in each of their folders, so that a resume trains the same ones together.

Grouped layers round differently for another number of members (by about 6e-8), so the weights depend on it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from kdgan_compress.experiment.job import Job
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.files import parse_json, read_text, write_text

MAX_FLEET_BYTES = 1_000_000


def record_fleet(folders: Sequence[RunFolder]) -> None:
    """Note in each folder which runs are trained together, in their order."""
    for folder in folders:
        names = [Path(os.path.relpath(each.path, folder.path.parent)).as_posix() for each in folders]
        write_text(folder.fleet, json.dumps(names) + "\n")


def recorded_fleet(folder: RunFolder) -> tuple[Path, ...]:
    """The run folders that this one was trained together with, and itself; empty if that is not noted."""
    try:
        names = parse_json(read_text(folder.fleet, MAX_FLEET_BYTES))
        if not isinstance(names, list):
            return ()
        return tuple(dict.fromkeys((folder.path.parent / name).resolve() for name in names))
    except (OSError, ValueError, TypeError, RuntimeError):  # the last for a loop of symbolic links
        return ()


def restore_fleets(jobs: Sequence[Job]) -> tuple[list[list[Job]], list[Job]]:
    """The fleets in which jobs are resumed, as far as those jobs are here, and the other jobs.

    A note that not all members have was being written when the process was killed, before any training.
    """
    by_path = {job.folder.path.resolve(): job for job in jobs}
    records = {path: recorded_fleet(job.folder) if job.resume else () for path, job in by_path.items()}
    fleets, restored = [], set[Path]()
    for path, record in records.items():
        members = [each for each in record if each in by_path]
        if path in members and path not in restored and all(records[each] == record for each in members):
            fleets.append([by_path[each] for each in members])
            restored |= set(members)
    return fleets, [job for path, job in by_path.items() if path not in restored]
