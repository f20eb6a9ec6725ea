"""Export a trained model as a detector file, with card, golden vectors and, on request, files for phones or the web."""

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.data import load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model, model_name, model_path
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.export import ExportReport, ExportSettings, ThresholdRule, ValidationData, write_detector
from kdgan_compress.export.packaging.card import ModelCardData, write_card
from kdgan_compress.export.packaging.mobile import MobileCheck, check_mobile, write_ort
from kdgan_compress.export.packaging.web import write_page
from kdgan_compress.export.validation.golden import write_golden
from kdgan_compress.files import atomic_path
from kdgan_compress.runtime import Detector


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
        settings: None for fp32 with default settings. ``mobile`` fixes the shapes (to the network's size, unless an
            input size is given) and adds an ``.ort`` file and the list of operators that a small build needs.
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
    path = _output_path(model, out)
    checkpoint = load_model(model)
    settings = _with_static_shapes(settings or ExportSettings(), checkpoint)
    if rule is None and data is not None:
        rule = ThresholdRule()
    validation = None if rule is None and settings.is_exact else load_validation_data(checkpoint, data, data_root)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        written = scratch / path.name
        report = write_checkpoint(written, checkpoint, settings, validation, rule)
        report = dataclasses.replace(report, path=str(path))
        names = _sidecar_names(path)
        card = _write_sidecars(written, names, checkpoint, settings, report, _auc(model, report))
        page = None
        if web is not None:
            page = write_page(Path(web), written, scratch / names["json"], Path(ort_web) if ort_web else None)
        files = [path.with_name(name) for name in (*card.files, card.card, path.name)]
        for file in files:
            with atomic_path(file) as temporary:
                temporary.write_bytes((scratch / file.name).read_bytes())
    return ExportResult(
        **{field.name: getattr(report, field.name) for field in dataclasses.fields(ExportReport)},
        auc=card.auc,
        usability=card.mobile_checks,
        files=tuple(map(str, files)),
        page=str(page) if page else None,
    )


def golden_sidecar(detector: Path) -> Path:
    """Path of a detector's golden vectors: ``NAME.golden.npz`` if it exists, else the folder's ``golden.npz``."""
    named = detector.with_name(f"{detector.stem}.golden.npz")
    return named if named.exists() else detector.with_name("golden.npz")


def load_validation_data(
    checkpoint: Checkpoint, data: str | None = None, data_root: str | None = None
) -> ValidationData:
    """Load the images that validate an export: those the model was trained and tested on, or others of the same kind.

    Raises:
        KdganError: They cannot be read.
    """
    settings = checkpoint.data.relocate(data, data_root)
    split = load_split(settings, checkpoint.architecture.image_size, checkpoint.architecture.image_channels)
    train, normals, test = (
        images.permute(0, 2, 3, 1).contiguous().numpy() for images in (split.train, split.calibration, split.test)
    )
    return ValidationData(train, normals, test, split.test_is_anomalous)


def write_checkpoint(
    path: Path,
    checkpoint: Checkpoint,
    settings: ExportSettings | None = None,
    validation: ValidationData | None = None,
    rule: ThresholdRule | None = None,
) -> ExportReport:
    """Call ``write_detector`` with a loaded model."""
    gan = checkpoint.build()
    return write_detector(
        path,
        gan.generator,
        checkpoint.architecture,
        checkpoint.threshold,
        checkpoint.threshold_rule,
        settings,
        x_hat=gan.taps.get("x_hat"),
        validation=validation,
        rule=rule,
    )


def _output_path(model: str | Path, out: str | Path | None) -> Path:
    name = model_name(model)
    path = Path(out) if out else Path("exports") / name / f"{name}.onnx"
    if path.suffix != ".onnx":
        raise KdganError("The detector's file name must end in .onnx", f"got {path}", "Give -o NAME.onnx")
    return path


def _sidecar_names(path: Path) -> dict[str, str]:
    """File names of card and golden vectors; they start with the detector's name if the folder has another detector."""
    prefix = ""
    try:
        owner = json.loads(path.with_name("golden.json").read_text(encoding="utf-8"))["detector"]
        if owner != path.name and path.with_name(owner).exists():
            prefix = f"{path.stem}."
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no golden.json that names its detector
    if path.with_name(f"{path.stem}.golden.npz").exists():
        prefix = f"{path.stem}."  # ``golden_sidecar`` prefers this file, so it must be replaced
    return {"card": f"{prefix}card.md", "npz": f"{prefix}golden.npz", "json": f"{prefix}golden.json"}


def _with_static_shapes(settings: ExportSettings, checkpoint: Checkpoint) -> ExportSettings:
    """Fix batch size and input size for phones."""
    if not settings.mobile:
        return settings
    side = checkpoint.architecture.image_size
    size = settings.io.input_size or (side, side)
    return dataclasses.replace(settings, io=dataclasses.replace(settings.io, batch_size=1, input_size=size))


def _write_sidecars(
    path: Path,
    names: dict[str, str],
    checkpoint: Checkpoint,
    settings: ExportSettings,
    report: ExportReport,
    auc: float | None,
) -> ModelCardData:
    """Write all other files to the folder of the detector ``path``; returns what the card says."""
    detector = Detector(path)
    golden = write_golden(path.with_name(names["npz"]), path.with_name(names["json"]), detector, path.name)
    files = {
        names["npz"]: "golden vectors for NumPy: images and the scores they must get",
        names["json"]: "the same for every other language, pixels as base64",
    }
    checks = None
    if settings.mobile:
        checks = _check_plain_graph(path.with_name("plain.onnx"), checkpoint, settings), check_mobile(path)
        ort, config = (path.stem + suffix for suffix in (".ort", ".required_operators.config"))
        write_ort(path, path.with_name(ort), path.with_name(config))
        files[ort] = "the detector in ONNX Runtime's own format, optimised for ARM"
        files[config] = "the operators that a reduced build of ONNX Runtime needs for it"
    teacher = checkpoint.provenance.get("teacher")
    card = ModelCardData(
        trained_on=checkpoint.data.name,
        teacher=None if teacher is None else model_name(teacher),
        auc=auc,
        mobile_checks=checks,
        card=names["card"],
        files=files,
    )
    path.with_name(card.card).write_text(write_card(path.name, detector, report, card, golden), encoding="utf-8")
    return card


def _check_plain_graph(scratch: Path, checkpoint: Checkpoint, settings: ExportSettings) -> list[MobileCheck]:
    """Check the graph without graph passes and static shapes."""
    io = dataclasses.replace(settings.io, input_size=None, batch_size=None)
    write_checkpoint(scratch, checkpoint, ExportSettings(rewrites=frozenset(), io=io))
    return check_mobile(scratch)


def _auc(model: str | Path, report: ExportReport) -> float | None:
    """The AUC of a lossy export as measured by the gate, or that of the run for an exact export."""
    if report.agreement is not None:
        return report.agreement.auc
    folder = RunFolder(model_path(model).parent)
    if model_path(model) != folder.model or not folder.result.exists():  # a student's folder has its teacher's file too
        return None
    auc: float | None = json.loads(folder.result.read_text(encoding="utf-8"))["auc"]
    return auc
