"""Export a trained model as one ONNX detector."""

from pathlib import Path

from kdgan_compress.errors import KdganError
from kdgan_compress.export import ExportReport, write_detector
from kdgan_compress.workflows.models import load_model, model_name


def export_detector(model: str | Path, out: str | Path | None = None) -> ExportReport:
    """Write the fp32 detector of a run folder or model file.

    Args:
        model: What to export.
        out: The ``.onnx`` file; None for ``exports/<name>.onnx``.

    Raises:
        KdganError: The model can't be read, the path can't be written, or torch and ONNX Runtime disagree.
    """
    path = Path(out) if out else Path("exports") / f"{model_name(model)}.onnx"
    if path.suffix != ".onnx":
        raise KdganError("The detector's file name must end in .onnx", f"got {path}", "Give -o NAME.onnx")
    checkpoint = load_model(model)
    return write_detector(
        path, checkpoint.build().generator, checkpoint.architecture, checkpoint.threshold, checkpoint.threshold_rule
    )
