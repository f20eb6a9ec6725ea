"""``kdgan-compress export``."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import data_root_option, json_option, own_code_option
from kdgan_compress.cli.output import percent, print_report
from kdgan_compress.export.precisions import DEFAULT_PRECISION, PRECISIONS

if TYPE_CHECKING:
    from kdgan_compress.api.export import ExportResult
    from kdgan_compress.export.settings import ExportSettings


class PrecisionName(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """A name in the table of precisions, as it is when the command runs."""

    name = "precision"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """``[fp32|fp16|int8]``."""
        return f"[{'|'.join(PRECISIONS)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Reject names that the table does not have."""
        if value not in PRECISIONS:
            self.fail(f"{value!r} is not one of {', '.join(PRECISIONS)}", param, ctx)
        return str(value)


def _input_size(text: str) -> tuple[int, int]:
    """``"480x640"`` → ``(480, 640)``."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"{text!r} is not a height and a width in pixels, such as 480x640")
    return int(height), int(width)


@click.command()
@click.option("--model", required=True, metavar="RUN|FILE", help="A run folder or model file.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE.onnx", help="[default: exports/<name>/<name>.onnx]"
)
@click.option("--precision", type=PrecisionName(), default=DEFAULT_PRECISION, show_default=True)
@click.option(
    "--mobile", is_flag=True, help="Export for phones: static shapes, .ort file, operator list and usability report."
)
@click.option("--web", type=click.Path(path_type=Path), metavar="DIR", help="Also write a page for browsers.")
@click.option("--ort-web", type=click.Path(path_type=Path), help="onnxruntime-web for it.  [default: by npm]")
@click.option("--input", type=click.Choice(["uint8", "float"]), default="uint8", show_default=True)
@click.option("--input-size", type=_input_size, metavar="HXW", help="Fixed image size.  [default: any]")
@click.option("--batch", "batch_size", type=click.Choice(["any", "1"]), default="any", show_default=True)
@click.option("--reconstruction", is_flag=True, help="Also output the reconstruction.")
@click.option("--anomaly-map/--no-anomaly-map", default=None, help="An output.  [default: only with tiles]")
@click.option("--quantile", type=float, help="Of normal scores: the threshold.  [default: 0.99]")
@click.option("--best-f1", is_flag=True, help="Threshold of the best F1 on --data's labels.")
@click.option("--data", help="Calibration and validation data.  [default: the model's]")
@data_root_option
@own_code_option
@click.option("--rewrites", metavar="A,B,…", help="Graph passes by name, or none.  [default: by precision]")
@click.option("--rank", type=int, metavar="K", help="Keep K directions per grid position (lossy).")
@click.option("--latent-rank", type=int, metavar="R", help="Keep R latent coordinates (lossy).")
@click.option("--opset", type=int, help="ONNX operator set, ≥ 18.  [default: 18]")
@json_option
def export(
    model: str,
    out: Path | None,
    web: Path | None,
    ort_web: Path | None,
    data: str | None,
    data_root: str | None,
    quantile: float | None,
    best_f1: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write one ONNX file that maps pixels to a score and a decision, with a model card and golden vectors.

    Lossy files are only written if they agree with fp32.

    \b
    kdgan-compress export --model runs/student -o student.onnx
    kdgan-compress export --model runs/student --precision int8 --web page
    """
    from kdgan_compress.api.export import export_detector
    from kdgan_compress.export.validation.gate import ThresholdRule

    if best_f1 and data is None:
        raise click.UsageError("--best-f1 needs --data with labelled images.")
    if best_f1 and quantile is not None:
        raise click.UsageError("Give --quantile or --best-f1, not both.")
    rule = None if quantile is None and not best_f1 else ThresholdRule(quantile)
    result = export_detector(
        model, out, settings=_settings(options), rule=rule, data=data, data_root=data_root, web=web, ort_web=ort_web
    )
    print_report(result, as_json, _print)


def _settings(options: dict[str, Any]) -> "ExportSettings":
    """The settings from the options of the same names."""
    from kdgan_compress.export.graph.assemble import IOSpec
    from kdgan_compress.export.settings import ExportSettings

    options["batch_size"] = 1 if options["batch_size"] == "1" else None
    if (names := options["rewrites"]) is not None:
        options["rewrites"] = frozenset() if names == "none" else frozenset(names.split(","))
    given = {name: value for name, value in options.items() if value is not None}
    io = {field.name: given.pop(field.name) for field in dataclasses.fields(IOSpec) if field.name in given}
    return ExportSettings(io=IOSpec(**io), **given)


def _print(result: "ExportResult") -> None:
    click.echo(
        f"{result.path}: {result.size_bytes:,} bytes, {result.precision}, opset {result.opset}, threshold "
        f"{result.threshold:.4g}; scores agree with torch to {result.parity_max_rel:.1e}"
    )
    for found, reference in ((result.rank_agreement, "the model's full rank"), (result.agreement, "fp32")):
        if found is not None:
            auc = "" if found.auc_diff is None else f"AUC {percent(found.auc)} ({100 * found.auc_diff:+.2f} points), "
            click.echo(
                f"compared with {reference}: {auc}{percent(found.label_agreement)} of decisions equal, "
                f"Spearman {found.spearman:.4f}, on {found.num_images} images"
            )
    if result.usability is not None:
        for plain, mobile in zip(*result.usability, strict=True):
            click.echo(f"{mobile.runtime}: plain graph {plain}; this file {mobile}")
    click.echo("also written: " + ", ".join(Path(file).name for file in result.files[:-1]))
    if result.page is not None:
        click.echo(f"page: {result.page}; serve its folder, for example with `python -m http.server`")
