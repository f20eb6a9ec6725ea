"""Profile models: exact counts, and size and latency of their detector files."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from kdgan_compress.api.export import write_checkpoint
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model, model_name, model_path
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.files import scratch_folder
from kdgan_compress.gans import Architecture, build
from kdgan_compress.profiling.counts import Counts
from kdgan_compress.profiling.latency import Latency, detector_call, identity_model_call, measure_latency
from kdgan_compress.profiling.machine import machine_name
from kdgan_compress.runtime import Detector

CUSTOM = "own"
"""Family and channels of a detector that was exported from a user's own GAN."""

Profilable = str | Path | Architecture
"""What can be profiled: a run folder, model file, ``.onnx`` detector, or an architecture (with fresh weights)."""


@dataclass(frozen=True)
class ModelProfile(Counts):
    """Cost of scoring one image with a model.

    Attributes:
        name: Name of the run or file, or ``family channels``.
        family: Name of the GAN family.
        channels: Channels of the layers, such as ``2-4-8``.
        image_channels: 1 or 3.
        size_bytes: Size of the ``.onnx`` detector file.
        latency_us: Time from pixels to decision: ONNX Runtime, one thread, batch size 1.
    """

    name: str
    family: str
    channels: str
    image_channels: int
    size_bytes: int
    latency_us: Latency


@dataclass(frozen=True)
class CompressionRatios:
    """How many times less a model costs than a reference; latencies are 10 % quantiles of one measurement.

    ``macs`` is None if the model has no convolution.
    """

    params: float
    macs: float | None
    bytes: float
    latency: float


@dataclass(frozen=True)
class ProfileReport:
    """A model and, on request, the model it is compared with; ``ratios`` are the second over the first."""

    models: list[ModelProfile]
    ratios: CompressionRatios | None
    machine: str


def profile(model: Profilable, against: Profilable | None = None) -> ProfileReport:
    """Profile a model and, in the same measurement, one to compare with, usually its teacher.

    Returns:
        ``model`` first, then ``against``; ratios are ``against`` over ``model``.

    Example:
        >>> profile("runs/student", "runs/teacher").ratios  # doctest: +SKIP
    """
    models = profile_all([model] if against is None else [model, against])
    return ProfileReport(models, ratios(*models) if len(models) == 2 else None, machine_name())


def profile_all(models: Sequence[Profilable]) -> list[ModelProfile]:
    """Profile several models; their latencies are measured in turns."""
    with scratch_folder() as scratch:
        return profile_files([detector_file(model, scratch / f"{i}.onnx") for i, model in enumerate(models)])[0]


def profile_files(
    files: Sequence[tuple[str, Path]], identity_of: Sequence[int] = (), size: tuple[int, int] = (32, 32)
) -> tuple[list[ModelProfile], dict[int, Latency]]:
    """Profile detector files and identity graphs; their latencies are measured in turns.

    Args:
        files: Name and path of each detector.
        identity_of: Numbers of image channels for which an identity graph is measured: a call without computation.
        size: Height and width of the identity graphs' images.

    Returns:
        The profiles, and the latency of the identity graph by number of channels.
    """
    detectors = [Detector(path) for _, path in files]
    identities = [identity_model_call(size, channels) for channels in identity_of]
    latencies = measure_latency([*identities, *(detector_call(detector) for detector in detectors)])
    profiles = [
        ModelProfile(
            name=name,
            family=detector.metadata.get("family", CUSTOM),
            channels=detector.metadata.get("channels", CUSTOM),
            image_channels=detector.image_channels,
            **{field.name: int(detector.metadata[field.name]) for field in fields(Counts)},
            size_bytes=path.stat().st_size,
            latency_us=latency,
        )
        for (name, path), detector, latency in zip(files, detectors, latencies[len(identities) :], strict=True)
    ]
    return profiles, dict(zip(identity_of, latencies, strict=False))


def ratios(model: ModelProfile, against: ModelProfile) -> CompressionRatios:
    """``against`` over ``model``."""
    return CompressionRatios(
        params=against.num_params / model.num_params,
        macs=against.conv_macs / model.conv_macs if model.conv_macs else None,
        bytes=against.size_bytes / model.size_bytes,
        latency=against.latency_us.p10 / model.latency_us.p10,
    )


def detector_file(model: Profilable, scratch: Path) -> tuple[str, Path]:
    """Name and detector file of a model; exported to ``scratch`` unless it is a detector file already."""
    if isinstance(model, Architecture):
        write_detector(scratch, build(model).generator, model, threshold=0.0, threshold_rule="none: fresh weights")
        return f"{model.family} {model.channels_str}", scratch
    if Path(model).suffix == ".onnx":
        return model_name(model), Path(model)
    checkpoint = load_model(model)
    write_checkpoint(scratch, dataclasses.replace(checkpoint, threshold=checkpoint.threshold or 0.0))
    return model_name(model), scratch


def teacher_of(checkpoint: Checkpoint, against: str | Path | None) -> str | Path | None:
    """The model to compare with: ``against``, or the teacher that a model was distilled from, if it still exists."""
    teacher: str | None = checkpoint.provenance.get("teacher")
    return against or (teacher if teacher and model_path(teacher).exists() else None)
