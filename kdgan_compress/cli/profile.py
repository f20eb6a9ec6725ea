"""``kdgan-compress profile``."""

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kdgan_compress.cli.options import channels_option, json_option, load_families
from kdgan_compress.cli.output import human_count, percent, print_report

if TYPE_CHECKING:
    from kdgan_compress.api.profile import ProfileReport
    from kdgan_compress.api.profile_card import CardProfile
    from kdgan_compress.api.profile_variants import VariantsReport
    from kdgan_compress.gans import Architecture

ARCHITECTURE = ("width", "channels", "image_channels", "image_size", "latent_size", "norm")
"""Parameters that describe an architecture, which a model has already."""


@click.command()
@click.option("--model", metavar="RUN|FILE", help="A run folder, model file or .onnx detector.")
@click.option(
    "--family",
    "families",
    multiple=True,
    callback=load_families,
    help="Instead: a GAN family with fresh weights. Your own code, such as mygan:build, with either.",
)
@click.option("--width", type=int, metavar="U", help="Channels u, 2u, 4u, … of the family.")
@channels_option
@click.option("--image-channels", type=click.Choice(["1", "3"]), default="1", show_default=True)
@click.option("--image-size", type=int, default=32, show_default=True)
@click.option("--latent", "latent_size", type=int, default=256, show_default=True)
@click.option("--norm", type=click.Choice(["instance", "batch"]), default="instance", show_default=True)
@click.option("--against", metavar="RUN|FILE", help="Model to compare with, usually the teacher.")
@click.option("--all", "all_variants", is_flag=True, help="All precisions; without --model, of the paper's networks.")
@click.option("--card", metavar="CARD.md", help="Measure the card's detector, write the result into the card.")
@json_option
@click.pass_context
def profile(
    context: click.Context,
    /,
    model: str | None,
    families: tuple[str, ...],
    against: str | None,
    all_variants: bool,
    card: str | None,
    as_json: bool,
    **architecture: Any,
) -> None:
    """Count parameters and multiply-accumulates; measure file size and latency.

    \b
    kdgan-compress profile --model runs/student --against runs/teacher
    kdgan-compress profile --family ede --width 64 --image-channels 3
    kdgan-compress profile --all
    kdgan-compress profile --model runs/student --card exports/student/card.md
    """
    given = [
        each.opts[0]
        for each in context.command.params
        if each.name in ARCHITECTURE and context.get_parameter_source(each.name) is ParameterSource.COMMANDLINE
    ]
    is_code_of_model = model is not None and all(":" in name for name in families)
    family = families[-1] if families and not is_code_of_model else None
    _check_usage(model, family, against, all_variants, card, given)
    if card is not None:
        from kdgan_compress.api.profile_card import profile_card

        print_report(profile_card(str(model), card, against), as_json, _print_card)
    elif all_variants:
        from kdgan_compress.api.profile_variants import profile_variants

        print_report(profile_variants(model, against), as_json, _print_variants)
    else:
        from kdgan_compress.api.profile import profile as run_profile

        print_report(run_profile(model or _architecture(family=family, **architecture), against), as_json, _print)


def _check_usage(
    model: str | None, family: str | None, against: str | None, all_variants: bool, card: str | None, given: list[str]
) -> None:
    if card is not None and (model is None or all_variants):
        raise click.UsageError("--card needs a --model, and no --all.")
    if all_variants and (family is not None or given):
        option = "--family" if family is not None else given[0]
        raise click.UsageError(f"--all needs a --model, or no other option; leave out {option}.")
    if all_variants and model is None and against is not None:
        raise click.UsageError("--against needs a --model.")
    if not all_variants and (model is None) == (family is None):
        raise click.UsageError("Give either --model or --family.")
    if model is not None and given:
        raise click.UsageError(f"{given[0]} needs --family; a --model has its own.")
    if family is not None and ("--width" in given) == ("--channels" in given):
        raise click.UsageError("--family needs either --width or --channels.")


def _architecture(
    width: int | None, channels: list[int] | None, image_size: int, image_channels: str, **options: Any
) -> "Architecture":
    from kdgan_compress.gans import Architecture, channels_from_width

    numbers = tuple(channels) if channels else channels_from_width(width or 0, image_size)
    return Architecture(channels=numbers, image_size=image_size, image_channels=int(image_channels), **options)


def _print(report: "ProfileReport") -> None:
    for row in report.models:
        click.echo(f"{row.name}  ({row.family} {row.channels}, {row.image_channels} image channels)")
        click.echo(f"  params        {row.num_params:,} ({human_count(row.num_params)})")
        click.echo(f"  conv MACs     {row.conv_macs:,} ({human_count(row.conv_macs)})")
        click.echo(f"  fvcore total  {row.fvcore_flops:,}")
        click.echo(f"  .onnx fp32    {row.size_bytes:,} bytes")
        click.echo(f"  latency       {row.latency_us.median:.0f} µs median, {row.latency_us.p10:.0f} µs p10")
    if (ratios := report.ratios) is not None:
        macs = "–" if ratios.macs is None else f"{ratios.macs:.1f}"
        click.echo(
            f"{report.models[0].name} has {ratios.params:.1f}× fewer params, {macs}× fewer MACs, "
            f"{ratios.bytes:.1f}× fewer bytes and is {ratios.latency:.1f}× faster than {report.models[1].name}"
        )
    click.echo(f"ONNX Runtime, one thread, batch 1, on {report.machine}")


def _print_card(report: "CardProfile") -> None:
    from kdgan_compress.profiling.latency import busy_warning

    reference = report.models[0].latency_us.p10
    rows = {row.name: row.latency_us for row in report.models} | {"an identity graph": report.identity_us}
    for name, latency in rows.items():
        click.echo(f"{latency.p10:8.1f} µs  {name:20} {latency.p10 / reference:6.2f} times this file's")
    if (busy := busy_warning(rows.values())) is not None:
        click.echo(busy, err=True)
    if report.slower_than_fp32:
        click.echo("This file is slower than fp32 on this machine; it only saves bytes.")
    click.echo(f"ONNX Runtime, one thread, batch 1, on {report.machine}; written to {report.card}")


def _print_variants(report: "VariantsReport") -> None:
    name_width = max(len(row.name) for row in report.models)
    columns = f"{'variant':17}  {'bytes':>10}  {'µs':>7}  identity  teacher  {'torch':7}"
    click.echo(f"{'':{name_width}}  {columns}  compared with fp32: AUC in points, equal decisions")
    first = next(row for row in report.models if row.variant == "fp32")
    for row in report.models:
        agreement = ""
        if (found := row.agreement) is not None:
            agreement = "" if found.auc_diff is None else f"{100 * found.auc_diff:+.3f}  "
            agreement += percent(found.label_agreement)
        click.echo(
            f"{row.name:{name_width}}  {row.variant:17}  {row.size_bytes:>10,}  {row.latency_us.median:>7.1f}  "
            f"{row.times_identity:>7.1f}×  {first.latency_us.median / row.latency_us.median:>6.1f}×  "
            f"{row.parity_max_rel:.1e}  {agreement}"
        )
    for channels, latency in report.identity_us.items():
        click.echo(f"identity graph, {channels} image channel{'s' if channels != '1' else ''}: {latency.median:.1f} µs")
    click.echo(
        f"teacher: how many times faster than {first.name} in fp32; torch: largest relative difference of scores"
    )
    click.echo(f"ONNX Runtime, one thread, batch 1, on {report.machine}")
