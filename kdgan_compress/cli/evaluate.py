"""``kdgan-compress evaluate``."""

from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import (
    PROTOCOL_OPTIONS,
    data_option,
    data_root_option,
    json_option,
    normal_option,
    own_code_option,
    protocol_options,
)
from kdgan_compress.cli.output import flush_messages, percent, print_json

if TYPE_CHECKING:
    from kdgan_compress.api.evaluate import Evaluation

PAPER_WARNING = (
    "Warning: --mode paper scales scores by the range of the test set, which no deployed detector can do and which "
    "leaks information between test images. Compare these metrics only with the paper's."
)


@click.command()
@click.option("--model", required=True, metavar="RUN|FILE", help="A run folder, model file or .onnx detector.")
@click.option("--teacher", metavar="RUN|FILE", help="Model to compare with.  [default: the student's teacher]")
@data_option
@normal_option
@protocol_options
@data_root_option
@own_code_option
@click.option(
    "--mode",
    type=click.Choice(["deployed", "paper"]),
    default="deployed",
    show_default=True,
    help="paper: scores scaled over the test set, as in CVGAD's paper.",
)
@click.option("--raw", is_flag=True, help="Also measure the AUC of the last weights without EMA.")
@click.option("--maps", metavar="DIR", help="Write heat maps of the test photos and cases.png.")
@json_option
def evaluate(as_json: bool, **options: Any) -> None:
    """Measure how well a model separates anomalous from normal test images.

    \b
    kdgan-compress evaluate --model runs/student
    kdgan-compress evaluate --model student.onnx --data mnist --normal 5
    """
    from kdgan_compress.api.evaluate import evaluate as run_evaluate

    protocol = {name: options.pop(name) for name in PROTOCOL_OPTIONS}
    given = {name: value for name, value in protocol.items() if value is not None}
    result = run_evaluate(**options, protocol=given)
    flush_messages()
    if result.mode == "paper":
        click.echo(PAPER_WARNING, err=True)
    if result.teacher is not None and result.auc_gap is None:
        click.echo(f"The teacher {result.teacher} is missing; give --teacher to compare with it.", err=True)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: "Evaluation") -> None:
    counts = f"{result.num_normal} normal and {result.num_novel} anomalous test images"
    without_ema = "" if result.auc_raw is None else f", {percent(result.auc_raw)} without EMA"
    click.echo(f"{result.model} on {result.data}: {counts}")
    click.echo(f"AUC                {percent(result.auc)}{without_ema}")
    click.echo(f"average precision  {percent(result.average_precision)}")
    click.echo(f"best F1            {percent(result.best_f1)} at {result.best_f1_threshold:.4g} (an oracle threshold)")
    if result.threshold is not None:
        detected, alarms = percent(result.tpr), percent(result.fpr)
        rates = f"detects {detected} of anomalous images, false alarm on {alarms} of normal ones"
        click.echo(f"model's threshold  {result.threshold:.4g}: {rates}")
    if result.pixel_auc is not None and result.aupro is not None:
        click.echo(
            f"pixels             AUROC {percent(result.pixel_auc)}, AUPRO {percent(result.aupro)} "
            f"on {result.num_masks} masks"
        )
    if result.maps is not None:
        click.echo(f"maps               {result.maps}")
    if result.auc_gap is not None:
        click.echo(f"against teacher    AUC gap {100 * result.auc_gap:+.2f} points (teacher minus student)")
        click.echo(f"                   Spearman correlation of scores {result.score_spearman:.3f}")
