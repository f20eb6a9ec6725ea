"""Files for phones: ONNX Runtime's mobile usability check, the ORT format, the operators that a small build needs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdgan_compress.errors import KdganError
from kdgan_compress.export.graph.trace import quiet
from kdgan_compress.export.validation.golden import make_golden, sample_map
from kdgan_compress.export.validation.parity import map_difference, relative_difference
from kdgan_compress.files import atomic_path, scratch_folder
from kdgan_compress.runtime import Detector
from kdgan_compress.runtime.session import create_session, onnxruntime

LOG_WARNINGS, LOG_ERRORS = 2, 3


@dataclass(frozen=True)
class MobileCheck:
    """Result of ONNX Runtime's mobile usability checker for one file and one mobile runtime.

    Attributes:
        runtime: ``NNAPI`` (Android) or ``CoreML`` (Apple, as ML program).
        verdict: ``YES``, ``MAYBE`` or ``NO``: whether the runtime is worth trying.
        num_supported: Number of nodes that it can run.
        num_nodes: Number of all nodes.
        num_partitions: Number of connected parts of supported nodes; each costs a copy in and out.
        unsupported: Operators that it does not have.
    """

    runtime: str
    verdict: str
    num_supported: int
    num_nodes: int
    num_partitions: int
    unsupported: list[str]

    def __str__(self) -> str:
        missing = f", without {', '.join(self.unsupported)}" if self.unsupported else ""
        parts = f"{self.num_partitions} part{'' if self.num_partitions == 1 else 's'}"
        return f"{self.verdict} ({self.num_supported} of {self.num_nodes} nodes in {parts}{missing})"


def check_mobile(path: Path) -> list[MobileCheck]:
    """Run the checker on an ``.onnx`` file, optimised to the basic level as for a phone.

    Returns:
        One result per mobile runtime.
    """
    with quiet(), scratch_folder() as folder:
        from onnxruntime.tools.mobile_helpers.usability_checker import check_coreml_partitions, check_nnapi_partitions
        from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

        optimized = folder / "optimized.onnx"
        optimize_model(path, optimized)
        model = ModelProtoWithShapeInfo(optimized).model_with_shape_info
        results = {
            "NNAPI": check_nnapi_partitions(model, True),
            "CoreML": check_coreml_partitions(model, True, "coreml_supported_mlprogram_ops.md"),
        }
        return [
            MobileCheck(
                runtime,
                info.suitability().name,
                info.num_supported_nodes,
                info.num_nodes,
                info.num_partitions,
                sorted(name.rpartition(":")[2] for name in info.unsupported_ops),
            )
            for runtime, info in results.items()
        ]


def write_ort(path: Path, ort: Path, config: Path) -> None:
    """Write a detector in ORT format for ARM, and the list of operators that a reduced build needs.

    Args:
        path: The ``.onnx`` file.
        ort: Path of the ``.ort`` file, which is written only if its scores equal those of ``path``.
        config: Path of the list of operators.

    Raises:
        KdganError: The scores differ.
    """
    with quiet(), scratch_folder() as folder:
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

        source = folder / "detector.onnx"
        source.write_bytes(path.read_bytes())
        onnxruntime.set_default_logger_severity(LOG_ERRORS)  # it would warn that the threshold is not constant
        convert_onnx_models_to_ort(source, optimization_styles=[OptimizationStyle.Fixed], target_platform="arm")
        onnxruntime.set_default_logger_severity(LOG_WARNINGS)
        (converted,) = folder.glob("*.ort")
        (operators,) = folder.glob("*.config")
        content, needed = converted.read_bytes(), operators.read_text(encoding="utf-8")
    _check_same_scores(content, path)
    needed = "".join(line for line in needed.splitlines(keepends=True) if str(folder) not in line)
    with atomic_path(ort) as temporary:
        temporary.write_bytes(content)
    with atomic_path(config) as temporary:
        temporary.write_text(needed, encoding="utf-8")


def _check_same_scores(content: bytes, path: Path) -> None:
    detector = Detector(path)
    golden = make_golden(detector)
    session = create_session(content)
    names = ["score", "anomaly_map"] if golden.maps else ["score"]
    results = [session.run(names, {"image": detector.to_model_input(image[None])}) for image in golden.images]
    difference = relative_difference(np.concatenate([each[0] for each in results]), golden.score)
    for (*_, found), expected in zip(results, golden.maps, strict=False):
        difference = max(difference, map_difference(sample_map(found), expected))
    if not difference <= golden.tolerance:
        hint = "Please report this with the version of onnxruntime; use the .onnx file"
        raise KdganError("The .ort file must score as the .onnx file does", f"they differ by {difference:.2g}", hint)
