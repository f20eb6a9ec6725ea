"""What a phone needs: ONNX Runtime's verdict on a file, its ORT format and the operators a small build must have."""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from kdgan_compress.errors import KdganError
from kdgan_compress.export.core import quiet
from kdgan_compress.export.golden import make_golden
from kdgan_compress.export.parity import relative_difference
from kdgan_compress.files import atomic_path
from kdgan_compress.runtime import Detector

LOG_WARNINGS, LOG_ERRORS = 2, 3
RUNTIMES = ("NNAPI", "CoreML")


@dataclass(frozen=True)
class Usability:
    """ONNX Runtime's mobile usability checker on one file and one runtime.

    Attributes:
        runtime: ``NNAPI`` (Android) or ``CoreML`` (Apple, as ML program).
        verdict: ``YES``, ``MAYBE`` or ``NO``: whether the runtime is worth trying.
        num_supported: Nodes it can run.
        num_nodes: Of all.
        num_partitions: Pieces they lie in; each costs a copy in and out.
        unsupported: Operators it doesn't have.
    """

    runtime: str
    verdict: str
    num_supported: int
    num_nodes: int
    num_partitions: int
    unsupported: list[str]

    def __str__(self) -> str:
        missing = f", without {', '.join(self.unsupported)}" if self.unsupported else ""
        pieces = f"{self.num_partitions} piece{'' if self.num_partitions == 1 else 's'}"
        return f"{self.verdict} ({self.num_supported} of {self.num_nodes} nodes in {pieces}{missing})"


def check_usability(path: Path) -> list[Usability]:
    """Ask the checker about a file, optimised to the basic level as it is for a phone.

    Args:
        path: An ``.onnx`` file.

    Returns:
        One verdict a runtime.
    """
    with quiet(), tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        from onnxruntime.tools.mobile_helpers.usability_checker import check_coreml_partitions, check_nnapi_partitions
        from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

        optimised = Path(folder) / "optimised.onnx"
        optimize_model(path, optimised)
        model = ModelProtoWithShapeInfo(optimised).model_with_shape_info
        found = (
            check_nnapi_partitions(model, True),
            check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md"),
        )
        return [
            Usability(
                runtime,
                info.suitability().name,
                info.num_supported_nodes,
                info.num_nodes,
                info.num_partitions,
                sorted(name.rpartition(":")[2] for name in info.unsupported_ops),
            )
            for runtime, info in zip(RUNTIMES, found, strict=True)
        ]


def write_ort(path: Path, ort: Path, config: Path) -> None:
    """Write a detector in ORT format for ARM, and the operators that it needs of a reduced build.

    Args:
        path: The ``.onnx`` file.
        ort: Where the ``.ort`` file goes; it appears only if it scores as ``path`` does.
        config: Where the required operators go.

    Raises:
        KdganError: The scores differ.
    """
    with quiet(), tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

        source = Path(folder) / "detector.onnx"
        source.write_bytes(path.read_bytes())
        onnxruntime.set_default_logger_severity(LOG_ERRORS)  # it warns that the threshold is no constant, as it must be
        convert_onnx_models_to_ort(source, optimization_styles=[OptimizationStyle.Fixed], target_platform="arm")
        onnxruntime.set_default_logger_severity(LOG_WARNINGS)
        (converted,) = Path(folder).glob("*.ort")
        (operators,) = Path(folder).glob("*.config")
        content, needed = converted.read_bytes(), operators.read_text(encoding="utf-8")
    _require_same_scores(content, path)
    needed = "".join(line for line in needed.splitlines(keepends=True) if folder not in line)
    with atomic_path(ort) as temporary:
        temporary.write_bytes(content)
    with atomic_path(config) as temporary:
        temporary.write_text(needed, encoding="utf-8")


def _require_same_scores(content: bytes, path: Path) -> None:
    detector = Detector(path)
    golden = make_golden(detector)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feeds = [{"image": detector.as_taken(image[None])} for image in golden.images]
    difference = relative_difference(np.concatenate([session.run(["score"], feed)[0] for feed in feeds]), golden.score)
    if not difference <= golden.tolerance:
        raise KdganError(
            "The .ort file must score as the .onnx file does",
            f"they differ by {difference:.2g}",
            "Please report this with the version of onnxruntime; use the .onnx file",
        )
