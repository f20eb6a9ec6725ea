"""The model card (Markdown): everything that a user of a detector file needs to know about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdgan_compress.export.detector_file import ExportReport
from kdgan_compress.export.packaging.call_examples import LANGUAGES, InputSpec
from kdgan_compress.export.packaging.mobile import MobileCheck
from kdgan_compress.export.validation.gate import Agreement
from kdgan_compress.export.validation.golden import Golden
from kdgan_compress.profiling.latency import Latency, busy_warning
from kdgan_compress.runtime import Detector


@dataclass(frozen=True)
class ModelCardData:
    """What the card says beyond the file's metadata.

    Attributes:
        trained_on: The data, such as ``mnist, normal 8``.
        teacher: Name of the teacher's run; None for a model trained without a teacher.
        auc: AUC of this file, or of the run for an exact export; None without labels.
        mobile_checks: Results of the mobile usability checker for the plain graph and for this file; None without
            ``--mobile``.
        card: File name of the card.
        files: Names of the other files, each with its purpose.
    """

    trained_on: str
    teacher: str | None = None
    auc: float | None = None
    mobile_checks: tuple[list[MobileCheck], list[MobileCheck]] | None = None
    card: str = "card.md"
    files: Mapping[str, str] = field(default_factory=dict)


def write_card(name: str, detector: Detector, report: ExportReport, data: ModelCardData, golden: Golden) -> str:
    """The card of the detector file ``name``, as Markdown."""
    is_uint8 = detector.input == "uint8"
    has_map = detector.map_unit == "score"
    spec = InputSpec(name, detector.image_channels, is_uint8, detector.input_size, detector.threshold, has_map)
    kind = "grey" if spec.channels == 1 else "colour"
    source = f", distilled from the teacher `{data.teacher}`" if data.teacher else ""
    calls = "\n".join(f"{each}:\n\n```{tag}\n{code(spec)}\n```\n" for each, (tag, code) in LANGUAGES.items())
    files = "\n".join(f"- `{file}`: {purpose}" for file, purpose in {name: "the detector", **data.files}.items())
    return f"""\
# {name}

Scores how much a {kind} image differs from its normal training images (higher: more anomalous) and decides
whether it is an anomaly. Trained on {data.trained_on}{source}.

{_properties(detector, report, data)}

## Input and output

{_interface(detector, spec)}

## Calling it

{calls}
## Latency

Not measured. To measure it on your machine and write it here:

    kdgan-compress profile --model {name} --card {data.card}

With the run folder as `--model`, its teacher and, for a lossy export, fp32 are measured too.

{_mobile(*data.mobile_checks) if data.mobile_checks else ""}## Files

{files}

## Is it the right file?

`kdgan-compress verify {name}` replays the golden vectors. In another language, compare your scores
with those in `golden.json`: they may differ by {golden.tolerance:g} relative.

    file_sha256     {golden.file_sha256}
    weights_sha256  {detector.metadata["weights_sha256"]}

`file_sha256` is the SHA-256 of the file with these 64 digits, which are in its metadata, replaced by zeros.
"""


def replace_latency(
    card: str, latencies: dict[str, Latency], machine: str, threads: int = 1, frame: tuple[int, int] | None = None
) -> str:
    """Write measured latencies into the section Latency of a card, in place of its earlier content.

    Args:
        card: The card's text.
        latencies: Name of what was measured → latency; the first is the detector itself.
        machine: Where it was measured.
        threads: CPU threads of one call.
        frame: Height and width of the photos, for a detector that cuts them into tiles.
    """
    reference = next(iter(latencies.values())).p10
    rows = [
        f"| {name} | {latency.median:.1f} | {latency.p10:.1f} | {_ratio_text(latency.p10 / reference)} |"
        for name, latency in latencies.items()
    ]
    image = "one image of the network's size" if frame is None else f"one photo of {frame[0]}×{frame[1]}"
    header = f"| ONNX Runtime, {image} | µs median | µs p10 | compared with this file (p10) |"
    on = f"Measured in one run on {machine}, {threads} thread{'' if threads == 1 else 's'}; other machines differ."
    busy = busy_warning(latencies.values())
    section = "\n".join([header, "|---|---|---|---|", *rows, "", on if busy is None else f"{on} {busy}"])
    start = card.index("\n## Latency\n") + len("\n## Latency\n\n")
    end = card.find("\n\n## ", start)
    return card[:start] + section + (card[end:] if end >= 0 else "\n")


def _properties(detector: Detector, report: ExportReport, data: ModelCardData) -> str:
    metadata = detector.metadata
    rows = {
        "model": f"{metadata.get('family', 'own')} {metadata.get('channels', '')} {metadata.get('norm', '')}".strip(),
        "AUC": "not measured: no labelled images" if data.auc is None else f"{100 * data.auc:.2f} % on the test split",
        "precision": report.precision,
        "file size": f"{report.size_bytes:,} bytes",
        "threshold": f"{report.threshold:.6g}: {report.threshold_rule}",
        "parameters of the model": f"{int(metadata['num_params']):,}",
        "values stored in the file": f"{int(metadata['num_weights']):,}",
        "multiply-accumulates of the convolutions": f"{int(metadata['conv_macs']):,} (before rewrites)",
        "largest difference from torch": f"{report.parity_max_rel:.1e} relative",
        "rewrites": metadata["rewrites"] or "none",
    }
    if (frame := detector.frame) is not None and "tile_stride" in metadata:
        tile, stride = detector.image_size, int(metadata["tile_stride"])
        rows_and_columns = "×".join(str((side - tile) // stride + 1) for side in frame)
        rows["photos"] = f"brought to {frame[0]}×{frame[1]}, {rows_and_columns} tiles of {tile}×{tile}"
    if "score" in metadata:
        rows["score"] = metadata["score"] + (f", {metadata['photo_score']} over tiles" if frame else "")
    if report.rank_agreement is not None:
        rows[f"rank {metadata['rank']}, compared with the model's"] = _agreement(report.rank_agreement)
    if report.latent_lost is not None:
        rows["latent"] = f"rank {metadata['latent_rank']}, {100 * report.latent_lost:.2f} % of its weights' energy lost"
    if report.agreement is not None:
        rows["compared with fp32"] = _agreement(report.agreement)
    rows["opset, versions"] = f"{report.opset}; {metadata['versions']}"
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _agreement(found: Agreement) -> str:
    auc = "" if found.auc_diff is None else f"AUC {found.auc_diff:+.4f}, "
    return (
        f"{auc}{100 * found.label_agreement:.2f} % of decisions equal, Spearman {found.spearman:.4f}, "
        f"on {found.num_images} images"
    )


def _interface(detector: Detector, spec: InputSpec) -> str:
    tile = f"{detector.image_size}×{detector.image_size}"
    size = tile if detector.frame is None else f"{detector.frame[0]}×{detector.frame[1]}"
    resized = f"Any height and width: the file resizes to {size} itself, antialiased, as in training. Do not resize."
    if spec.input_size is not None:
        height, width = spec.input_size
        resized = f"Resize images to {height}×{width} first, bilinear and antialiased; no other resize."
    colour = "Grey is L = 0.299 R + 0.587 G + 0.114 B." if spec.channels == 1 else "Channels in the order R, G, B."
    outputs = (f"| out | `{name}` | {dtype} | {shape} |\n" for name, dtype, shape in detector.outputs)
    return f"""\
| | name | type | shape |
|---|---|---|---|
| in | `image` | {"uint8, 0 to 255" if spec.is_uint8 else "float32, 0 to 1"} | {detector.image_shape} |
| in | `threshold` | float32, optional | () |
{"".join(outputs)}
{resized} {colour} Apply a photo's EXIF orientation first.{_tiles(detector, tile)}"""


def _tiles(detector: Detector, tile: str) -> str:
    """What a detector that cuts photos into tiles says about them and its map."""
    if detector.frame is None:
        return ""
    unit = (
        " `anomaly_map` is in units of the score: values above the threshold are defects." if detector.map_unit else ""
    )
    return f" The photo is scored in tiles of {tile}.{unit}"


def _ratio_text(ratio: float) -> str:
    """A latency relative to this file's: ``38.3 times as long``, ``1/5.9 of it``."""
    return "" if ratio == 1 else f"{ratio:.1f} times as long" if ratio > 1 else f"1/{1 / ratio:.1f} of it"


def _mobile(before: list[MobileCheck], after: list[MobileCheck]) -> str:
    rows = (f"| {old.runtime} | {old} | {new} |\n" for old, new in zip(before, after, strict=True))
    return f"""\
## On a phone

ONNX Runtime's mobile usability checker, on the plain graph and on this file. It only looks at operators and
shapes; measure the speed on the phone.

| | plain graph | this file |
|---|---|---|
{"".join(rows)}
"""
