"""The table of export precisions.

A new precision is one row of ``PRECISIONS``: the command line, the Python API, the accuracy gate, the golden vectors
and ``profile --all`` read it. This module imports no torch and no onnx, so that ``--help`` stays fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdgan_compress.errors import KdganError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from kdgan_compress.export.graph.storage import StatisticType

DEFAULT_PRECISION = "fp32"


@dataclass(frozen=True)
class GateLimits:
    """How far a file's results may differ from those of the fp32 export of the same model.

    Attributes:
        max_auc_drop: Largest |ΔAUC| on labelled images.
        min_agreement: Without labels: smallest fraction of equal decisions and smallest rank correlation.
    """

    max_auc_drop: float = 0.005
    min_agreement: float = 0.99


@dataclass(frozen=True)
class Precision:
    """How a precision is made and when its file is accepted.

    Attributes:
        convert: Converts the core after the passes, given the calibration images, uint8 (N, S, S, C), or None; returns
            the new core. None for no conversion: the scores are torch's up to rounding.
        skipped_passes: Names in ``REWRITES`` that do not run by default.
        min_calibration_images: Number of normal images that ``convert`` needs; 0 if it needs none.
        gate: Limits of the accuracy gate; they also apply to fp32 with a shortened latent.
        golden_tolerance: Relative difference of golden scores that another device may show.
        statistic_type: Type in which the file stores the whitenings of a fitted score; it computes with float32.
        magnified: The precision that replaces this one for a Gaussian per grid position, whose whitening magnifies
            rounding errors of the activations; None if it need not be replaced.
    """

    convert: "Callable[[ir.Model, NDArray[np.uint8] | None], ir.Model] | None" = None
    skipped_passes: frozenset[str] = frozenset()
    min_calibration_images: int = 0
    gate: GateLimits = field(default_factory=GateLimits)
    golden_tolerance: float = 2e-2
    statistic_type: "StatisticType" = "float32"
    magnified: str | None = None


def _to_fp16(model: "ir.Model", _: object) -> "ir.Model":
    from kdgan_compress.export.graph.quantize import to_fp16

    to_fp16(model)
    return model


def _to_int8(model: "ir.Model", normals: "NDArray[np.uint8] | None") -> "ir.Model":
    from kdgan_compress.export.graph.quantize import to_int8

    assert normals is not None, "min_calibration_images was checked"
    return to_int8(model, normals)


def _store_int8(model: "ir.Model", _: object) -> "ir.Model":
    from kdgan_compress.export.graph.storage import store_int8

    store_int8(model)
    return model


FLOAT_SKIPPED = frozenset({"conv-transpose", "score"})
"""On a CPU, floats lose time with sub-pixel convolutions (2.25 times the arithmetic) and with a norm in four steps."""

INT8_SKIPPED = frozenset({"difference", "opening"})
"""ONNX Runtime has no int8 Gemm that adds a computed float, Core ML has no Pad of the kind that ``difference`` needs,
and as an int8 Gemm the decoder's first layer takes 30 times as long. Files for phones skip the same passes."""

PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(skipped_passes=FLOAT_SKIPPED, golden_tolerance=1e-4),
    "fp16": Precision(_to_fp16, FLOAT_SKIPPED, statistic_type="float16"),  # devices round half floats differently
    "int8": Precision(  # and saturate int8 products differently
        _to_int8,
        INT8_SKIPPED,
        min_calibration_images=32,
        statistic_type="int8",
        magnified="int8-weights",
    ),
    "int8-weights": Precision(_store_int8, FLOAT_SKIPPED, golden_tolerance=1e-4, statistic_type="int8"),
}


def find_precision(name: str) -> Precision:
    """Look up a precision by name; a KdganError if the table has no such row."""
    if name not in PRECISIONS:
        problem = f"The precision must be one of {', '.join(PRECISIONS)}"
        raise KdganError(problem, f"got {name!r}", "Choose one of these")
    return PRECISIONS[name]


def is_exact(metadata: Mapping[str, str]) -> bool:
    """Whether the scores of a detector file with this metadata equal torch's up to rounding."""
    return find_precision(metadata["precision"]).convert is None and "latent_rank" not in metadata
