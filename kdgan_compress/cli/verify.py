"""``kdgan-compress verify``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import data_root_option, json_option, own_code_option
from kdgan_compress.cli.output import percent, print_report

if TYPE_CHECKING:
    from kdgan_compress.api.verify import Verification


@click.command()
@click.argument("detector", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--against", metavar="RUN|FILE", help="The PyTorch model it was exported from.")
@click.option("--data", help="Labelled images: AUC and, with --against, agreement.")
@click.option("--normal", metavar="CLASS", help="The normal class.")
@data_root_option
@own_code_option
@json_option
@click.pass_context
def verify(context: click.Context, /, detector: Path, as_json: bool, **options: Any) -> None:
    """Check a detector against its golden vectors and, optionally, the PyTorch model; exit code 1 if a check fails.

    \b
    kdgan-compress verify student.onnx
    kdgan-compress verify student.onnx --against runs/student --data mnist
    """
    from kdgan_compress.api.verify import verify as run_verify

    found = run_verify(detector, **options)
    print_report(found, as_json, _print)
    if not found.ok:
        context.exit(1)


def _print(found: "Verification") -> None:
    if found.frame is not None:
        unit = "" if found.map_unit is None else f"; the anomaly map is in units of the {found.map_unit}"
        click.echo(f"frame           {found.frame[0]}×{found.frame[1]}, cut into tiles{unit}")
    click.echo(
        f"golden vectors  differ by at most {found.golden_max_rel:.1e} (number {found.golden_worst}); "
        f"{found.golden_tolerance:g} is allowed"
    )
    if found.score_max_rel is not None:
        click.echo(f"torch           scores differ by at most {found.score_max_rel:.1e} ({found.worst})")
    if found.auc is not None:
        difference = "" if found.auc_diff is None else f", {100 * found.auc_diff:+.3f} points from torch's"
        click.echo(f"AUC             {percent(found.auc)}{difference}")
    if found.label_agreement is not None:
        equal = percent(found.label_agreement)
        click.echo(f"decisions       {equal} equal to torch's, Spearman {found.score_spearman:.4f}")
    for reason in found.failed:
        click.echo(f"Failed: {reason}", err=True)
    click.echo("ok" if found.ok else "not ok")
