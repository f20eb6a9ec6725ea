"""Write a detector file: trace, passes, precision, validation, metadata. It appears only if every check passes."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as common_passes
from torch import nn

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.evaluation import score_images, weights_sha256
from kdgan_compress.export.graph.assemble import add_pre_and_postprocessing, canonicalize_names
from kdgan_compress.export.graph.passes import run_passes
from kdgan_compress.export.graph.passes.latent import truncate_latent
from kdgan_compress.export.graph.storage import pack_triangles
from kdgan_compress.export.graph.trace import OPSET, trace
from kdgan_compress.export.rank import measure_truncation, truncate_rank
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import (
    Agreement,
    ThresholdRule,
    ValidationData,
    ValidationScores,
    measure_agreement,
    raise_to_held_out,
    score_validation_data,
)
from kdgan_compress.export.validation.parity import check_parity, parity, relative_difference
from kdgan_compress.files import atomic_path
from kdgan_compress.gans import Architecture, ImageFormat, check_score
from kdgan_compress.profiling.counts import count
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.checksum import CHECKSUM_KEY, CHECKSUM_PLACEHOLDER, write_checksum
from kdgan_compress.runtime.detector import SCHEMA_VERSION
from kdgan_compress.runtime.session import onnxruntime
from kdgan_compress.scores import FittedScorer, PositionGaussian, input_size

NUM_PARITY_IMAGES = 64


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file.
        precision: Precision of weights and arithmetic.
        size_bytes: Size of the file.
        opset: ONNX opset of the file.
        threshold: Default value of the input ``threshold``.
        threshold_rule: How the threshold was set, as text.
        parity_max_rel: Largest relative difference of scores between torch and ONNX Runtime, on images of several
            sizes; bounded for exact exports.
        rewrites: Number of matches that each graph pass replaced.
        latent_lost: Fraction of the latent weights' energy that ``latent_rank`` dropped; None without it.
        agreement: Agreement with fp32; None for exact exports.
        rank_agreement: Agreement of the score of this ``rank`` with the model's; None without ``rank``.
    """

    path: str
    precision: str
    size_bytes: int
    opset: int
    threshold: float
    threshold_rule: str
    parity_max_rel: float
    rewrites: dict[str, int]
    latent_lost: float | None = None
    agreement: Agreement | None = None
    rank_agreement: Agreement | None = None


def write_detector(
    path: str | Path,
    generator: nn.Module,
    image_format: ImageFormat,
    threshold: float,
    threshold_rule: str,
    settings: ExportSettings | None = None,
    *,
    x_hat: str | None = None,
    validation: ValidationData | None = None,
    rule: ThresholdRule | None = None,
    gate: bool = True,
) -> ExportReport:
    """Write one ``.onnx`` file that maps pixels to a score and a decision.

    It appears only if its scores agree: fp32 with torch, a lossy export with fp32 on the validation data.

    Args:
        path: The ``.onnx`` file.
        generator: Network with ``anomaly_score``, or a ``FittedScorer``; set to evaluation mode, otherwise unchanged.
        image_format: Size and channels of its images; an ``Architecture`` is stored in the metadata.
        threshold: Scores above it are anomalies. Lossy exports compute their own from the validation data.
        threshold_rule: How the threshold was set, as text.
        settings: None for fp32 with default settings.
        x_hat: Dotted path of the network's submodule that outputs the reconstruction; required for maps without tiles.
        validation: Required for lossy exports, for ``rank`` and for ``rule``.
        rule: Compute the threshold by this rule from the validation data instead.
        gate: False skips the accuracy gate, for measurements.

    Raises:
        KdganError: The path cannot be written, scores disagree, or the settings cannot be fulfilled.
    """
    is_tiled = isinstance(generator, FittedScorer) and generator.grid is not None
    path, settings = Path(path), resolve_settings(settings or ExportSettings(), generator, image_format)
    rule = rule or (None if settings.is_exact else ThresholdRule())
    _check_arguments(settings, generator, validation, rule)
    if not isinstance(image_format, Architecture):  # families are checked when they are built
        check_score(generator.generator if isinstance(generator, FittedScorer) else generator, image_format)
    if is_tiled or not (settings.io.reconstruction or settings.io.anomaly_map):
        x_hat = None
    elif x_hat is None:
        raise KdganError("Maps need a reconstruction", "the model has no tap x_hat", "Leave them out, or name the tap")
    rank_agreement = None
    if settings.rank is not None and validation is not None:
        whole, generator = generator, truncate_rank(generator, settings.rank)
        threshold, rank_agreement = measure_truncation(whole, generator, threshold, validation)
        threshold_rule += f", for rank {settings.rank}"
    core = trace(generator.eval(), image_format, x_hat, settings.opset)
    reference = core.clone()
    lost = None if settings.latent_rank is None else truncate_latent(core, settings.latent_rank)
    counts = run_passes(core, settings.selected_rewrites)
    if settings.row.convert is not None:
        core = settings.row.convert(core, None if validation is None else validation.train)
    pack_triangles(core, settings.row.statistic_type)
    agreement = None
    if rule is not None and validation is not None:
        scores = exact = score_validation_data(core, image_format, validation)
        if not settings.is_exact:
            exact = _exact_scores(reference, generator, image_format, validation)
        thresholds = [_find_threshold(each, exact, threshold, validation, rule) for each in (scores, exact)]
        threshold, threshold_rule = thresholds[0], rule.describe(validation)
        if not settings.is_exact:
            agreement = measure_agreement(scores, exact, (thresholds[0], thresholds[1]), validation)
            if gate:
                agreement.check(settings.name, settings.row.gate)
    add_pre_and_postprocessing(core, image_format, threshold, settings.io)
    counts |= run_passes(core, settings.selected_rewrites & {"scale"})
    content = _serialize(core, _metadata(core, generator, image_format, settings, counts, threshold, threshold_rule))
    difference = _write_if_parity_holds(path, content, generator, image_format, settings)
    saved = (str(path), settings.precision, path.stat().st_size, settings.opset)
    return ExportReport(*saved, threshold, threshold_rule, difference, counts, lost, agreement, rank_agreement)


def resolve_settings(settings: ExportSettings, generator: nn.Module, image_format: ImageFormat) -> ExportSettings:
    """The settings with everything decided that depends on the model (``ExportSettings.resolve``)."""
    is_fitted = isinstance(generator, FittedScorer)
    return settings.resolve(
        input_size(generator, image_format.image_size),
        is_tiled=is_fitted and generator.grid is not None,
        has_positions=is_fitted and isinstance(generator.statistic, PositionGaussian),
    )


def _check_arguments(
    settings: ExportSettings,
    generator: nn.Module,
    validation: ValidationData | None,
    rule: ThresholdRule | None,
) -> None:
    if validation is None and (rule is not None or settings.rank is not None):
        name = settings.name if settings.rank is None else f"{settings.name} of rank {settings.rank}"
        problem = f"{name} needs normal images to set its threshold"
        raise KdganError(problem, "got none", "Give images of the kind that the model was trained on")
    needed = settings.row.min_calibration_images
    if validation is not None and len(validation.train) < needed:
        problem = f"{settings.precision} needs at least {needed} normal images for calibration"
        raise KdganError(problem, f"got {len(validation.train)}", "Add normal images, or export fp32 or fp16")
    is_fitted = isinstance(generator, FittedScorer) and generator.statistic is not None
    if settings.latent_rank is not None and is_fitted:
        problem = "--latent-rank shortens the code of a score without fitted statistics"
        hint = "Leave it out; --rank makes a Gaussian per grid position smaller"
        raise KdganError(problem, f"this score is a {generator.statistic.name}", hint)  # type: ignore[union-attr]


def _exact_scores(
    fp32: ir.Model, generator: nn.Module, image_format: ImageFormat, validation: ValidationData
) -> ValidationScores:
    """The scores of the fp32 core, which are checked against torch first."""
    exact = score_validation_data(fp32, image_format, validation)
    images = torch.from_numpy(validation.normals[:NUM_PARITY_IMAGES]).permute(0, 3, 1, 2)
    difference = relative_difference(exact.normals[: len(images)], score_images(generator, images))
    check_parity(difference, _is_fitted(generator))
    return exact


def _find_threshold(
    scores: ValidationScores, exact: ValidationScores, threshold: float, data: ValidationData, rule: ThresholdRule
) -> float:
    """The threshold of scores by the rule; ``threshold`` is that of the exact scores."""
    normals = raise_to_held_out(scores.normals, exact.normals, threshold) if data.in_fit else scores.normals
    return rule.find(normals, scores.test, data)


def _write_if_parity_holds(
    path: Path, content: bytes, generator: nn.Module, image_format: ImageFormat, settings: ExportSettings
) -> float:
    """Write the file if parity and opset are as required; returns the largest difference of scores."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        difference = parity(Detector(temporary), generator, image_format)
        if settings.is_exact:
            check_parity(difference, _is_fitted(generator))
        (opset,) = (each.version for each in onnx.load(temporary).opset_import if each.domain == "")
        if opset != settings.opset:
            hint = f"Leave --opset out for {OPSET}; no file was written"
            raise KdganError(f"The file needs opset {settings.opset}", f"the exporter made opset {opset}", hint)
    return difference


def _metadata(
    core: ir.Model,
    generator: nn.Module,
    image_format: ImageFormat,
    settings: ExportSettings,
    rewrites: dict[str, int],
    threshold: float,
    threshold_rule: str,
) -> dict[str, str]:
    constants = [value.const_value for value in core.graph.initializers.values() if value.const_value]
    return {
        "schema_version": str(SCHEMA_VERSION),
        **image_format.describe(),
        **_score_metadata(generator, settings),
        "preprocessing": "antialiased bilinear resize, scaled to -1 ... 1",
        "precision": settings.precision,
        "rewrites": ", ".join(name for name, number in rewrites.items() if number),
        **{
            name: str(value)
            for name, value in (("latent_rank", settings.latent_rank), ("rank", settings.rank))
            if value is not None
        },
        "threshold": repr(float(threshold)),
        "threshold_rule": threshold_rule,
        **{name: str(number) for name, number in vars(count(generator, image_format)).items()},
        "num_weights": str(sum(constant.size for constant in constants)),
        "weights_sha256": weights_sha256(generator),
        "versions": f"kdgan-compress {version('kdgan-compress')}, torch {torch.__version__}, onnx {onnx.__version__}, "
        f"onnxruntime {onnxruntime.__version__}",
        CHECKSUM_KEY: CHECKSUM_PLACEHOLDER,
    }


def _is_fitted(generator: nn.Module) -> bool:
    return isinstance(generator, FittedScorer) and generator.statistic is not None


def _score_metadata(generator: nn.Module, settings: ExportSettings) -> dict[str, str]:
    """The fitted score; the size of photos that are cut into tiles, their tiles, and the unit of their maps."""
    if not isinstance(generator, FittedScorer):
        return {}
    metadata = {} if generator.statistic is None else {"score": f"{generator.statistic.name} of {generator.features}"}
    if generator.grid is not None:
        height, width = generator.grid.frame
        metadata |= {"frame": f"{height}x{width}", "tile_stride": str(generator.grid.stride)}
        metadata |= {"photo_score": generator.photo} | ({"map_unit": "score"} if settings.io.anomaly_map else {})
    return metadata


def _serialize(model: ir.Model, metadata: dict[str, str]) -> bytes:
    """The bytes of a valid model with its checksum; the same for every export of a model."""
    common_passes.RemoveUnusedNodesPass()(model)
    canonicalize_names(model)
    model.graph.name = "detector"
    model.producer_name, model.producer_version = "kdgan-compress", None
    model.metadata_props.clear()
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", model.opset_imports[""])])
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    onnx.helper.set_model_props(proto, metadata)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        hint = "Leave --opset out; no file was written"
        raise KdganError("The graph must pass ONNX's checker", first_line(error), hint) from None
    return write_checksum(proto.SerializeToString(deterministic=True))
