"""What models cost: counted exactly, and measured as the files that would be shipped."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.export import write_detector
from kdgan_compress.gans import Architecture, build
from kdgan_compress.profiling import Latency, measure_latency
from kdgan_compress.runtime import Detector
from kdgan_compress.workflows.export import export_detector
from kdgan_compress.workflows.machine import machine_name
from kdgan_compress.workflows.models import model_name

OWN = "own"
"""Family and plan of a detector that a user exported from a GAN of their own."""

Subject = str | Path | Architecture
"""What can be profiled: a run folder, model file, ``.onnx`` detector, or an architecture (with fresh weights)."""


@dataclass(frozen=True)
class ModelProfile:
    """One model's costs of scoring one image.

    Attributes:
        name: The run's or file's name, or ``family channels``.
        family: A family name.
        channels: The plan, such as ``2-4-8``.
        image_channels: 1 or 3.
        num_params: Parameters of the deployed graph.
        conv_macs: Multiply-accumulates of its convolutions.
        fvcore_flops: fvcore's total.
        size_bytes: The fp32 ``.onnx`` detector file.
        latency_us: ONNX Runtime, one thread, batch 1, from uint8 pixels to verdict.
    """

    name: str
    family: str
    channels: str
    image_channels: int
    num_params: int
    conv_macs: int
    fvcore_flops: int
    size_bytes: int
    latency_us: Latency


@dataclass(frozen=True)
class Ratios:
    """How many times less a model costs than the one it is held against; latency by medians of one run.

    ``macs`` is None where the model has no convolution.
    """

    params: float
    macs: float | None
    bytes: float
    latency: float


@dataclass(frozen=True)
class ProfileReport:
    """The model and what it is held against; the ratios are the second over the first."""

    models: list[ModelProfile]
    ratios: Ratios | None
    machine: str


def profile(model: Subject, against: Subject | None = None) -> ProfileReport:
    """Profile a model and, in the same run, the one it is held against, usually its teacher.

    Returns:
        ``model`` first, then ``against``; ratios are ``against`` over ``model``.
    """
    models = profile_all([model] if against is None else [model, against])
    return ProfileReport(models, ratios(*models) if len(models) == 2 else None, machine_name())


def profile_all(subjects: Sequence[Subject]) -> list[ModelProfile]:
    """Profile several models in one run, their latency measured in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        named = [_detector_file(subject, Path(scratch) / f"{i}.onnx") for i, subject in enumerate(subjects)]
        detectors = [Detector(file) for _, file in named]
        latencies = measure_latency(detectors, [detector.image_size for detector in detectors])
        return [
            ModelProfile(
                name=name,
                family=detector.metadata.get("family", OWN),
                channels=detector.metadata.get("channels", OWN),
                image_channels=detector.image_channels,
                num_params=int(detector.metadata["num_params"]),
                conv_macs=int(detector.metadata["conv_macs"]),
                fvcore_flops=int(detector.metadata["fvcore_flops"]),
                size_bytes=file.stat().st_size,
                latency_us=latency,
            )
            for (name, file), detector, latency in zip(named, detectors, latencies, strict=True)
        ]


def ratios(model: ModelProfile, against: ModelProfile) -> Ratios:
    """``against`` over ``model``."""
    return Ratios(
        params=against.num_params / model.num_params,
        macs=against.conv_macs / model.conv_macs if model.conv_macs else None,
        bytes=against.size_bytes / model.size_bytes,
        latency=against.latency_us.median / model.latency_us.median,
    )


def _detector_file(subject: Subject, scratch: Path) -> tuple[str, Path]:
    """A name and the detector file to measure, exported to ``scratch`` where there is none yet."""
    if isinstance(subject, Architecture):
        generator = build(subject).generator
        write_detector(scratch, generator, subject, threshold=0.0, threshold_rule="none: fresh weights")
        return f"{subject.family} {subject.plan}", scratch
    if Path(subject).suffix == ".onnx":
        return model_name(subject), Path(subject)
    export_detector(subject, scratch)
    return model_name(subject), scratch
