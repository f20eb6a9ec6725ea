"""Candidates of a search: students that are trained, and the files that each can be exported as."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from kdgan_compress.api.evaluate import score_split
from kdgan_compress.api.export import write_checkpoint
from kdgan_compress.api.profile import profile_files
from kdgan_compress.data import Split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import score_images
from kdgan_compress.evaluation.metrics import detection_metrics
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ValidationData
from kdgan_compress.runtime import Detector
from kdgan_compress.scores import PositionGaussian

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """A student to train."""

    channels: tuple[int, ...]
    norm: str

    @property
    def name(self) -> str:
        """Such as ``2-4-8-batch``; also the name of its run folder."""
        return "-".join(map(str, self.channels)) + f"-{self.norm}"


@dataclass(frozen=True)
class Candidate:
    """One file of one student.

    Attributes:
        network: Name of the student.
        precision: Precision of the file.
        rank: Directions that are kept; None for all.
        size_bytes: Bytes of the file.
        latency_us: Time for one image: the 10 % quantile, in microseconds.
        auc: AUC on the half of the test images that chooses.
        auc_drop: The teacher's AUC there minus this one.
        reported_auc: AUC on the other half.
        reported_auc_drop: The teacher's AUC there minus this one.
        run: Run folder of the student.
        is_final: Whether the student had the full training.
    """

    network: str
    precision: str
    rank: int | None
    size_bytes: int
    latency_us: float
    auc: float
    auc_drop: float
    reported_auc: float
    reported_auc_drop: float
    run: str
    is_final: bool

    @property
    def name(self) -> str:
        """Such as ``2-4-8-batch int8``."""
        return f"{self.network} {self.precision}" + ("" if self.rank is None else f" of rank {self.rank}")


@dataclass(frozen=True, eq=False)
class TestHalves:
    """Two halves of a labelled test split: one chooses, the other reports.

    Attributes:
        split: The whole split.
        is_choosing: Which test images (M,) choose; each half has both kinds.
        teacher_auc: The teacher's AUC on the half that chooses, and on the other.
    """

    split: Split
    is_choosing: NDArray[np.bool_]
    teacher_auc: tuple[float, float]

    @classmethod
    def of(cls, teacher: Checkpoint, split: Split) -> "TestHalves":
        """Divide a labelled split with a fixed seed.

        Raises:
            KdganError: There are fewer than two normal or two anomalous test images.
        """
        labels = split.test_is_anomalous
        if min(labels.sum(), (~labels).sum()) < 2:
            found = f"found {(~labels).sum()} normal and {labels.sum()} anomalous test images"
            raise KdganError("A search needs at least two test images of each kind", found, "Add labelled images")
        chosen, _ = train_test_split(np.arange(len(labels)), test_size=0.5, random_state=0, stratify=labels)
        is_choosing = np.isin(np.arange(len(labels)), chosen)
        halves = cls(split, is_choosing, (0.0, 0.0))
        return dataclasses.replace(halves, teacher_auc=halves.aucs(score_images(teacher.scorer(), split.test)))

    def aucs(self, scores: NDArray[np.float64]) -> tuple[float, float]:
        """AUC of scores (M,) on the half that chooses, and on the other."""
        labels = self.split.test_is_anomalous
        first, second = (
            detection_metrics(scores[half], labels[half]).auc for half in (self.is_choosing, ~self.is_choosing)
        )
        return first, second


def measure(
    runs: Sequence[str],
    halves: TestHalves,
    precisions: Sequence[str],
    ranks: Sequence[int | None],
    folder: Path,
    is_final: bool,
) -> list[Candidate]:
    """Export trained students in every precision and rank and measure the files; latencies are measured in turns.

    A file whose scores disagree with fp32 is left out, and the reason is logged.

    Args:
        runs: Run folders, named after their networks.
        halves: The test images.
        precisions: Names in ``PRECISIONS``.
        ranks: Numbers of directions to keep; None for all.
        folder: Where files are written for the time being.
        is_final: Whether these students had the full training.
    """
    files: list[tuple[str, Path]] = []
    kinds: list[tuple[str, str, int | None]] = []
    for run in runs:
        checkpoint = load_model(run)
        validation = ValidationData.from_split(halves.split, checkpoint.statistic is not None)
        for precision in precisions:
            for rank in ranks:
                path = folder / f"{len(files)}.onnx"
                try:
                    report = write_checkpoint(path, checkpoint, _settings(checkpoint, precision, rank), validation)
                except KdganError as error:
                    logger.info("%s %s is left out: %s", Path(run).name, precision, error)
                    continue
                if (run, report.precision, rank) not in kinds:
                    files.append((run, path))
                    kinds.append((run, report.precision, rank))
    candidates = []
    for (run, path), (_, precision, rank), profile in zip(files, kinds, profile_files(files)[0], strict=True):
        auc, reported = halves.aucs(score_split(Detector(path), halves.split))
        candidates.append(
            Candidate(
                network=Path(run).name,
                precision=precision,
                rank=rank,
                size_bytes=profile.size_bytes,
                latency_us=profile.latency_us.p10,
                auc=auc,
                auc_drop=halves.teacher_auc[0] - auc,
                reported_auc=reported,
                reported_auc_drop=halves.teacher_auc[1] - reported,
                run=run,
                is_final=is_final,
            )
        )
    return candidates


def rank_option(checkpoint: Checkpoint) -> str:
    """The option of ``export`` for a rank: of the statistics per grid position or, without such, of the latent."""
    return "--rank" if isinstance(checkpoint.statistic, PositionGaussian) else "--latent-rank"


def _settings(checkpoint: Checkpoint, precision: str, rank: int | None) -> ExportSettings:
    if rank_option(checkpoint) == "--rank":
        return ExportSettings(precision, rank=rank)
    return ExportSettings(precision, latent_rank=rank)
