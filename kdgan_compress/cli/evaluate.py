"""``kdgan-compress evaluate``."""

from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import (
    data_option,
    data_root_option,
    json_option,
    normal_option,
    protocol_options,
)
from kdgan_compress.cli.output import percent, print_json

if TYPE_CHECKING:
    from kdgan_compress.api.evaluate import Mode


@click.command()
@click.option("--model", required=True, metavar="RUN|FILE", help="A run folder, model file or .onnx detector.")
@click.option("--teacher", metavar="RUN|FILE", help="To compare with; a student remembers its own.")
@data_option
@normal_option
@protocol_options
@data_root_option
@click.option(
    "--mode",
    type=click.Choice(["deployed", "paper"]),
    default="deployed",
    show_default=True,
    help="paper: scores scaled over the test set, as CVGAD's paper has them.",
)
@json_option
def evaluate(
    model: str,
    teacher: str | None,
    data: str | None,
    normal: str | None,
    data_root: str | None,
    mode: "Mode",
    as_json: bool,
    **protocol: Any,
) -> None:
    """Measure how well a model separates novel from normal test images.

    \b
    kdgan-compress evaluate --model runs/student
    kdgan-compress evaluate --model student.onnx --data mnist --normal 5
    """
    from kdgan_compress.api.evaluate import evaluate as run_evaluate

    given = {name: value for name, value in protocol.items() if value is not None}
    result = run_evaluate(
        model, data=data, normal=normal, data_root=data_root, protocol=given, teacher=teacher, mode=mode
    )
    if result.mode == "paper":
        click.echo(
            "Warning: --mode paper scales scores by the test set's own range. No deployed detector can, and figures "
            "leak from one test image into another: compare them with the paper's and nothing else.",
            err=True,
        )
    if result.teacher is not None and result.auc_gap is None:
        click.echo(f"The teacher {result.teacher} is gone; give --teacher to compare with it.", err=True)
    if as_json:
        print_json(result)
        return
    click.echo(f"{result.model} on {result.data}: {result.num_normal} normal and {result.num_novel} novel test images")
    click.echo(f"AUC                {percent(result.auc)} last epoch, {percent(result.auc_raw)} raw weights")
    click.echo(f"average precision  {percent(result.average_precision)}")
    click.echo(f"best F1            {percent(result.best_f1)} at {result.best_f1_threshold:.4g} (an oracle threshold)")
    if result.threshold is not None:
        click.echo(
            f"own threshold      {result.threshold:.4g}: finds {percent(result.tpr)} of novel images, "
            f"false alarm on {percent(result.fpr)} of normal ones"
        )
    if result.auc_gap is not None:
        click.echo(f"against teacher    AUC gap {100 * result.auc_gap:+.2f} points (teacher minus student)")
        click.echo(f"                   Spearman's correlation of scores {result.score_spearman:.3f}")
