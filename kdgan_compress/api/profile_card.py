"""Measure an exported detector's latency and write it into its model card."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdgan_compress.api.detector_data import scorer_of
from kdgan_compress.api.profile import ModelProfile, detector_file, profile_files, teacher_of
from kdgan_compress.errors import KdganError, first_line
from kdgan_compress.evaluation import weights_sha256
from kdgan_compress.experiment.checkpoint import Checkpoint
from kdgan_compress.experiment.models import load_model
from kdgan_compress.export.detector_file import write_detector
from kdgan_compress.export.graph.assemble import IOSpec
from kdgan_compress.export.packaging.card import replace_latency
from kdgan_compress.export.packaging.card_update import read_detector_name
from kdgan_compress.export.precisions import is_exact
from kdgan_compress.export.settings import ExportSettings
from kdgan_compress.files import atomic_path, read_text, scratch_folder
from kdgan_compress.profiling.latency import Latency, working_size
from kdgan_compress.profiling.machine import machine_name
from kdgan_compress.runtime import Detector

THIS_FILE, FP32, TEACHER, IDENTITY = "this file", "the same in fp32", "its teacher in fp32", "an identity graph"
MAX_CARD_BYTES = 1_000_000
MIN_SLOWDOWN = 1.05
"""Latency relative to fp32 above which a lossy export is reported as slower."""


@dataclass(frozen=True)
class CardProfile:
    """What was measured and written into a card.

    Attributes:
        models: The detector and, in the same measurement, what it is compared with.
        identity_us: Latency of a graph that returns its input.
        slower_than_fp32: Whether a lossy export is slower than fp32 on this machine; None if fp32 was not measured.
        card: The card.
        machine: Where it was measured.
        threads: CPU threads of one call.
    """

    models: list[ModelProfile]
    identity_us: Latency
    slower_than_fp32: bool | None
    card: str
    machine: str
    threads: int = 1


def profile_card(model: str | Path, card: str | Path, against: str | Path | None = None) -> CardProfile:
    """Measure the detector that a card describes, and replace the card's section Latency.

    Args:
        model: The run that the detector was exported from: fp32 (if the detector is lossy) and the run's teacher are
            measured in turns with it. Or the detector file itself.
        card: The card; the detector is in the same folder.
        against: The teacher, if not that of the run.

    Raises:
        KdganError: Card, detector or model cannot be read, or do not belong together.

    Example:
        >>> profile_card("runs/student", "exports/student/card.md")  # doctest: +SKIP
    """
    card = Path(card)
    try:
        text = read_text(card, MAX_CARD_BYTES)
    except (OSError, ValueError) as error:
        raise KdganError("The card must be a readable text file", f"{card}: {first_line(error)}", "Check it") from None
    path = card.with_name(read_detector_name(text))
    with scratch_folder() as folder:
        files = [(THIS_FILE, path), *_files_to_compare(path, model, against, folder)]
        detector = Detector(path)
        profiles, identities = profile_files(files, [detector.image_channels], working_size(detector))
    (identity,) = identities.values()
    latencies = {each.name: each.latency_us for each in profiles}
    with atomic_path(card) as temporary:
        latency = replace_latency(text, latencies | {IDENTITY: identity}, machine_name(), frame=detector.frame)
        temporary.write_text(latency, encoding="utf-8")
    is_slower = None
    if FP32 in latencies:
        is_slower = latencies[THIS_FILE].p10 > MIN_SLOWDOWN * latencies[FP32].p10
    return CardProfile(profiles, identity, is_slower, str(card), machine_name())


def _files_to_compare(
    path: Path, model: str | Path, against: str | Path | None, scratch: Path
) -> list[tuple[str, Path]]:
    """Export fp32 and the teacher, as far as they apply."""
    files, teacher = [], against
    if Path(model).suffix != ".onnx":
        checkpoint, detector = load_model(model), Detector(path)
        if weights_sha256(scorer_of(checkpoint, detector)) != detector.metadata["weights_sha256"]:
            found = f"{path} has other weights than {model}"
            hint = "Give the run that the detector was exported from"
            raise KdganError("The card must belong to a detector of this model", found, hint)
        if not is_exact(detector.metadata):
            _write_fp32(scratch / "fp32.onnx", checkpoint, detector)
            files.append((FP32, scratch / "fp32.onnx"))
        teacher = teacher_of(checkpoint, against)
    elif Path(model).resolve() != path.resolve():
        raise KdganError("The card must describe this detector", f"it describes {path}", f"Give --model {path}")
    if teacher is not None:
        with suppress(*([] if against else [KdganError])):  # a run's unreadable teacher is left out
            files.append((TEACHER, detector_file(teacher, scratch / "teacher.onnx")[1]))
    return files


def _write_fp32(path: Path, checkpoint: Checkpoint, detector: Detector) -> None:
    """Export the detector's model again, in fp32 with the same rank, inputs and outputs."""
    settings, x_hat = ExportSettings(io=_io_spec(detector)), checkpoint.build().taps.get("x_hat")
    write_detector(path, scorer_of(checkpoint, detector), checkpoint.architecture, 0.0, "none", settings, x_hat=x_hat)


def _io_spec(detector: Detector) -> IOSpec:
    """The inputs and outputs of a detector file."""
    names = {name for name, _, _ in detector.outputs}
    return IOSpec(
        "uint8" if detector.input == "uint8" else "float",
        detector.input_size,
        1 if detector.image_shape.startswith("(1,") else None,
        "reconstruction" in names,
        bool(names & {"anomaly_map", "error_map"}),
    )
