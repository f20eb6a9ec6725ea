"""``kdgan-compress export``."""

from pathlib import Path

import click

from kdgan_compress.cli.options import json_option
from kdgan_compress.cli.output import print_json


@click.command()
@click.option("--model", required=True, metavar="RUN|FILE", help="A run folder or model file.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The .onnx file.  [default: exports/<name>.onnx]")
@json_option
def export(model: str, out: Path | None, as_json: bool) -> None:
    """Write one ONNX file that takes pixels and gives score and verdict.

    \b
    kdgan-compress export --model runs/student -o exports/student.onnx
    """
    from kdgan_compress.workflows.export import export_detector

    report = export_detector(model, out)
    if as_json:
        print_json(report)
        return
    click.echo(
        f"{report.path}: {report.size_bytes:,} bytes, {report.precision}, opset {report.opset}, threshold "
        f"{report.threshold:.4g}; scores agree with torch to {report.parity_max_rel:.1e}"
    )
