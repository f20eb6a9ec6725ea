"""Import a checkpoint of another project as a run folder, from which students are distilled like from any teacher."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdgan_compress.data import UNKNOWN, DataSettings, Split, load_split, native_channels
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation import detection_metrics, quantile_threshold, save_scores, score_images
from kdgan_compress.experiment.checkpoint import OWN_SCORE, Checkpoint, save_checkpoint
from kdgan_compress.experiment.import_file import read_tensors
from kdgan_compress.experiment.import_ganomaly import Imported, import_ganomaly
from kdgan_compress.experiment.recipe import load_recipe
from kdgan_compress.experiment.results import RunResult, write_result
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.experiment.run_lock import locked
from kdgan_compress.experiment.training_run import THRESHOLD_RULE
from kdgan_compress.gans import Architecture
from kdgan_compress.gans.ganomaly import ANOMALIB, PUBLIC_CODE, set_normalization
from kdgan_compress.profiling.machine import machine_name, versions
from kdgan_compress.reports import plot_scores

DEFAULT_NORMALIZATION = {
    PUBLIC_CODE: ((0.5,), (0.5,)),
    ANOMALIB: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation that each project normalises images in [0, 1] by; anomalib's are ImageNet's."""

GENERATOR_NAME, DISCRIMINATOR_NAME = "netG", "netD"
"""In the names of the two files that the public code writes into one folder."""

NO_DATA = "threshold and AUC: give --data to measure them; distill and evaluate need --data too"


@dataclass(frozen=True)
class ImportResult:
    """What was recognised and written.

    Attributes:
        run: The run folder.
        model: Its model file.
        project: The project that the checkpoint is from, in words.
        architecture: The networks.
        mean: Mean of each channel that the networks' input is normalised by, for images in [0, 1].
        std: The standard deviations.
        discriminator: Where the discriminator is from, in words.
        threshold: Score above which an image is an anomaly; None without data.
        auc: AUC on the test split; None without data, or without labels of both kinds.
        missing: What is not known without data, in words; None with data.
    """

    run: str
    model: str
    project: str
    architecture: Architecture
    mean: tuple[float, ...]
    std: tuple[float, ...]
    discriminator: str
    threshold: float | None = None
    auc: float | None = None
    missing: str | None = None


def import_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    data: str | None = None,
    normal: str | None = None,
    data_root: str | None = None,
    protocol: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImportResult:
    """Write a run folder with the networks of GANomaly's public code or of anomalib's Ganomaly.

    Their scores are the project's, with batch norm in evaluation mode. Nothing in the checkpoint is executed.

    Args:
        checkpoint: ``netG.pth``, with its ``netD.pth`` in the same folder if there is one, a Lightning ``.ckpt``, or
            the same tensors as ``.safetensors``.
        out: The new run folder.
        data: Source of the images, which set the threshold and are stored for ``distill``; None for none.
        normal: The normal class.
        data_root: Where named data sets are.
        protocol: Further attributes of ``DataSettings``.
        mean: Mean of each channel, or of all, that images in [0, 1] were normalised by; None for the project's default.
        std: The standard deviations.

    Raises:
        KdganError: The checkpoint is not one of these or needs code, the data can't be read or don't fit, or the folder
            has a run already; nothing is written.

    Example:
        >>> import_checkpoint("netG.pth", "runs/teacher", data="folder:photos").auc  # doctest: +SKIP
    """
    path, folder = Path(checkpoint), RunFolder(Path(out))
    folder.check_is_new()
    discriminator = path.with_name(path.name.replace(GENERATOR_NAME, DISCRIMINATOR_NAME))
    has_file = discriminator != path and discriminator.is_file()
    imported = import_ganomaly(read_tensors(path), read_tensors(discriminator) if has_file else None)
    architecture = imported.architecture
    default_mean, default_std = DEFAULT_NORMALIZATION[architecture.family]
    mean = _per_channel("mean", mean or default_mean, architecture)
    std = _per_channel("std", std or default_std, architecture)
    if min(std) <= 0:
        raise KdganError("The standard deviations must be above 0", f"got {min(std):g}", "Give others by --std")
    set_normalization(imported.gan, mean, std)
    settings = DataSettings(UNKNOWN)
    if data is not None:
        settings = DataSettings(data, normal, data_root, **(protocol or {})).absolute()
        _check_channels(settings, architecture)
    result = ImportResult(
        run=str(folder.path),
        model=str(folder.model),
        project=imported.project,
        architecture=architecture,
        mean=mean,
        std=std,
        discriminator="the project's" if imported.has_discriminator else "freshly initialised",
        missing=NO_DATA if data is None else None,
    )
    split = None if data is None else load_split(settings, architecture.image_size, architecture.image_channels)
    with locked(folder.path):
        return _write(folder, imported, settings, split, result)


def _per_channel(name: str, values: Sequence[float], architecture: Architecture) -> tuple[float, ...]:
    """One value per image channel."""
    number = architecture.image_channels
    if len(values) not in (1, number):
        found = f"got {len(values)}: {', '.join(f'{value:g}' for value in values)}"
        raise KdganError(f"--{name} needs one number, or one per channel ({number})", found, f"Give {number}")
    return tuple(map(float, values)) if len(values) == number else tuple(map(float, values)) * number


def _check_channels(settings: DataSettings, architecture: Architecture) -> None:
    """Raise a KdganError if a network for grey images gets colour images; both projects repeat grey for RGB."""
    found = native_channels(settings)
    if architecture.image_channels < found:
        problem = f"The checkpoint takes images of {architecture.image_channels} channel"
        raise KdganError(problem, f"those of {settings.source} have {found}", "Give the images it was trained on")


def _write(
    folder: RunFolder, imported: Imported, settings: DataSettings, split: Split | None, result: ImportResult
) -> ImportResult:
    """Score the images, if there are any, and write the run folder."""
    generator = imported.gan.generator.eval()
    rule, normals, test = "none: imported without data", np.empty(0), np.empty(0)
    if split is not None:
        normals, test = score_images(generator, split.calibration), score_images(generator, split.test)
        rule = THRESHOLD_RULE.format(f"{len(normals)} normal images' scores")
        auc = detection_metrics(test, split.test_is_anomalous).auc if split.is_labelled else None
        result = dataclasses.replace(result, threshold=quantile_threshold(normals), auc=auc)
    architecture = json.loads(json.dumps(dataclasses.asdict(imported.architecture)))
    recipe = load_recipe().replace({"model": architecture, "score": {"type": OWN_SCORE.type}})
    recipe = recipe.model_copy(update={"data": settings, "description": f"Imported from {result.project}."})
    checkpoint = Checkpoint(
        architecture=imported.architecture,
        data=settings,
        threshold=result.threshold,
        threshold_rule=rule,
        provenance={"command": "import", "project": result.project, "versions": versions()},
        weights={name: network.state_dict() for name, network in imported.gan.networks().items()},
    )
    save_checkpoint(folder.model, checkpoint)
    if split is not None:
        _write_scores(folder, checkpoint, split, normals, test, result)
    # Last: without a recipe the folder is not a run yet, so the same command can be repeated.
    folder.create(recipe.relative_to(folder.path).to_yaml())
    return result


def _write_scores(
    folder: RunFolder,
    checkpoint: Checkpoint,
    split: Split,
    normals: NDArray[np.float64],
    test: NDArray[np.float64],
    result: ImportResult,
) -> None:
    save_scores(folder.scores, checkpoint.scorer(), checkpoint.data, split, normals, test)
    threshold = checkpoint.required_threshold
    plot_scores(normals, test, split.test_is_anomalous, threshold, folder.path / "scores.png")
    run_result = RunResult(
        run=result.run,
        model=result.model,
        auc=result.auc,
        auc_raw=None,
        epochs=0,
        num_images=0,
        seconds=0.0,
        images_per_s=0.0,
        seed=0,
        threads=torch.get_num_threads(),
        machine=machine_name("cpu"),
        score=f"the score of {result.project}",
    )
    write_result(folder, run_result)
