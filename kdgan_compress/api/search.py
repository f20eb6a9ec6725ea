"""Search for the smallest student that meets limits of bytes, latency and AUC."""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdgan_compress.api.evaluate import labelled_split
from kdgan_compress.api.resume import start_or_resume
from kdgan_compress.api.search_candidates import Candidate, Network, TestHalves, measure
from kdgan_compress.api.search_limits import Limits
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import weights_sha256
from kdgan_compress.experiment.halving import Scored, survivors
from kdgan_compress.experiment.job import distillation_job
from kdgan_compress.experiment.models import load_model
from kdgan_compress.experiment.recipe import Recipe, load_recipe
from kdgan_compress.experiment.results import RunResult
from kdgan_compress.experiment.runner import run_jobs
from kdgan_compress.experiment.teacher_caches import TeacherCaches
from kdgan_compress.export.precisions import find_precision
from kdgan_compress.files import remove_stale_files, scratch_folder, write_text
from kdgan_compress.gans.architecture import channels_from_width
from kdgan_compress.reports.results import pareto_front
from kdgan_compress.reports.search_plot import plot_search

WIDTHS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class SearchReport:
    """The outcome of a search.

    Attributes:
        winner: The smallest candidate within the limits or, without ``max_auc_drop``, the one of the highest AUC.
        front: Candidates of the full training that no other beats in both bytes and AUC, from small to large.
        candidates: All files that were measured, also those of the short training.
        limits: The limits.
        num_networks: Students of the short training.
        num_trained: Students of the full training.
        seconds: Training time of both.
        full_seconds: What the full training of all students would have taken, by the mean of those that had it.
        picture: AUC drop against bytes.
    """

    winner: Candidate
    front: list[Candidate]
    candidates: list[Candidate]
    limits: Limits
    num_networks: int
    num_trained: int
    seconds: float
    full_seconds: float
    picture: str


def search(
    teacher: str | Path,
    limits: Limits,
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    channels: Sequence[tuple[int, ...]] = (),
    norms: Sequence[str] = ("batch",),
    precisions: Sequence[str] = ("fp32", "int8"),
    ranks: Sequence[int | None] = (None,),
    keep: float = 1 / 6,
    data: str | None = None,
    data_root: str | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> SearchReport:
    """Train every student briefly, the most promising ones fully, and choose among their files.

    One half of the test images chooses, and the other half reports. Finished students in ``out`` are kept.

    Args:
        teacher: Run folder or model file.
        limits: The limits.
        out: Output folder: run folders in ``screening`` and ``students``, ``search.json``, ``search.yaml``
            and ``search.png``.
        recipe: The full training; None for the shipped ``default``.
        channels: Channels of each student; empty for widths 1, 2, 3, 4, 6 and 8.
        norms: Normalisation layers.
        precisions: Precisions of the files.
        ranks: Ranks of the files (``export --rank``, or ``--latent-rank`` of a score without statistics).
        keep: Fraction of the students that get the full training; 1 for all that are small and fast enough.
        data: Where the images are now.
        data_root: The same for named data sets.
        announce: Called with a line about each step.

    Raises:
        KdganError: No candidate meets the limits (the closest is named, and ``search.json`` has all), or an argument
            is invalid.
    """
    recipe, out = recipe or load_recipe(), Path(out)
    if not 0 < keep <= 1:
        raise KdganError("The fraction to keep must be above 0 and at most 1", f"got {keep}", "Choose, say, 0.2")
    for precision in precisions:
        find_precision(precision)
    checkpoint = load_model(teacher)
    size = checkpoint.architecture.image_size
    plans = channels or [channels_from_width(width, size) for width in WIDTHS]
    networks = [Network(tuple(plan), norm) for plan, norm in itertools.product(plans, norms)]
    split = labelled_split(checkpoint.data.relocate(data, data_root), size, checkpoint.architecture.image_channels)
    halves = TestHalves.of(checkpoint, split)
    _check_folder(out, recipe, weights_sha256(checkpoint.scorer()))
    trainer = _Trainer(teacher, recipe, out, data, data_root, announce)
    with scratch_folder() as scratch:
        screened = trainer.train(networks, full=False)
        announce("measuring their files")
        short = measure([each.run for each in screened], halves, precisions, ranks, scratch, is_final=False)
        fitting = [each for each in short if limits.fits_device(each)]
        if not short:
            hint = "Choose other --precision or --rank"
            raise KdganError("No student has a file in any of the precisions and ranks", f"tried {len(screened)}", hint)
        if not fitting:
            _write(out, short, limits)
            raise limits.error(short)
        scored = [Scored(each.network, each.auc, each.size_bytes) for each in fitting]
        names = survivors(scored, keep, limits.max_auc_drop, halves.teacher_auc[0])
        trained = trainer.train([each for each in networks if each.name in names], full=True)
        announce("measuring their files")
        final = measure([each.run for each in trained], halves, precisions, ranks, scratch, is_final=True)
    _write(out, [*short, *final], limits)
    winners = [each for each in final if limits.fits(each)]
    if not winners:
        raise limits.error(final)
    by_auc = limits.max_auc_drop is None
    winner = min(winners, key=lambda c: (-c.auc if by_auc else c.size_bytes, c.size_bytes, c.latency_us))
    return SearchReport(
        winner=winner,
        front=pareto_front(final, lambda each: each.size_bytes, lambda each: each.auc),
        candidates=[*short, *final],
        limits=limits,
        num_networks=len(networks),
        num_trained=len(trained),
        seconds=sum(each.seconds for each in [*screened, *trained]),
        full_seconds=sum(each.seconds for each in trained) / len(trained) * len(networks),
        picture=plot_search(out / "search.png", final, winner, limits.max_kb, limits.max_auc_drop),
    )


@dataclass(frozen=True)
class _Trainer:
    """Trains students of one teacher, each in a run folder of its own; the teacher's features are computed once."""

    teacher: str | Path
    recipe: Recipe
    out: Path
    data: str | None
    data_root: str | None
    announce: Callable[[str], None]
    caches: TeacherCaches = field(default_factory=TeacherCaches)

    def train(self, networks: Sequence[Network], full: bool) -> list[RunResult]:
        """Train the students, or finish those that are begun; one that fails is announced and left out.

        Raises:
            KdganError: All fail.
        """
        results = []
        for number, network in enumerate(networks, start=1):
            self.announce(f"{'full' if full else 'short'} training {number} of {len(networks)}: {network.name}")
            folder = self.out / ("students" if full else "screening") / network.name
            student = {"channels": network.channels, "norm": network.norm}
            recipe = self.recipe.replace({"distillation": {"student": student}}, {} if full else self._short_training())
            try:
                results.append(start_or_resume(folder, functools.partial(self._distil, recipe, folder)))
            except KdganError as error:
                if number == len(networks) and not results:
                    raise
                self.announce(f"{network.name} is left out: {error}")
        return results

    def _short_training(self) -> dict[str, Any]:
        """One epoch of K_l alone; where the discriminator is scored, of structure 2, which trains it too."""
        structure = "2" if self.recipe.score.uses_discriminator else "1"
        return {"distillation": {"schedule": structure, "training": {"epochs": 1}}}

    def _distil(self, recipe: Recipe, folder: Path) -> RunResult:
        job = distillation_job(
            self.teacher, recipe, folder, data=self.data, data_root=self.data_root, caches=self.caches
        )
        return run_jobs([job]).single()


def _check_folder(out: Path, recipe: Recipe, teacher_sha256: str) -> None:
    """Note the recipe and the teacher in ``out``, or check that they are those of the search that is continued."""
    path, text = out / "search.yaml", f"# teacher {teacher_sha256}\n{recipe.relative_to(out).to_yaml()}"
    if path.exists() and path.read_bytes() != text.encode():
        found = f"{out} has students of another teacher or recipe"
        raise KdganError("A search continues with the same teacher and recipe", found, "Give another --out")
    remove_stale_files(out)
    write_text(path, text)


def _write(out: Path, candidates: Sequence[Candidate], limits: Limits) -> None:
    stored = [dataclasses.replace(each, run=os.path.relpath(each.run, out)) for each in candidates]
    content = {"limits": dataclasses.asdict(limits), "candidates": [dataclasses.asdict(each) for each in stored]}
    write_text(out / "search.json", json.dumps(content, indent=2) + "\n")
