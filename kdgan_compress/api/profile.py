"""What models cost: counted exactly, and measured as the files that would be shipped."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdgan_compress.api.export import load_judges, write_checkpoint
from kdgan_compress.data import DataSettings, load_split
from kdgan_compress.experiment.models import load_model, model_name, model_path
from kdgan_compress.export import Agreement, ExportReport, ExportSettings, Judges, write_detector
from kdgan_compress.export.precision import FEWEST_CALIBRATION_IMAGES
from kdgan_compress.gans import Architecture, Gan, build
from kdgan_compress.profiling import Latency, measure_latency, passing_through, scoring
from kdgan_compress.profiling.machine import machine_name
from kdgan_compress.runtime import Detector

FORMS = {
    "fp32, no rewrites": ExportSettings(rewrites=frozenset()),
    "fp32": ExportSettings(),
    "fp16": ExportSettings("fp16"),
    "int8": ExportSettings("int8"),
}
PLANS = (
    Architecture(channels=(64, 128, 256)),
    Architecture(channels=(8, 16, 64), image_channels=3, norm="batch"),
    Architecture(channels=(2, 4, 8), norm="batch"),
    Architecture(channels=(1, 2, 4), norm="instance"),
    Architecture(channels=(1, 2, 4), norm="batch"),
)
"""P-KDGAN's teacher and students (Table II); the narrowest with both norms."""

NUM_SAMPLE_IMAGES = 64

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
        size_bytes: The whole ``.onnx`` detector file.
        latency_us: ONNX Runtime, one thread, batch 1, from pixels to verdict.
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
class FormProfile(ModelProfile):
    """One model in one form.

    Attributes:
        form: ``fp32, no rewrites``, ``fp32``, ``fp16`` or ``int8``.
        times_identity: Its latency over that of a graph that gives out its input.
        parity_max_rel: Largest relative difference of its scores from torch's, over images of several odd sizes.
        agreement: With fp32 on the model's own data; None of fp32 and of fresh weights.
    """

    form: str
    times_identity: float
    parity_max_rel: float
    agreement: Agreement | None


@dataclass(frozen=True)
class FormsReport:
    """All forms of all models; ``identity_us`` by image channels."""

    models: list[FormProfile]
    identity_us: dict[str, Latency]
    machine: str


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
        latencies = measure_latency([scoring(detector) for detector in detectors])
        return [
            ModelProfile(**_counts(name, file, detector), latency_us=latency)
            for (name, file), detector, latency in zip(named, detectors, latencies, strict=True)
        ]


def profile_forms(model: str | Path | None = None, against: str | Path | None = None) -> FormsReport:
    """Profile every form that models can be exported in, and an identity graph, in one run.

    Args:
        model: A run folder or model file, judged on its own data (without int8 where it has fewer than 32 normals);
            None for the plans of P-KDGAN's tables with fresh weights, whose scores mean nothing.
        against: Its teacher; None for the one it was distilled from, if that is still there.
    """
    if model is None:
        subjects: list[tuple[str, Gan, Architecture, Judges]] = [
            (f"{plan.channels_str} {plan.norm}", build(plan, seed=0), plan, _sample(plan)) for plan in PLANS
        ]
    else:
        checkpoint = load_model(model)
        teacher = against or checkpoint.provenance.get("teacher")
        subjects = [_subject(model)]
        if teacher is not None and (against is not None or model_path(teacher).exists()):
            subjects.insert(0, _subject(teacher))
    with tempfile.TemporaryDirectory() as scratch:
        rows: list[tuple[str, str, Path, ExportReport]] = []
        for name, gan, architecture, judges in subjects:
            for form, settings in FORMS.items():
                if settings.precision == "int8" and len(judges.train) < FEWEST_CALIBRATION_IMAGES:
                    continue
                file = Path(scratch) / f"{len(rows)}.onnx"
                report = write_detector(
                    file, gan.generator, architecture, 0.0, "none", settings, judges=judges, gate=False
                )
                rows.append((name, form, file, report))
        detectors = [Detector(file) for _, _, file, _ in rows]
        channels = sorted({detector.image_channels for detector in detectors})
        identities = [passing_through(detectors[0].image_size, number) for number in channels]
        latencies = measure_latency([*identities, *(scoring(detector) for detector in detectors)])
        floors = dict(zip(channels, latencies, strict=False))
        return FormsReport(
            models=[
                FormProfile(
                    **_counts(name, file, detector),
                    latency_us=latency,
                    form=form,
                    times_identity=latency.median / floors[detector.image_channels].median,
                    parity_max_rel=report.parity_max_rel,
                    agreement=report.agreement if model is not None else None,
                )
                for (name, form, file, report), detector, latency in zip(
                    rows, detectors, latencies[len(channels) :], strict=True
                )
            ],
            identity_us={str(number): floor for number, floor in floors.items()},
            machine=machine_name(),
        )


def _counts(name: str, file: Path, detector: Detector) -> dict[str, Any]:
    return {
        "name": name,
        "family": detector.metadata.get("family", OWN),
        "channels": detector.metadata.get("channels", OWN),
        "image_channels": detector.image_channels,
        "num_params": int(detector.metadata["num_params"]),
        "conv_macs": int(detector.metadata["conv_macs"]),
        "fvcore_flops": int(detector.metadata["fvcore_flops"]),
        "size_bytes": file.stat().st_size,
    }


def _subject(model: str | Path) -> tuple[str, Gan, Architecture, Judges]:
    checkpoint = load_model(model)
    return model_name(model), checkpoint.build(), checkpoint.architecture, load_judges(checkpoint)


def _sample(architecture: Architecture) -> Judges:
    """A few packaged images: enough to calibrate weights that nobody trained."""
    split = load_split(DataSettings("sample"), architecture.image_size, architecture.image_channels)
    normals = split.train[:NUM_SAMPLE_IMAGES].permute(0, 2, 3, 1).contiguous().numpy()
    return Judges(normals, normals, normals[:0], np.empty(0, bool))


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
        return f"{subject.family} {subject.channels_str}", scratch
    if Path(subject).suffix == ".onnx":
        return model_name(subject), Path(subject)
    write_checkpoint(scratch, load_model(subject))
    return model_name(subject), scratch
