"""Export a trained model as one detector file, with its card, its golden vectors and what a phone or a page needs."""

import dataclasses
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.data import load_split
from kdgan_compress.errors import KdganError
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model, model_name, model_path
from kdgan_compress.experiment.run_folder import RunFolder
from kdgan_compress.export import ExportReport, ExportSettings, Judges, ThresholdRule, write_detector
from kdgan_compress.export import card as cards
from kdgan_compress.export.golden import write_golden
from kdgan_compress.export.mobile import Usability, check_usability, write_ort
from kdgan_compress.export.web import write_page
from kdgan_compress.files import atomic_path
from kdgan_compress.profiling import Latency, measure_latency, passing_through, scoring
from kdgan_compress.profiling.machine import machine_name
from kdgan_compress.runtime import Detector

THIS, FP32, TEACHER, IDENTITY = "this file", "the same in fp32", "its teacher in fp32", "an identity graph"
SLOWER = 1.05
"""Times fp32's latency from which a precision is told to be slower."""


@dataclass(frozen=True)
class ExportResult(ExportReport):
    """What was written and measured.

    Attributes:
        auc: On the test split: of this file, or of the run that it is exact to; None where nothing is labelled.
        latency_us: Of this file and, in the same run, of what it is held against: name to figure.
        slower_than_fp32: Whether a lower precision is slower on this machine; None of fp32.
        usability: ONNX Runtime's mobile usability checker on the plain graph and on this file; None without ``mobile``.
        files: All that was written.
        page: The page's ``index.html``, where one was asked for.
    """

    auc: float | None = None
    latency_us: dict[str, Latency] = dataclasses.field(default_factory=dict)
    slower_than_fp32: bool | None = None
    usability: tuple[list[Usability], list[Usability]] | None = None
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
    """Write the detector of a run folder or model file; beside it ``card.md``, ``golden.npz`` and ``golden.json``.

    Where another detector's card lies in the folder, this one's files begin with its name: ``NAME.card.md``.

    Args:
        model: What to export.
        out: The ``.onnx`` file; None for ``exports/<name>/<name>.onnx``.
        settings: None for fp32 with the rewrites that help. With ``mobile`` shapes are static (the network's own size
            if no frame is named), and an ``.ort`` file and the operators that a small build needs come beside it.
        rule: How to find the threshold; None keeps that of the model for fp32 and takes the normals' 99 % quantile
            else.
        data: Images to judge and calibrate on; None for those the model was trained on.
        data_root: Where named sets are.
        web: A folder for a page that runs the detector in a browser.
        ort_web: The npm package onnxruntime-web for it, unpacked or as ``.tgz``; None fetches it by npm once.

    Raises:
        KdganError: The model or its data can't be read, the path can't be written, a check or gate doesn't hold.
    """
    path = _place(model, out)
    checkpoint = load_model(model)
    settings = _with_shapes(settings or ExportSettings(), checkpoint)
    if rule is None and data is not None:
        rule = ThresholdRule()
    judges = None if rule is None and settings.is_exact else load_judges(checkpoint, data, data_root)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        written = scratch / path.name
        report = write_checkpoint(written, checkpoint, settings, judges, rule)
        report = dataclasses.replace(report, path=str(path))
        names = _names_beside(path)
        facts = _write_beside(scratch, path.name, names, checkpoint, settings, report, _auc(model, report))
        page = None
        if web is not None:
            page = write_page(Path(web), written, scratch / names["json"], Path(ort_web) if ort_web else None)
        files = [path.with_name(each) for each in (*facts.beside, names["card"], path.name)]  # last the detector itself
        for file in files:
            with atomic_path(file) as temporary:
                temporary.write_bytes((scratch / file.name).read_bytes())
    fp32 = facts.latency.get(FP32)
    return ExportResult(
        **{field.name: getattr(report, field.name) for field in dataclasses.fields(ExportReport)},
        auc=facts.auc,
        latency_us=facts.latency,
        slower_than_fp32=None if fp32 is None else facts.latency[THIS].median > SLOWER * fp32.median,
        usability=facts.usability,
        files=tuple(map(str, files)),
        page=str(page) if page else None,
    )


def golden_beside(detector: Path) -> Path:
    """The golden vectors of a detector file: ``NAME.golden.npz``, or the folder's ``golden.npz``."""
    own = detector.with_name(f"{detector.stem}.golden.npz")
    return own if own.exists() else detector.with_name("golden.npz")


def load_judges(checkpoint: Checkpoint, data: str | None = None, data_root: str | None = None) -> Judges:
    """The images that a model's precisions are judged by: its own, or others of the same kind.

    Raises:
        KdganError: They can't be read.
    """
    settings = checkpoint.data.relocate(data, data_root)
    split = load_split(settings, checkpoint.architecture.image_size, checkpoint.architecture.image_channels)
    train, normals, test = (
        images.permute(0, 2, 3, 1).contiguous().numpy() for images in (split.train, split.calibration, split.test)
    )
    return Judges(train, normals, test, split.test_is_anomalous)


def write_checkpoint(
    path: Path,
    checkpoint: Checkpoint,
    settings: ExportSettings | None = None,
    judges: Judges | None = None,
    rule: ThresholdRule | None = None,
) -> ExportReport:
    """``write_detector`` of a loaded model."""
    gan = checkpoint.build()
    return write_detector(
        path,
        gan.generator,
        checkpoint.architecture,
        checkpoint.threshold,
        checkpoint.threshold_rule,
        settings,
        x_hat=gan.taps.get("x_hat"),
        judges=judges,
        rule=rule,
    )


def _place(model: str | Path, out: str | Path | None) -> Path:
    name = model_name(model)
    path = Path(out) if out else Path("exports") / name / f"{name}.onnx"
    if path.suffix != ".onnx":
        raise KdganError("The detector's file name must end in .onnx", f"got {path}", "Give -o NAME.onnx")
    return path


def _names_beside(path: Path) -> dict[str, str]:
    """The names of card and golden vectors: with the detector's own before them, where a folder has others'."""
    prefix = ""
    try:
        owner = json.loads(path.with_name("golden.json").read_text(encoding="utf-8"))["detector"]
        if owner != path.name and path.with_name(owner).exists():
            prefix = f"{path.stem}."
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none that says whose it is
    if path.with_name(f"{path.stem}.golden.npz").exists():
        prefix = f"{path.stem}."  # it is what ``golden_beside`` finds first, so it must not grow old
    return {"card": f"{prefix}card.md", "npz": f"{prefix}golden.npz", "json": f"{prefix}golden.json"}


def _with_shapes(settings: ExportSettings, checkpoint: Checkpoint) -> ExportSettings:
    """Static shapes for a phone."""
    if not settings.mobile:
        return settings
    side = checkpoint.architecture.image_size
    frame = settings.interface.frame or (side, side)
    return dataclasses.replace(settings, interface=dataclasses.replace(settings.interface, single=True, frame=frame))


def _write_beside(
    scratch: Path,
    name: str,
    names: dict[str, str],
    checkpoint: Checkpoint,
    settings: ExportSettings,
    report: ExportReport,
    auc: float | None,
) -> cards.Facts:
    """All that goes beside the detector ``scratch / name``; what the card says of it."""
    detector = Detector(scratch / name)
    golden = write_golden(scratch / names["npz"], scratch / names["json"], detector, name)
    beside = {
        names["npz"]: "golden vectors for NumPy: images and the scores they must get",
        names["json"]: "the same for every other language, pixels as base64",
    }
    usability = None
    if settings.mobile:
        usability = _before(scratch / "before.onnx", checkpoint, settings), check_usability(scratch / name)
        ort, config = (Path(name).stem + suffix for suffix in (".ort", ".required_operators.config"))
        write_ort(scratch / name, scratch / ort, scratch / config)
        beside[ort] = "the detector in ONNX Runtime's own format, optimised for ARM"
        beside[config] = "the operators that a reduced build of ONNX Runtime needs for it"
    facts = cards.Facts(
        trained_on=checkpoint.data.name,
        teacher=_teacher_name(checkpoint),
        auc=auc,
        latency=_latency(scratch, checkpoint, settings, detector),
        machine=machine_name(),
        usability=usability,
        beside=beside,
    )
    (scratch / names["card"]).write_text(cards.write(name, detector, report, facts, golden), encoding="utf-8")
    return facts


def _before(scratch: Path, checkpoint: Checkpoint, settings: ExportSettings) -> list[Usability]:
    """What the checker says of the graph as it would be without rewrites and static shapes."""
    plain = ExportSettings(
        rewrites=frozenset(), interface=dataclasses.replace(settings.interface, frame=None, single=False)
    )
    write_checkpoint(scratch, checkpoint, plain)
    return check_usability(scratch)


def _latency(scratch: Path, checkpoint: Checkpoint, settings: ExportSettings, detector: Detector) -> dict[str, Latency]:
    """This file and what to hold it against, in turns."""
    calls = {THIS: scoring(detector)}
    if not settings.is_exact:
        write_checkpoint(scratch / "fp32.onnx", checkpoint, ExportSettings(interface=settings.interface))
        calls[FP32] = scoring(Detector(scratch / "fp32.onnx"))
    teacher = checkpoint.provenance.get("teacher")
    if teacher is not None and model_path(teacher).exists():
        with suppress(KdganError):  # a teacher that can't be read any more is no reason not to export its student
            write_checkpoint(scratch / "teacher.onnx", load_model(teacher))
            calls[TEACHER] = scoring(Detector(scratch / "teacher.onnx"))
    calls[IDENTITY] = passing_through(detector.image_size, detector.image_channels)
    return dict(zip(calls, measure_latency(list(calls.values())), strict=True))


def _teacher_name(checkpoint: Checkpoint) -> str | None:
    teacher = checkpoint.provenance.get("teacher")
    return None if teacher is None else model_name(teacher)


def _auc(model: str | Path, report: ExportReport) -> float | None:
    """This file's AUC: measured at the gate, or what its run reached where it is exact."""
    if report.agreement is not None:
        return report.agreement.auc
    folder = RunFolder(model_path(model).parent)
    if model_path(model) != folder.model or not folder.result.exists():  # a student's folder holds its teacher too
        return None
    auc: float | None = json.loads(folder.result.read_text(encoding="utf-8"))["auc"]
    return auc
