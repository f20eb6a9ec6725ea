"""Progress and results of training runs."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter

from kdgan_compress.distillation.train_log import TrainRecord
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.files import read_text, write_text

MAX_RESULT_BYTES = 1_000_000
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Progress:
    """Progress of one run, or of several together.

    Attributes:
        record: The trainer's latest record.
        images_done: Images of all stages and runs so far.
        images_total: Images of all stages and runs.
        images_per_s: Mean so far.
        auc: AUC of the record's model, where it was measured.
        run: Name of the run folder that the record belongs to; None where there is only one.
    """

    record: TrainRecord
    images_done: int
    images_total: int
    images_per_s: float
    auc: float | None = None
    run: str | None = None


ShowProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class RunResult:
    """The result of one run; the content of ``result.json``.

    Attributes:
        run: The run folder.
        model: Its model file.
        auc: AUC on the whole test split of the last epoch's EMA weights; None without labels of both kinds.
        auc_raw: The same of the last weights without EMA; None unless asked for.
        epochs: Of all stages together.
        num_images: Images trained on, with repetition.
        seconds: Training only, without evaluation; a fleet's time is divided evenly among its members.
        images_per_s: ``num_images / seconds``.
        seed: Seed of initialisation and order.
        threads: Torch's threads.
        machine: Processor or GPU.
        fleet: Models trained together with it; 1 for a run on its own.
        teacher_cache: How the teacher's features were cached, as text; None without a teacher.
        score: The score and what was chosen for it, in words.
        best_epoch_auc_oracle: Highest AUC of any epoch, where AUC was tracked: an oracle, chosen by test labels.
    """

    run: str
    model: str
    auc: Finite | None
    auc_raw: Finite | None
    epochs: Count
    num_images: Count
    seconds: Finite
    images_per_s: Finite
    seed: Count
    threads: Count
    machine: str
    fleet: Count = 1
    teacher_cache: str | None = None
    best_epoch_auc_oracle: Finite | None = None
    score: str = ""


@dataclass(frozen=True)
class FleetResult:
    """Results of several runs.

    Attributes:
        members: Results of the runs that ended well, in their order.
        failed: Error messages by run folder.
        fleet: Largest number of models that were trained together.
        num_images: Of all members.
        seconds: Of all members; fleets run one after the other.
        images_per_s: ``num_images / seconds``.
        note: Why the models were trained one after the other, if they could not be trained together.
    """

    members: list[RunResult]
    failed: dict[str, str]
    fleet: int
    num_images: int
    seconds: float
    images_per_s: float
    note: str | None = None


@dataclass(frozen=True)
class RunResults:
    """What the runner returns: a result, or the error of a run that failed, by run folder.

    Attributes:
        by_run: In the order of the jobs.
        fleet: Largest number of models that were trained together.
        note: Why they were trained one after the other, if they could not be trained together.
    """

    by_run: Mapping[str, RunResult | KdganError]
    fleet: int = 1
    note: str | None = None

    def single(self) -> RunResult:
        """The only result; its error is raised."""
        (result,) = self.by_run.values()
        if isinstance(result, KdganError):
            raise result
        return result

    def all(self) -> FleetResult:
        """All results with their totals."""
        members = [result for result in self.by_run.values() if isinstance(result, RunResult)]
        failed = {run: str(result) for run, result in self.by_run.items() if isinstance(result, KdganError)}
        num_images, seconds = sum(m.num_images for m in members), sum(m.seconds for m in members)
        rate = num_images / seconds if seconds else 0.0
        return FleetResult(members, failed, self.fleet, num_images, seconds, rate, self.note)


def write_result(folder: RunFolder, result: RunResult) -> None:
    """Write ``result.json``, whose paths are relative to the run folder."""
    stored = dataclasses.replace(result, run=".", model=folder.model.name)
    write_text(folder.result, json.dumps(dataclasses.asdict(stored), indent=2) + "\n")


def read_result(folder: RunFolder) -> RunResult | None:
    """The result of a finished run, else None.

    Raises:
        KdganError: The file is damaged or not one of this package.
    """
    if not folder.result.exists():
        return None
    try:
        text = read_text(folder.result, MAX_RESULT_BYTES)
        result = TypeAdapter(RunResult).validate_json(text, strict=True)
    except (OSError, ValueError):
        raise KdganError(
            "result.json is not one that train or distill wrote", f"{folder.result}", "Remove it, then use --resume"
        ) from None
    return dataclasses.replace(result, run=str(folder.path), model=str(folder.model))
