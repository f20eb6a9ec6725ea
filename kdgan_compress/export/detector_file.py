"""Writing a detector: the graph in its precision, its metadata, and every check before the file appears."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.passes import common as passes
from torch import nn

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.export.core import OPSET, trace
from kdgan_compress.export.gate import Agreement, Judged, Judges, ThresholdRule, agreement, judge
from kdgan_compress.export.graph import assemble, tidy
from kdgan_compress.export.latent import find_latent, truncate_latent
from kdgan_compress.export.parity import check_parity, parity, relative_difference
from kdgan_compress.export.precision import to_fp16, to_int8
from kdgan_compress.export.rewrites import rewrite
from kdgan_compress.export.settings import FOR_FLOATS, ExportSettings, Precision
from kdgan_compress.files import atomic_path
from kdgan_compress.gans import ImageFormat, anomaly_score, normalize_images
from kdgan_compress.profiling import count
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.detector import SCHEMA_VERSION
from kdgan_compress.runtime.seal import OPEN_SEAL, SEAL_KEY, seal

IMAGES_HELD_AGAINST_TORCH = 64


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file.
        precision: Of weights and arithmetic.
        size_bytes: Of the whole file.
        opset: ONNX operator set, as read back from the file.
        threshold: Default of the input of that name.
        threshold_rule: How it was found, in words.
        parity_max_rel: Largest relative difference of scores between torch and ONNX Runtime over images of several
            sizes; of what is not exact it is a figure, not a bound.
        rewrites: How often each rewrite found something to change.
        latent_lost: Share of the latent weights' energy that ``latent_rank`` dropped; None without it.
        agreement: With fp32, of what is not exact.
    """

    path: str
    precision: Precision
    size_bytes: int
    opset: int
    threshold: float
    threshold_rule: str
    parity_max_rel: float
    rewrites: dict[str, int]
    latent_lost: float | None = None
    agreement: Agreement | None = None


def write_detector(
    path: Path,
    generator: nn.Module,
    image_format: ImageFormat,
    threshold: float,
    threshold_rule: str,
    settings: ExportSettings | None = None,
    *,
    x_hat: str | None = None,
    judges: Judges | None = None,
    rule: ThresholdRule | None = None,
    gate: bool = True,
) -> ExportReport:
    """Write one ``.onnx`` file that takes pixels and gives score and verdict.

    The file appears only after ONNX Runtime has loaded it and its scores agree: fp32's with torch's on images of
    several sizes, a lower precision's with those of fp32 on the judges.

    Args:
        path: Where to.
        generator: With ``anomaly_score``; left as it was, but for evaluation mode.
        image_format: Of the generator; an ``Architecture`` leaves its whole description in the file.
        threshold: Score above which an image is an anomaly, for fp32; anything else finds its own on the judges.
        threshold_rule: How it was found, in words.
        settings: None for fp32 as it is by default.
        x_hat: Dotted path of the submodule that gives the reconstruction; maps need it.
        judges: Needed for all that is not exact.
        rule: Find the threshold by it on the judges, in place of the one given.
        gate: False writes a precision that doesn't agree with fp32, to be measured and not used.

    Raises:
        KdganError: The path can't be written, scores differ, the gate of a precision doesn't hold, or judges, maps, the
            opset or the rank asked for can't be had.
    """
    settings = settings or ExportSettings()
    generator.eval()
    if rule is None and not settings.is_exact:
        rule = ThresholdRule()
    _check_given(settings, x_hat, judges, rule)
    core = trace(generator, image_format, x_hat if settings.interface.maps else None, settings.opset)
    reference = core.clone()
    lost = None if settings.latent_rank is None else _truncate(core, settings.latent_rank)
    counts = rewrite(core, settings.chosen_rewrites)
    core = _in_precision(core, settings.precision, judges)
    found = None
    if rule is not None and judges is not None:
        ours = judge(core, image_format, judges, rule)
        if not settings.is_exact:
            found = agreement(ours, _judge_fp32(reference, generator, image_format, judges, rule), judges)
            if gate:
                found.require(settings.name)
        threshold, threshold_rule = ours.threshold, rule.describe(judges)
    assemble(core, image_format, threshold, settings.interface)
    counts |= rewrite(core, settings.chosen_rewrites & {"scale"})
    metadata = _metadata(generator, image_format, settings, counts, threshold, threshold_rule)
    content = _serialised(core, metadata | {"num_weights": str(_num_weights(core))})
    difference, written = _write_checked(path, content, generator, image_format, settings)
    size = path.stat().st_size
    return ExportReport(
        str(path), settings.precision, size, written, threshold, threshold_rule, difference, counts, lost, found
    )


def weights_sha256(generator: nn.Module) -> str:
    """A hash of all weights and buffers, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_given(
    settings: ExportSettings, x_hat: str | None, judges: Judges | None, rule: ThresholdRule | None
) -> None:
    if rule is not None and judges is None:
        must = f"{settings.precision} with its own threshold must have normal images"
        raise KdganError(must, "found none", "Give images that the model was trained on")
    if settings.interface.maps and x_hat is None:
        raise KdganError("Maps must have a reconstruction", "found no tap x_hat", "Leave them out, or name the tap")


def _truncate(core: ir.Model, rank: int) -> float:
    """Shorten the latent; the share that is lost."""
    latent = find_latent(core.graph)
    if latent is None:
        raise KdganError(
            "A latent rank must have a latent between two bare convolutions", "found none in this graph", "Leave it out"
        )
    if not 1 <= rank < latent.size:
        raise KdganError(
            f"The latent rank must be 1 to {latent.size - 1}", f"got {rank}", "Leave it out to keep the latent whole"
        )
    return truncate_latent(core, rank)


def _in_precision(core: ir.Model, precision: Precision, judges: Judges | None) -> ir.Model:
    if precision == "fp16":
        to_fp16(core)
    elif precision == "int8":
        assert judges is not None, "the caller has looked"
        return to_int8(core, judges.train)
    return core


def _judge_fp32(
    reference: ir.Model, generator: nn.Module, image_format: ImageFormat, judges: Judges, rule: ThresholdRule
) -> Judged:
    """fp32's scores of the judges, which another precision's are held against, themselves held against torch's."""
    rewrite(reference, FOR_FLOATS)
    judged = judge(reference, image_format, judges, rule)
    images = torch.from_numpy(judges.normals[:IMAGES_HELD_AGAINST_TORCH]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = anomaly_score(generator, normalize_images(images)).numpy()
    check_parity(relative_difference(judged.normals[: len(images)], expected))
    return judged


def _write_checked(
    path: Path, content: bytes, generator: nn.Module, image_format: ImageFormat, settings: ExportSettings
) -> tuple[float, int]:
    """Write the file if its scores and opset are as they must be; the largest difference of scores, and the opset."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        difference = parity(Detector(temporary), generator, image_format)
        if settings.is_exact:
            check_parity(difference)
        return difference, _opset_read_back(temporary, settings.opset)


def _opset_read_back(path: Path, asked: int) -> int:
    """The opset of a file, which must be the one that was asked for."""
    (written,) = (opset.version for opset in onnx.load(path).opset_import if opset.domain == "")
    if written != asked:
        raise KdganError(
            f"The file must be of opset {asked}",
            f"the exporter made opset {written}",
            f"Leave --opset out for {OPSET}; no file was written",
        )
    return int(written)


def _num_weights(core: ir.Model) -> int:
    """Numbers that the file stores."""
    return sum(value.const_value.size for value in core.graph.initializers.values() if value.const_value)


def _metadata(
    generator: nn.Module,
    image_format: ImageFormat,
    settings: ExportSettings,
    rewrites: dict[str, int],
    threshold: float,
    threshold_rule: str,
) -> dict[str, str]:
    counts = count(generator, image_format)
    return {
        "schema_version": str(SCHEMA_VERSION),
        **image_format.describe(),
        "preprocessing": "antialiased bilinear resize, scaled to -1 ... 1",
        "precision": settings.precision,
        "rewrites": ", ".join(name for name, number in rewrites.items() if number),
        **({} if settings.latent_rank is None else {"latent_rank": str(settings.latent_rank)}),
        "threshold": repr(float(threshold)),
        "threshold_rule": threshold_rule,
        "num_params": str(counts.num_params),
        "conv_macs": str(counts.conv_macs),
        "fvcore_flops": str(counts.fvcore_flops),
        "weights_sha256": weights_sha256(generator),
        "versions": f"kdgan-compress {version('kdgan-compress')}, torch {torch.__version__}, onnx {onnx.__version__}, "
        f"onnxruntime {onnxruntime.__version__}",
        SEAL_KEY: OPEN_SEAL,
    }


def _serialised(model: ir.Model, metadata: dict[str, str]) -> bytes:
    """A checked model's bytes, sealed; the same on every export."""
    passes.RemoveUnusedNodesPass()(model)
    tidy(model)
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
        raise KdganError(
            "The graph must pass ONNX's checker", first_line(error), "Leave --opset out; no file was written"
        ) from None
    return seal(proto.SerializeToString(deterministic=True))
