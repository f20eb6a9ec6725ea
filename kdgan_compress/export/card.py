"""The card: what somebody who has nothing but the detector file must know."""

from dataclasses import dataclass

from kdgan_compress.export.calls import LANGUAGES, Call
from kdgan_compress.export.detector_file import ExportReport
from kdgan_compress.export.golden import Golden
from kdgan_compress.export.mobile import Usability
from kdgan_compress.profiling import Latency
from kdgan_compress.runtime import Detector


@dataclass(frozen=True)
class Facts:
    """What the card says that isn't in the file.

    Attributes:
        trained_on: The data, such as ``mnist, normal 8``.
        teacher: Name of the teacher's run; None of a model trained alone.
        auc: Of this file, or of the run it is exact to; None where nothing is labelled.
        latency: What was measured in one run, in turns: name to figure; the file itself first.
        machine: Where.
        usability: ONNX Runtime's mobile checker, before and after the rewrites; empty without ``--mobile``.
        beside: Names of the files beside it, with what each is for.
    """

    trained_on: str
    teacher: str | None
    auc: float | None
    latency: dict[str, Latency]
    machine: str
    usability: tuple[list[Usability], list[Usability]] | None
    beside: dict[str, str]


def write(name: str, detector: Detector, report: ExportReport, facts: Facts, golden: Golden) -> str:
    """The card as Markdown."""
    call = Call(name, detector.image_channels, detector.input == "uint8", detector.frame, detector.threshold)
    sections = [
        f"# {name}\n\n{_lead(detector, facts)}",
        _table(detector, report, facts),
        "## Input and output\n\n" + _interface(detector, call),
        "## Calling it\n\n" + "\n\n".join(_block(language, call) for language in LANGUAGES),
        "## Latency\n\n" + _latency(facts),
        *(["## On a phone\n\n" + _usability(*facts.usability)] if facts.usability else []),
        "## Files\n\n"
        + "\n".join(f"- `{file}`: {purpose}" for file, purpose in {name: "the detector", **facts.beside}.items()),
        "## Is it the right file?\n\n" + _check(name, detector, golden),
    ]
    return "\n\n".join(sections) + "\n"


def _check(name: str, detector: Detector, golden: Golden) -> str:
    return (
        f"`kdgan-compress verify {name}` replays the golden vectors; in another language, read `golden.json` and hold\n"
        f"your scores against its own: they may differ by {golden.tolerance:g} relative.\n\n"
        f"    file_sha256     {golden.file_sha256}\n    weights_sha256  {detector.metadata['weights_sha256']}\n\n"
        "`file_sha256` is the hash of the file with these 64 digits, which are in its metadata, as zeros."
    )


def _lead(detector: Detector, facts: Facts) -> str:
    kind = "grey" if detector.image_channels == 1 else "colour"
    source = f", distilled from the teacher `{facts.teacher}`" if facts.teacher else ""
    return (
        f"Scores how unlike its normal training images a {kind} image is (higher: more novel) and says whether\n"
        f"that is an anomaly. Trained on {facts.trained_on}{source}."
    )


def _table(detector: Detector, report: ExportReport, facts: Facts) -> str:
    told = detector.metadata
    rows = {
        "model": f"{told.get('family', 'own')} {told.get('channels', '')} {told.get('norm', '')}".strip(),
        "AUC": "not measured: no labelled images"
        if facts.auc is None
        else f"{100 * facts.auc:.2f} % on the test split",
        "precision": report.precision,
        "whole file": f"{report.size_bytes:,} bytes",
        "threshold": f"{report.threshold:.6g}: {report.threshold_rule}",
        "parameters of the model": f"{int(told['num_params']):,}",
        "numbers in the file": f"{int(told['num_weights']):,}",
        "multiply-accumulates of its convolutions": f"{int(told['conv_macs']):,} (before rewrites)",
        "largest difference from torch": f"{report.parity_max_rel:.1e} relative",
        "rewrites": told["rewrites"] or "none",
    }
    if report.latent_lost is not None:
        rows["latent"] = f"rank {told['latent_rank']}, {100 * report.latent_lost:.2f} % of its weights' energy lost"
    if report.agreement is not None:
        found = report.agreement
        auc = "" if found.auc_diff is None else f"AUC {found.auc_diff:+.4f}, "
        rows["against fp32"] = (
            f"{auc}{100 * found.label_agreement:.2f} % of verdicts the same, Spearman {found.spearman:.4f}, "
            f"on {found.num_images} images"
        )
    rows["opset, versions"] = f"{report.opset}; {told['versions']}"
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _interface(detector: Detector, call: Call) -> str:
    size = f"{detector.image_size}×{detector.image_size}"
    kind = "uint8" if call.takes_bytes else "float32"
    shape = detector.image_shape
    resized = (
        f"Any height and width: the file resizes to {size} itself, antialiased, as in training. Don't resize before."
        if detector.frame is None
        else f"Bring images to {detector.frame[0]}×{detector.frame[1]} by an antialiased bilinear resize, no other."
    )
    colour = "Grey by L = 0.299 R + 0.587 G + 0.114 B." if call.channels == 1 else "Channels in the order R, G, B."
    lines = [
        "| | name | type | shape |",
        "|---|---|---|---|",
        f"| in | `image` | {kind}, {'0 to 255' if call.takes_bytes else '0 to 1'} | {shape} |",
        "| in | `threshold` | float32, optional | () |",
        *(f"| out | `{name}` | {dtype} | {shape} |" for name, dtype, shape in detector.outputs),
        "",
        f"{resized} {colour} Turn photos upright (EXIF) before.",
    ]
    return "\n".join(lines)


def _block(language: str, call: Call) -> str:
    fence, lines = LANGUAGES[language]
    return f"{language}:\n\n```{fence}\n{lines(call)}\n```"


def _latency(facts: Facts) -> str:
    own = next(iter(facts.latency.values())).median
    rows = [
        f"| {name} | {latency.median:.1f} | {latency.p10:.1f} | {_times(latency.median / own)} |"
        for name, latency in facts.latency.items()
    ]
    return (
        "| ONNX Runtime, one thread, one image of the network's size | µs median | µs p10 | against this file |\n"
        "|---|---|---|---|\n" + "\n".join(rows) + f"\n\nMeasured in one run on {facts.machine}; other machines differ."
    )


def _times(ratio: float) -> str:
    """How a time compares with this file's: ``38.3 times as long``, ``1/5.9 of it``."""
    return "" if ratio == 1 else f"{ratio:.1f} times as long" if ratio > 1 else f"1/{1 / ratio:.1f} of it"


def _usability(before: list[Usability], after: list[Usability]) -> str:
    rows = [f"| {b.runtime} | {b} | {a} |" for b, a in zip(before, after, strict=True)]
    return (
        "ONNX Runtime's mobile usability checker on the plain graph and on this file. It looks at operators and\n"
        "shapes; only a phone tells what is faster.\n\n| | before | after |\n|---|---|---|\n" + "\n".join(rows)
    )
