"""``kdgan-compress trials``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdgan_compress.cli.options import data_root_option, json_option, own_code_option, set_option
from kdgan_compress.cli.output import percent, print_json

if TYPE_CHECKING:
    from kdgan_compress.api.trials import Trial
    from kdgan_compress.evaluation import MeanStd


@click.command()
@click.option("--recipe", metavar="NAME|FILE", default="default", show_default=True, help="The experiment.")
@set_option
@click.option("--num-trials", type=int, default=10, show_default=True, help="Number of seeds and splits, from 0.")
@click.option("--student", "with_student", is_flag=True, help="Also distil each trial's model.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Number of processes, each with one thread.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Output folder; finished trials in it are kept."
)
@data_root_option
@own_code_option
@json_option
def trials(
    recipe: str, settings: tuple[dict[str, Any], ...], out: Path, data_root: str | None, as_json: bool, **options: Any
) -> None:
    """Repeat a recipe with several seeds and splits: mean, standard deviation and 95 % interval of AUC and F1.

    \b
    kdgan-compress trials --recipe cvgad-coil100 --num-trials 10 --jobs 2 --out runs/coil100
    kdgan-compress trials --recipe cvgad-coil100 --set data.num_categories=4 --out runs/coil100-4
    """
    from kdgan_compress.api.trials import trials as run_trials
    from kdgan_compress.experiment.recipe import load_recipe

    loaded = load_recipe(recipe).replace(*settings)
    loaded = loaded.model_copy(update={"data": loaded.data.relocate(None, data_root)})
    report = run_trials(loaded, out, announce=_announce, **options)
    if as_json:
        print_json(report)
        return
    click.echo(f"{'':18}{'AUC':>9}{'std':>8}{'± 95 %':>8}   {'best F1':>9}{'std':>8}{'± 95 %':>8}{'KB':>9}")
    sizes = report.trials[0].baseline_bytes
    for name, auc in report.auc.items():
        size = f"{sizes[name] / 1e3:,.0f}" if name in sizes else ""
        click.echo(f"{name:18}{_row(auc)}   {_row(report.best_f1[name])}{size:>9}".rstrip())
    click.echo("KB: what a device would have to store for a baseline of the first trial")
    oracle = "best F1 is an oracle: the test labels select its threshold"
    click.echo(f"\n{len(report.trials)} trials of {report.data}; {oracle}")
    click.echo(f"{report.machine}; all metrics are in {out / 'trials.json'}")


def _announce(trial: "Trial") -> None:
    aucs = "  ".join(f"{name} {percent(metrics.auc)}" for name, metrics in trial.figures.items())
    click.echo(f"trial {trial.trial}: {aucs}  {trial.seconds:.0f} s", err=True)


def _row(summary: "MeanStd") -> str:
    spread = "".join(f"{'–' if value is None else f'{100 * value:.2f}':>8}" for value in (summary.std, summary.ci95))
    return f"{percent(summary.mean):>9}{spread}"
