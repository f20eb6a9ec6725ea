"""One job while it trains: keeps its run folder up to date, evaluates, writes the model and the result."""

import logging
import shutil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdgan_compress.distillation.train_log import DivergedError, TrainRecord
from kdgan_compress.distillation.train_state import TrainState
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.evaluation import Fitted, detection_metrics, fit_scorer, quantile_threshold, score_images
from kdgan_compress.evaluation.score_file import images_sha256, load_scores, save_scores
from kdgan_compress.evaluation.scoring import recalibrate
from kdgan_compress.experiment.aliases import update_state
from kdgan_compress.experiment.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdgan_compress.experiment.fingerprint import check_fingerprint, fingerprint
from kdgan_compress.experiment.job import Job
from kdgan_compress.experiment.metrics_file import is_epoch
from kdgan_compress.experiment.results import RunResult, read_result, write_result
from kdgan_compress.experiment.run_folder import RunFolder, damaged_state
from kdgan_compress.experiment.saturation import warn_of
from kdgan_compress.files import write_text
from kdgan_compress.gans import Architecture
from kdgan_compress.profiling.machine import machine_name, versions
from kdgan_compress.reports import plot_curves, plot_scores
from kdgan_compress.scores import FittedScorer

NUM_CHECKED_IMAGES = 32
"""Normal and test images that need finite scores before a state is saved."""

logger = logging.getLogger(__name__)

THRESHOLD_RULE = "99% quantile of {}"


class TrainingRun:
    """A job and its run folder; a resumed one continues from its saved state.

    Args:
        job: With its folder made.
        track_auc: Measure AUC after every epoch.
        raw: Also measure it for the weights without EMA.
    """

    def __init__(self, job: Job, track_auc: bool, raw: bool) -> None:
        self.job = job
        self._track_auc, self._raw = track_auc, raw
        self._images_done, self._seconds = 0, 0.0
        self._record: TrainRecord | None = None
        self._num_images_saved: int | None = None
        self.experiment = fingerprint(job)
        self._fitted: dict[tuple[str, int], Fitted] = {}
        self._test_scores: dict[tuple[str, int], NDArray[np.float64]] = {}

    def restore(self) -> None:
        """If the job is resumed or trained elsewhere, load the saved state and drop the metrics written after it.

        Raises:
            KdganError: The state is damaged or of another experiment.
        """
        self.job.folder.failure.unlink(missing_ok=True)
        if self.job.trained_in is not None:
            self._restore(self.job.trained_in)
        elif self.job.resume:
            self._restore(self.job.folder)

    @property
    def is_saved(self) -> bool:
        """Whether the saved state is where the training is."""
        return self._num_images_saved == self.job.scheduler.images_done

    @property
    def progress(self) -> tuple[int, float]:
        """Images and seconds so far."""
        record = self._record
        return (
            self._images_done + (record.num_images if record else 0),
            self._seconds + (record.seconds if record else 0.0),
        )

    def on_record(self, record: TrainRecord) -> float | None:
        """Write what a record says; return the AUC if it was measured."""
        self._record = record
        warn_of(record, self.job.folder.path)
        if not record.epoch_done:
            return None
        auc, auc_raw = self._aucs() if self._track_auc else (None, None)
        self.job.folder.append_metrics(self._metrics_line(record, auc, auc_raw))
        self._images_done, self._seconds = self.progress
        self._record = None
        return auc

    def finish(self, fleet: int) -> RunResult | KdganError:
        """Write the model, the scores, the plots and the result.

        Args:
            fleet: How many models were trained together.
        """
        if self.job.trained_in is not None:
            self.save_state()
        if not self.is_saved:
            return self.fail(
                DivergedError("Weights must stay finite", "they are not after the last step", "Lower the learning rate")
            )
        self._save_models()
        job, folder = self.job, self.job.folder
        auc, auc_raw = self._aucs()
        lines = folder.read_metrics()
        num_images = job.num_images
        result = RunResult(
            run=str(folder.path),
            model=str(folder.model),
            auc=auc,
            auc_raw=auc_raw,
            epochs=sum(stage.epochs for stage in job.scheduler.stages),
            num_images=num_images,
            seconds=round(self._seconds, 3),
            images_per_s=round(num_images / self._seconds, 1) if self._seconds else 0.0,
            seed=job.training.seed,
            threads=torch.get_num_threads(),
            machine=machine_name(job.scheduler.student.gan.device.type),
            fleet=fleet,
            teacher_cache=job.teacher_cache,
            best_epoch_auc_oracle=max((line["auc"] for line in lines if line["auc"] is not None), default=None),
            score=self._fit("ema", job.scheduler.student.ema_generator).description,
        )
        plot_curves(lines, folder.path / "curves.png")
        shutil.rmtree(folder.cache, ignore_errors=True)
        write_result(folder, result)
        return result

    def fail(self, error: DivergedError) -> KdganError:
        """Write the model of the last saved state; return the error with what was kept."""
        folder, scheduler = self.job.folder, self.job.scheduler
        if not folder.state.exists():
            write_text(folder.failure, f"{error.found}\n")
            return KdganError(error.problem, error.found, f"{error.hint}; nothing had been saved yet")
        self.load_state(folder)
        self._save_models()
        stage_index, epochs_done = scheduler.position
        kept = f"{folder.model} holds the last good model, of epoch {epochs_done} of stage {stage_index + 1}"
        return KdganError(error.problem, error.found, f"{error.hint}; {kept}")

    def _aucs(self) -> tuple[float | None, float | None]:
        """AUC of the EMA generator and, if asked for, of the generator without EMA."""
        if not self.job.split.is_labelled:
            return None, None
        student = self.job.scheduler.student
        auc = self._auc("ema", student.ema_generator)
        return auc, self._auc("raw", student.gan.generator) if self._raw else None

    def _auc(self, name: str, generator: nn.Module) -> float:
        return detection_metrics(self._score_test(name, generator), self.job.split.test_is_anomalous).auc

    def _score_test(self, name: str, generator: nn.Module) -> NDArray[np.float64]:
        """Scores of the test split after as many images, computed once."""
        key = name, self.job.scheduler.images_done
        if key not in self._test_scores:
            self._test_scores = {k: v for k, v in self._test_scores.items() if k[1] == key[1]}
            self._test_scores[key] = score_images(self._fit(name, generator).scorer, self.job.split.test)
        return self._test_scores[key]

    def _fit(self, name: str, generator: nn.Module) -> Fitted:
        """The generator with its score fitted after as many images, once."""
        key = name, self.job.scheduler.images_done
        if key not in self._fitted:
            self._fitted = {k: v for k, v in self._fitted.items() if k[1] == key[1]}
            job, gan = self.job, self.job.scheduler.student.gan
            if name == "ema" and job.shares_score and job.trained_in is not None:
                self._fitted[key] = self._shared_fit(job.trained_in)
            else:
                self._fitted[key] = fit_scorer(generator, job.split, job.recipe.score, job.grid, gan.discriminator)
        return self._fitted[key]

    def _shared_fit(self, source: RunFolder) -> Fitted:
        """The score that another run has fitted to the same images; the networks get its batch norm statistics.

        Raises:
            KdganError: That run is not finished, or damaged.
        """
        result, saved, checkpoint = read_result(source), load_scores(source.scores), load_checkpoint(source.model)
        if result is None or saved is None:
            raise KdganError("A run whose score is shared must be finished", f"{source.path} is not", "Run it again")
        student = self.job.scheduler.student
        for name, network in (student.gan.networks() | {"generator": student.ema_generator}).items():
            network.load_state_dict(checkpoint.weights[name])
        return Fitted(
            scorer=checkpoint.scorer().to(student.gan.device),
            normal_scores=saved.calibration_scores,
            scored=checkpoint.threshold_rule.removeprefix(THRESHOLD_RULE.format("")),
            description=result.score,
        )

    def _save_models(self) -> None:
        job, folder, student = self.job, self.job.folder, self.job.scheduler.student
        test = self._score_test("ema", student.ema_generator)
        if student.gan.generator is not student.ema_generator:
            recalibrate(student.gan.generator, job.split.train)
        fitted = self._fit("ema", student.ema_generator)
        normals, threshold = fitted.normal_scores, quantile_threshold(fitted.normal_scores)
        if len(normals) > 1 and float(np.ptp(normals)) == 0:
            text = "%s gives every normal image the same score, %.4g: it can't tell images apart; train longer"
            logger.warning(text, folder.path, normals[0])
        save_checkpoint(folder.model, self._checkpoint(student, job.architecture, fitted))
        save_scores(folder.scores, fitted.scorer, job.recipe.data, job.split, normals, test)
        plot_scores(normals, test, job.split.test_is_anomalous, threshold, folder.path / "scores.png")
        teacher = job.scheduler.teacher
        if teacher is not None and job.teacher_architecture is not None and job.scheduler.trains_teacher:
            if teacher.gan.generator is not teacher.ema_generator:
                recalibrate(teacher.gan.generator, job.split_of_teacher.train)
            gan, split = teacher.gan, job.split_of_teacher
            fitted = fit_scorer(teacher.ema_generator, split, job.recipe.score, job.grid, gan.discriminator)
            save_checkpoint(folder.teacher, self._checkpoint(teacher, job.teacher_architecture, fitted))

    def _checkpoint(self, state: TrainState, architecture: Architecture, fitted: Fitted) -> Checkpoint:
        job = self.job
        weights = {name: network.state_dict() for name, network in state.gan.networks().items()}
        if state.ema_generator is not state.gan.generator:
            weights["raw"] = weights["generator"]
            weights["generator"] = state.ema_generator.state_dict()
        scorer = fitted.scorer
        return Checkpoint(
            architecture=architecture,
            data=job.recipe.data,
            threshold=quantile_threshold(fitted.normal_scores),
            threshold_rule=THRESHOLD_RULE.format(fitted.scored),
            provenance=job.provenance
            | {"seed": job.training.seed, "split_sha256": job.split.split_sha256, "versions": versions()}
            | {"normals_sha256": images_sha256(job.split.normals)},
            weights=weights,
            score=job.recipe.score,
            statistic=scorer.statistic if isinstance(scorer, FittedScorer) else None,
        )

    def save_state(self, is_next: bool = False) -> None:
        """Save the state, or the next one, which counts after ``RunFolder.use_next_state``."""
        self.job.folder.save_state(self.job.scheduler.state_dict() | {"experiment": self.experiment}, is_next)
        self._num_images_saved = self.job.scheduler.images_done

    def is_finite(self) -> bool:
        """Whether everything that is trained has finite weights and gives some images finite scores."""
        for state, split in zip(self.job.trained, (self.job.split, self.job.split_of_teacher), strict=False):
            images = split.train[:NUM_CHECKED_IMAGES]
            if not split.is_tiled:
                images = torch.cat([images, split.test[-NUM_CHECKED_IMAGES:]])
            generators = (state.ema_generator, state.gan.generator)
            if not state.is_finite() or not all(np.isfinite(score_images(each, images)).all() for each in generators):
                return False
        return True

    def _restore(self, source: RunFolder) -> None:
        scheduler = self.job.scheduler
        kept: list[dict[str, Any]] = []
        if source.state.exists():
            self.load_state(source)
            lines = filter(is_epoch, source.read_metrics())
            kept = [line for line in lines if (line["stage_index"], line["epoch"]) <= scheduler.position]
        if source is not self.job.folder:  # its AUC is that of another score or test split
            kept = [line | {"auc": None, "auc_raw": None} for line in kept]
        self.job.folder.write_metrics(kept)
        self._images_done = scheduler.images_done - scheduler.images_within_epoch
        self._seconds = sum(line["seconds"] for line in kept)

    def load_state(self, source: RunFolder) -> None:
        """Continue from a saved state; the job's own must be of the same experiment.

        Raises:
            KdganError: It is damaged, or of another experiment.
        """
        is_own = source is self.job.folder
        try:
            state = update_state(source.load_state())
            self.job.scheduler.load_state_dict(state)
            if "experiment" in state and is_own:
                check_fingerprint(state["experiment"], self.job, self.experiment)
            if is_own:
                self._num_images_saved = self.job.scheduler.images_done
        except KdganError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise damaged_state(source.state, first_line(error)) from None

    def _metrics_line(self, record: TrainRecord, auc: float | None, auc_raw: float | None) -> dict[str, Any]:
        stage_index, _ = self.job.scheduler.position
        return {
            "stage_index": stage_index,
            "stage": record.stage,
            "epoch": record.epoch,
            "num_images": record.num_images,
            "seconds": record.seconds,
            "images_per_s": record.num_images / record.seconds,
            **record.losses,
            "auc": auc,
            "auc_raw": auc_raw,
        }
