"""Profile every variant in which models can be exported: each precision, and fp32 without graph passes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from kdgan_compress.api.export import load_validation_data
from kdgan_compress.api.profile import ModelProfile, profile_files, teacher_of
from kdgan_compress.data import DataSettings, load_split
from kdgan_compress.experiment.models import load_model, model_name
from kdgan_compress.export.detector_file import ExportReport, resolve_settings, write_detector
from kdgan_compress.export.precisions import PRECISIONS
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import Agreement, ValidationData
from kdgan_compress.files import scratch_folder
from kdgan_compress.gans import Architecture, build
from kdgan_compress.profiling.latency import Latency
from kdgan_compress.profiling.machine import machine_name
from kdgan_compress.scores import input_size

PAPER_ARCHITECTURES = (
    Architecture(channels=(64, 128, 256)),
    Architecture(channels=(8, 16, 64), image_channels=3, norm="batch"),
    Architecture(channels=(2, 4, 8), norm="batch"),
    Architecture(channels=(1, 2, 4), norm="instance"),
    Architecture(channels=(1, 2, 4), norm="batch"),
)
"""Teacher and students of P-KDGAN, Table II; the narrowest with both norms."""

NUM_SAMPLE_IMAGES = 64


@dataclass(frozen=True)
class VariantProfile(ModelProfile):
    """Cost of one model in one variant.

    Attributes:
        variant: ``fp32, no rewrites`` or a precision.
        times_identity: Its latency, relative to a graph that returns its input.
        parity_max_rel: Largest relative difference of its scores from torch's, over images of several sizes.
        agreement: Agreement with fp32 on the model's own data; None for fp32 and for fresh weights.
    """

    variant: str
    times_identity: float
    parity_max_rel: float
    agreement: Agreement | None


@dataclass(frozen=True)
class VariantsReport:
    """All variants of all models; ``identity_us`` is the latency of an identity graph by number of image channels."""

    models: list[VariantProfile]
    identity_us: dict[str, Latency]
    machine: str


def export_variants() -> dict[str, ExportSettings]:
    """Name and settings of each variant: fp32 without graph passes, and one for each row of ``PRECISIONS``."""
    return {
        "fp32, no rewrites": ExportSettings(rewrites=frozenset()),
        **{name: ExportSettings(name) for name in PRECISIONS},
    }


def profile_variants(model: str | Path | None = None, against: str | Path | None = None) -> VariantsReport:
    """Profile every export variant of a model and its teacher, and an identity graph, in one measurement.

    Args:
        model: Run folder or model file, validated on its own data (variants that need more calibration images than it
            has are skipped); None for the architectures of P-KDGAN's tables with fresh weights.
        against: Its teacher; None for the one it was distilled from, if that still exists.
    """
    if model is None:
        subjects = [
            (f"{each.channels_str} {each.norm}", build(each, seed=0).generator, each, 0.0, _sample_images(each))
            for each in PAPER_ARCHITECTURES
        ]
    else:
        subjects = [_load(each) for each in (teacher_of(load_model(model), against), model) if each is not None]
    with scratch_folder() as scratch:
        rows: list[tuple[str, ExportReport]] = []
        files: list[tuple[str, Path]] = []
        for name, scorer, architecture, threshold, data in subjects:
            variants = {resolve_settings(each, scorer, architecture): name for name, each in export_variants().items()}
            for settings, variant in variants.items():
                if len(data.train) >= settings.row.min_calibration_images:
                    path = Path(scratch, f"{len(rows)}.onnx")
                    export = write_detector(
                        path, scorer, architecture, threshold, "none", settings, validation=data, gate=False
                    )
                    rows.append((variant, export))
                    files.append((name, path))
        channels = sorted({architecture.image_channels for _, _, architecture, _, _ in subjects})
        profiles, identity = profile_files(files, channels, input_size(subjects[0][1], subjects[0][2].image_size))
    return VariantsReport(
        models=[
            VariantProfile(
                **vars(each),
                variant=variant,
                times_identity=each.latency_us.median / identity[each.image_channels].median,
                parity_max_rel=export.parity_max_rel,
                agreement=export.agreement if model is not None else None,
            )
            for each, (variant, export) in zip(profiles, rows, strict=True)
        ],
        identity_us={str(number): latency for number, latency in identity.items()},
        machine=machine_name(),
    )


def _load(model: str | Path) -> tuple[str, nn.Module, Architecture, float, ValidationData]:
    checkpoint = load_model(model)
    data = load_validation_data(checkpoint)
    return model_name(model), checkpoint.scorer(), checkpoint.architecture, checkpoint.threshold or 0.0, data


def _sample_images(architecture: Architecture) -> ValidationData:
    """Some packaged images, enough to calibrate untrained weights."""
    split = load_split(DataSettings("sample"), architecture.image_size, architecture.image_channels)
    normals = ValidationData.from_split(split).train[:NUM_SAMPLE_IMAGES]
    return ValidationData(normals, normals, normals[:0], np.empty(0, bool))
