"""``kdgan-compress export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import data_root_option, json_option
from kdgan_compress.cli.output import percent, print_json

if TYPE_CHECKING:
    from kdgan_compress.api.export import ExportResult
    from kdgan_compress.export import ExportSettings, ThresholdRule


class Frame(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    """A height and a width in pixels."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """``"480x640"`` → ``(480, 640)``."""
        if isinstance(value, tuple):
            return value
        height, _, width = str(value).lower().partition("x")
        if not (height.isdecimal() and width.isdecimal()):
            self.fail(f"{value!r} is not a height and a width in pixels, such as 480x640", param, ctx)
        return int(height), int(width)


@click.command()
@click.option("--model", required=True, metavar="RUN|FILE", help="A run folder or model file.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The .onnx file.  [default: exports/<name>/…]")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True)
@click.option(
    "--mobile", is_flag=True, help="Static shapes, rewrites for phones, .ort file, operators, checker's verdict."
)
@click.option("--web", type=click.Path(path_type=Path), metavar="DIR", help="Also a page that runs it in a browser.")
@click.option("--ort-web", type=click.Path(path_type=Path), help="onnxruntime-web for the page.  [default: by npm]")
@click.option("--input", "input_kind", type=click.Choice(["uint8", "float"]), default="uint8", show_default=True)
@click.option(
    "--frame", type=Frame(), help="The one height and width it takes.  [default: any; --mobile: the network's]"
)
@click.option("--batch", type=click.Choice(["any", "1"]), default="any", show_default=True)
@click.option("--reconstruction", is_flag=True, help="Give the reconstruction too.")
@click.option("--error-map", is_flag=True, help="Give a map of where it differs from the image too.")
@click.option(
    "--quantile", type=float, help="Find the threshold at this quantile of normal images' scores.  [default: 0.99]"
)
@click.option("--best-f1", is_flag=True, help="Find the threshold with the best F1 on --data's labelled test images.")
@click.option("--data", help="Images to calibrate and judge on.  [default: those it was trained on]")
@data_root_option
@click.option("--rewrites", metavar="A,B,…", help="Exact rewrites by name, or none.  [default: those that help]")
@click.option(
    "--latent-rank", type=int, metavar="R", help="Keep R coordinates of the latent: smaller, at a stated loss."
)
@click.option("--opset", type=int, help="ONNX operator set, from 18 on.  [default: 18]")
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
    """Write one ONNX file that takes pixels and gives score and verdict; beside it a card and golden vectors.

    A lower precision appears only if it agrees with fp32.

    \b
    kdgan-compress export --model runs/student -o exports/student.onnx
    kdgan-compress export --model runs/student -o exports/phone/student.onnx --mobile
    kdgan-compress export --model runs/student -o exports/small/student.onnx --precision int8 --web page
    """
    from kdgan_compress.api.export import export_detector

    if best_f1 and data is None:
        raise click.UsageError("--best-f1 goes with --data, whose labelled images it is found on.")
    rule = _rule(quantile, best_f1)
    result = export_detector(
        model, out, settings=_settings(**options), rule=rule, data=data, data_root=data_root, web=web, ort_web=ort_web
    )
    if as_json:
        print_json(result)
    else:
        _print(result)


def _rule(quantile: float | None, best_f1: bool) -> "ThresholdRule | None":
    from kdgan_compress.export import ThresholdRule

    if best_f1 and quantile is not None:
        raise click.UsageError("Give --quantile or --best-f1, not both.")
    return ThresholdRule(None) if best_f1 else None if quantile is None else ThresholdRule(quantile)


def _settings(
    precision: Any,
    mobile: bool,
    input_kind: Any,
    frame: tuple[int, int] | None,
    batch: str,
    reconstruction: bool,
    error_map: bool,
    rewrites: str | None,
    latent_rank: int | None,
    opset: int | None,
) -> "ExportSettings":
    from kdgan_compress.export import ExportSettings, Interface

    names = None
    if rewrites is not None:
        names = frozenset() if rewrites == "none" else frozenset(rewrites.split(","))
    interface = Interface(input_kind, frame, batch == "1", reconstruction, error_map)
    chosen = {} if opset is None else {"opset": opset}
    return ExportSettings(precision, names, latent_rank, interface, mobile=mobile, **chosen)


def _print(result: "ExportResult") -> None:
    click.echo(
        f"{result.path}: {result.size_bytes:,} bytes, {result.precision}, opset {result.opset}, threshold "
        f"{result.threshold:.4g}; scores agree with torch to {result.parity_max_rel:.1e}"
    )
    if result.agreement is not None:
        found = result.agreement
        auc = "" if found.auc_diff is None else f"AUC {percent(found.auc)} ({100 * found.auc_diff:+.2f} points), "
        click.echo(
            f"against fp32: {auc}{percent(found.label_agreement)} of verdicts the same, Spearman {found.spearman:.4f}, "
            f"on {found.num_images} images"
        )
    own = next(iter(result.latency_us.values())).median
    for name, latency in result.latency_us.items():
        click.echo(f"{latency.median:8.1f} µs  {name:20} {latency.median / own:6.2f} times this file's")
    if result.slower_than_fp32:
        click.echo(f"{result.precision} is slower than fp32 on this machine; it saves bytes alone.")
    if result.usability is not None:
        for before, after in zip(*result.usability, strict=True):
            click.echo(f"{after.runtime}: before {before}; now {after}")
    click.echo("beside it: " + ", ".join(Path(file).name for file in result.files[:-1]))
    if result.page is not None:
        click.echo(f"page: {result.page}; serve its folder, with `python -m http.server` say")
