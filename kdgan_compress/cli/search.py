"""``kdgan-compress search``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import (
    WHOLE_NUMBERS,
    ListOrRange,
    data_option,
    data_root_option,
    json_option,
    own_code_option,
    set_option,
)
from kdgan_compress.cli.output import print_report

if TYPE_CHECKING:
    from kdgan_compress.api.search import SearchReport


@click.command()
@click.option("--teacher", required=True, metavar="RUN|FILE", help="Run folder or model file.")
@click.option("--max-kb", type=click.FloatRange(0, min_open=True), help="Kilobytes of the file (1,000 bytes).")
@click.option("--max-latency-us", type=click.FloatRange(0, min_open=True), help="Microseconds for one image here.")
@click.option("--max-auc-drop", type=click.FloatRange(0, 1), help="Teacher's AUC minus the student's.")
@click.option("--width", "widths", type=WHOLE_NUMBERS, metavar="U,V,…", help="Widths to try.  [default: 1,2,3,4,6,8]")
@click.option(
    "--channels", type=WHOLE_NUMBERS, multiple=True, help="Instead: channels of one student; may be repeated."
)
@click.option("--norm", "norms", type=ListOrRange(), metavar="NORM,…", default="batch", show_default=True)
@click.option("--precision", "precisions", type=ListOrRange(), metavar="P,…", default="fp32,int8", show_default=True)
@click.option("--rank", "ranks", type=WHOLE_NUMBERS, metavar="K,L,…", help="Also files of these ranks (see export).")
@click.option("--keep", type=float, default=1 / 6, help="Fraction to train fully; 1: all.  [default: a sixth]")
@click.option("--recipe", metavar="NAME|FILE", default="default", show_default=True, help="The full training.")
@set_option
@data_option
@data_root_option
@own_code_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Output folder; continued if it exists.")
@json_option
def search(
    teacher: str,
    max_kb: float | None,
    max_latency_us: float | None,
    max_auc_drop: float | None,
    widths: list[int] | None,
    channels: tuple[list[int], ...],
    ranks: list[int] | None,
    recipe: str,
    settings: tuple[dict[str, Any], ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Find the smallest student that meets limits of bytes, latency and AUC.

    Every student is trained briefly, the most promising ones fully. Without --max-auc-drop, the one of the highest AUC
    within the other limits is chosen. One half of the test images chooses, and the other half reports.

    \b
    kdgan-compress search --teacher runs/teacher --max-kb 100 --max-auc-drop 0.01 --out runs/search
    """
    from kdgan_compress.api.search import search as run_search
    from kdgan_compress.api.search_limits import Limits
    from kdgan_compress.experiment.models import load_model
    from kdgan_compress.experiment.recipe import load_recipe
    from kdgan_compress.gans.architecture import channels_from_width

    if max_kb is max_latency_us is max_auc_drop is None:
        raise click.UsageError("Give at least one of --max-kb, --max-latency-us and --max-auc-drop.")
    if widths and channels:
        raise click.UsageError("Give --width or --channels, not both.")
    plans = [tuple(each) for each in channels]
    if widths:
        size = load_model(teacher).architecture.image_size
        plans = [channels_from_width(width, size) for width in widths]
    report = run_search(
        teacher,
        Limits(max_kb, max_latency_us, max_auc_drop),
        recipe=load_recipe(recipe).replace(*settings),
        channels=plans,
        ranks=[None, *(ranks or [])],
        announce=lambda line: click.echo(line, err=True),
        **options,
    )
    print_report(report, as_json, _print)


def _print(report: "SearchReport") -> None:
    from kdgan_compress.api.search_candidates import rank_option
    from kdgan_compress.experiment.models import load_model

    click.echo("student                    KB      µs   AUC %    drop   drop on the other half")
    for each in report.front:
        mark = "   chosen" if each == report.winner else ""
        click.echo(
            f"{each.name:<22}{each.size_bytes / 1000:>7.1f} {each.latency_us:>7.0f} {100 * each.auc:>7.2f} "
            f"{100 * each.auc_drop:>+7.2f} {100 * each.reported_auc_drop:>+8.2f}{mark}"
        )
    winner = report.winner
    share = report.seconds / report.full_seconds
    click.echo(
        f"trained   {report.num_trained} of {report.num_networks} students fully, in {share:.0%} of the time for all"
    )
    click.echo(f"picture   {report.picture}")
    rank = "" if winner.rank is None else f" {rank_option(load_model(winner.run))} {winner.rank}"
    click.echo(
        f"export    kdgan-compress export --model {winner.run} --precision {winner.precision}{rank} -o student.onnx"
    )
