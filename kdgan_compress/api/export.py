"""Export a trained model as a detector file, with card, golden vectors and, on request, files for phones or the web."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.data import load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.evaluation.score_file import images_sha256
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model, model_name, model_path
from kdgan_compress.experiment.results import read_result
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.export.detector_file import ExportReport, write_detector
from kdgan_compress.export.packaging.card import ModelCardData
from kdgan_compress.export.packaging.mobile import MobileCheck, check_mobile
from kdgan_compress.export.packaging.sidecar_names import sidecar_prefix
from kdgan_compress.export.packaging.sidecars import write_sidecars
from kdgan_compress.export.packaging.web import write_page
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.export.validation.gate import ThresholdRule, ValidationData
from kdgan_compress.files import scratch_folder, write_together


@dataclass(frozen=True)
class ExportResult(ExportReport):
    """What was written.

    Attributes:
        auc: AUC on the test split: of this file or, for an exact export, of the run; None without labels.
        usability: ONNX Runtime's mobile usability check of the plain graph and of this file; None without ``mobile``.
        files: All files that were written; the detector is the last.
        page: The web page's ``index.html``; None without ``web``.
    """

    auc: float | None = None
    usability: tuple[list[MobileCheck], list[MobileCheck]] | None = None
    files: tuple[str, ...] = ()
    page: str | None = None


def export_detector(
    model: str | Path,
    out: str | Path | None = None,
    *,
    settings: ExportSettings | None = None,
    rule: ThresholdRule | None = None,
    data: str | None = None,
    data_root: str | None = None,
    web: str | Path | None = None,
    ort_web: str | Path | None = None,
) -> ExportResult:
    """Write the detector of a run folder or model file, and with it ``card.md``, ``golden.npz`` and ``golden.json``.

    If the folder contains another detector's card, these files are named ``NAME.card.md`` and so on.

    Args:
        model: Run folder or model file.
        out: The ``.onnx`` file; None for ``exports/<name>/<name>.onnx``.
        settings: None for fp32 with default settings. ``mobile`` fixes the shapes (to the size of the model's images or
            photos, unless an input size is given) and adds an ``.ort`` file and the list of operators that a small
            build needs.
        rule: How to set the threshold; None keeps the model's threshold for exact exports and uses the 99 % quantile of
            the normal images' scores for lossy ones.
        data: Images for calibration and validation; None for those the model was trained on.
        data_root: Folder with the named data sets.
        web: Folder for a page that runs the detector in a browser.
        ort_web: The npm package onnxruntime-web, unpacked or as ``.tgz``; None downloads it once by npm.

    Raises:
        KdganError: The model or its data cannot be read, the path cannot be written, or a check fails.

    Example:
        >>> export_detector("runs/student", "student.onnx")  # doctest: +SKIP
    """
    name = model_name(model)
    path = Path(out or Path("exports", name, f"{name}.onnx"))
    if path.suffix != ".onnx":
        raise KdganError("The detector's file name must end in .onnx", f"got {path}", "Give -o NAME.onnx")
    checkpoint = load_model(model)
    settings = settings or ExportSettings()
    if rule is None and data is not None:
        rule = ThresholdRule()
    needs_data = rule is not None or settings.rank is not None or not settings.is_exact
    validation = load_validation_data(checkpoint, data, data_root) if needs_data else None
    with scratch_folder() as folder:
        written = folder / path.name
        report = write_checkpoint(written, checkpoint, settings, validation, rule)
        card = _card_data(written, model, checkpoint, settings, report)
        prefix = sidecar_prefix(path)
        names = write_sidecars(written, prefix, report, card, settings.mobile)
        page = None if web is None else write_page(web, written, folder / f"{prefix}golden.json", ort_web)
        files = [path.with_name(name) for name in (*names, path.name)]
        write_together({file: (folder / file.name).read_bytes() for file in files})
    return ExportResult(
        **vars(report) | {"path": str(path)},
        auc=card.auc,
        usability=card.mobile_checks,
        files=tuple(map(str, files)),
        page=str(page) if page else None,
    )


def load_validation_data(
    checkpoint: Checkpoint, data: str | None = None, data_root: str | None = None
) -> ValidationData:
    """Load the images that validate an export: those the model was trained and tested on, or others of the same kind.

    Raises:
        KdganError: They cannot be read.
    """
    settings = checkpoint.data.relocate(data, data_root)
    architecture = checkpoint.architecture
    is_same_source = settings.absolute().source == checkpoint.data.absolute().source
    split = load_split(settings, architecture.image_size, architecture.image_channels)
    is_same = is_same_source or checkpoint.provenance.get("normals_sha256") == images_sha256(split.normals)
    return ValidationData.from_split(split, checkpoint.statistic is not None and is_same)


def write_checkpoint(
    path: Path,
    checkpoint: Checkpoint,
    settings: ExportSettings | None = None,
    validation: ValidationData | None = None,
    rule: ThresholdRule | None = None,
) -> ExportReport:
    """Call ``write_detector`` with a loaded model."""
    return write_detector(
        path,
        checkpoint.scorer(),
        checkpoint.architecture,
        checkpoint.required_threshold if rule is None else checkpoint.threshold or 0.0,  # which the rule replaces
        checkpoint.threshold_rule,
        settings,
        x_hat=None if checkpoint.scores_discriminator else checkpoint.build().taps.get("x_hat"),
        validation=validation,
        rule=rule,
    )


def _card_data(
    path: Path, model: str | Path, checkpoint: Checkpoint, settings: ExportSettings, report: ExportReport
) -> ModelCardData:
    """What the card says beyond the metadata of the file ``path``."""
    checks, auc = None, None
    if settings.mobile:
        plain = path.with_name("plain.onnx")  # without graph passes and static shapes
        io = dataclasses.replace(settings.io, input_size=None, batch_size=None)
        with_threshold = dataclasses.replace(checkpoint, threshold=report.threshold)
        write_checkpoint(plain, with_threshold, ExportSettings(rewrites=frozenset(), io=io))
        checks = check_mobile(plain), check_mobile(path)
    folder = RunFolder(model_path(model).parent)
    agreement = report.agreement or report.rank_agreement
    if agreement is not None:
        auc = agreement.auc
    elif model_path(model) == folder.model and folder.result.exists():  # a student's folder has its teacher's file too
        result = read_result(folder)
        auc = None if result is None else result.auc
    teacher = checkpoint.provenance.get("teacher")
    return ModelCardData(checkpoint.data.name, model_name(teacher) if teacher else None, auc, checks)
