"""Writing a detector: the graph in its precision, its metadata, and every check before the file appears."""

import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as passes
from torch import nn
from torch.nn.functional import interpolate

from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.export.core import OPSET, trace
from kdgan_compress.export.gate import Agreement, Judged, Judges, ThresholdRule, agreement
from kdgan_compress.export.golden import sample_images, sample_sizes
from kdgan_compress.export.graph import Interface, assemble, tidy
from kdgan_compress.export.latent import find_latent, truncate_latent
from kdgan_compress.export.precision import to_fp16, to_int8
from kdgan_compress.export.rewrites import REWRITES, rewrite
from kdgan_compress.gans import ImageFormat, anomaly_score, to_network_range
from kdgan_compress.profiling import count
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.detector import LOAD_ERRORS, SCHEMA_VERSION
from kdgan_compress.runtime.seal import OPEN_SEAL, SEAL_KEY, seal
from kdgan_compress.storage import atomic_path

Precision = Literal["fp32", "fp16", "int8"]

PARITY_TOLERANCE = 1e-4
SMALLEST_SCORE = 1e-6
"""Below it a difference counts as that of a score of this size."""

JUDGING_BATCH = 256
IMAGES_HELD_AGAINST_TORCH = 64
FOR_FLOATS = frozenset(REWRITES) - {"conv-transpose", "score"}
"""Floats on a CPU pay for the 2.25 times arithmetic of split transposed convolutions, and for a norm in four steps."""

FOR_BYTES = frozenset(REWRITES) - {"difference", "opening"}
"""What int8 and phones take. ONNX Runtime has no int8 product that takes a computed float along, Core ML not the Pad
that ``difference`` needs, and as an int8 product the opening takes 30 times as long as a convolution."""


@dataclass(frozen=True)
class ExportSettings:
    """What kind of file to write.

    Attributes:
        precision: ``fp32``; ``fp16``: half the bytes, for devices that compute so; ``int8``: a quarter, and faster
            wherever the network isn't too narrow.
        rewrites: Names in ``REWRITES``; None for those that help.
        latent_rank: Keep that many coordinates of the latent, at a loss; None for all.
        interface: What the file takes and gives.
        opset: Of ONNX's own operators.
        mobile: Take the rewrites that phones need.
    """

    precision: Precision = "fp32"
    rewrites: frozenset[str] | None = None
    latent_rank: int | None = None
    interface: Interface = field(default_factory=Interface)
    opset: int = OPSET
    mobile: bool = False

    def __post_init__(self) -> None:
        unknown = sorted((self.rewrites or frozenset()) - set(REWRITES))
        if unknown:
            raise KdganError(
                f"A rewrite must be one of {', '.join(REWRITES)}", f"got {', '.join(unknown)}", "Name those"
            )

    @property
    def chosen_rewrites(self) -> frozenset[str]:
        """Those that are made."""
        if self.rewrites is not None:
            return self.rewrites
        return FOR_BYTES if self.mobile or self.precision == "int8" else FOR_FLOATS

    @property
    def is_exact(self) -> bool:
        """Whether scores are torch's to rounding."""
        return self.precision == "fp32" and self.latent_rank is None


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
    needs_judges = rule is not None or not settings.is_exact
    if judges is None and needs_judges:
        must = f"{settings.precision} with its own threshold must have normal images"
        raise KdganError(must, "found none", "Give images that the model was trained on")
    if settings.interface.maps and x_hat is None:
        raise KdganError("Maps must have a reconstruction", "found no tap x_hat", "Leave them out, or name the tap")
    core = trace(generator, image_format, x_hat if settings.interface.maps else None, settings.opset)
    reference = core.clone()
    lost = None if settings.latent_rank is None else _truncate(core, settings.latent_rank)
    counts = rewrite(core, settings.chosen_rewrites)
    core = _in_precision(core, settings.precision, judges)

    found = None
    if judges is not None and needs_judges:
        rule = rule or ThresholdRule()
        rewrite(reference, FOR_FLOATS)
        ours, theirs = (_judge(each, image_format, judges, rule) for each in (core, reference))
        _require_torchs_scores(theirs, generator, judges)
        if not settings.is_exact:
            found = agreement(ours, theirs, judges)
            if gate:
                rank = "" if lost is None else f" of rank {settings.latent_rank}"
                found.require(settings.precision + rank)
        threshold, threshold_rule = ours.threshold, rule.describe(judges)
    assemble(core, image_format, threshold, settings.interface)
    counts |= rewrite(core, settings.chosen_rewrites & {"scale"})
    metadata = {
        **_metadata(generator, image_format, settings, counts, threshold, threshold_rule),
        "num_weights": str(
            sum(value.const_value.size for value in core.graph.initializers.values() if value.const_value)
        ),
    }
    content = _serialised(core, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        difference = parity(Detector(temporary), generator, image_format)
        if settings.is_exact:
            _require_parity(difference)
        (written,) = (opset.version for opset in onnx.load(temporary).opset_import if opset.domain == "")
        if written != settings.opset:
            raise KdganError(
                f"The file must be of opset {settings.opset}",
                f"the exporter made opset {written}",
                f"Leave --opset out for {OPSET}; no file was written",
            )
    size = path.stat().st_size
    return ExportReport(
        str(path), settings.precision, size, written, threshold, threshold_rule, difference, counts, lost, found
    )


def parity(detector: Detector, generator: nn.Module, image_format: ImageFormat) -> float:
    """Largest relative difference of scores between an exported detector and torch, over images of several sizes."""
    side = image_format.image_size
    differences = []
    for height, width in sample_sizes(side, detector.frame):
        images = sample_images(height, width, image_format.image_channels)
        chw = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            resized = interpolate(chw, (side, side), mode="bilinear", antialias=True, align_corners=False)
            expected = anomaly_score(generator, to_network_range(resized)).numpy()
        differences.append(relative_difference(detector.score(images).score, expected))
    return float(np.max(differences))  # NaN if any is, which the built-in max would pass over


def relative_difference(scores: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Largest |a − b| / |b|; scores near 0 count as 1e-6."""
    difference = np.abs(np.float64(scores) - np.float64(expected))
    return float(np.max(difference / np.maximum(np.abs(expected), SMALLEST_SCORE)))


def weights_sha256(generator: nn.Module) -> str:
    """A hash of all weights and buffers, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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


def _judge(core: ir.Model, image_format: ImageFormat, judges: Judges, rule: ThresholdRule) -> Judged:
    """Scores of the judges by a core, through the same preprocessing as in the file."""
    model = core.clone()
    assemble(model, image_format, 0.0, Interface())
    tidy(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as error:
        raise KdganError(
            "ONNX Runtime must have the graph's operators", first_line(error), "Export fp32; no file was written"
        ) from None

    def scores(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        batches = [images[i : i + JUDGING_BATCH] for i in range(0, len(images), JUDGING_BATCH)]
        parts = [session.run(["score"], {"image": batch})[0] for batch in batches]
        return np.concatenate([np.empty(0), *parts]).astype(np.float64)

    normals, test = scores(judges.normals), scores(judges.test)
    return Judged(normals, test, rule.find(normals, test, judges))


def _require_torchs_scores(judged: Judged, generator: nn.Module, judges: Judges) -> None:
    """Hold fp32, which lower precisions are held against, against torch."""
    images = torch.from_numpy(judges.normals[:IMAGES_HELD_AGAINST_TORCH]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = anomaly_score(generator, to_network_range(images)).numpy()
    _require_parity(relative_difference(judged.normals[: len(images)], expected))


def _require_parity(difference: float) -> None:
    if not difference <= PARITY_TOLERANCE:
        raise KdganError(
            f"Scores of torch and ONNX Runtime must agree to {PARITY_TOLERANCE:g} relative",
            f"they differ by {difference:.2g}",
            "Please report this with the versions of torch and onnxruntime; no file was written",
        )


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
