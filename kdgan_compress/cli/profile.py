"""``kdgan-compress profile``."""

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from kdgan_compress.cli.options import channels_option, json_option
from kdgan_compress.cli.output import human_count, percent, print_json

if TYPE_CHECKING:
    from kdgan_compress.api.profile import FormsReport, ProfileReport


@click.command()
@click.option("--model", metavar="RUN|FILE", help="A run folder, model file or .onnx detector.")
@click.option("--family", help="Instead of a model: a family with fresh weights, with --width or --channels.")
@click.option("--width", type=int, metavar="U", help="Channel plan u, 2u, 4u, …")
@channels_option
@click.option("--image-channels", type=click.Choice(["1", "3"]), default="1", show_default=True)
@click.option("--image-size", type=int, default=32, show_default=True)
@click.option("--latent", type=int, default=256, show_default=True)
@click.option("--norm", type=click.Choice(["instance", "batch"]), default="instance", show_default=True)
@click.option("--against", metavar="RUN|FILE", help="Hold it against this one, usually its teacher.")
@click.option("--all", "all_forms", is_flag=True, help="Every precision; without a model, of the paper's plans.")
@json_option
@click.pass_context
def profile(
    context: click.Context,
    /,
    model: str | None,
    family: str | None,
    width: int | None,
    channels: list[int] | None,
    image_channels: str,
    image_size: int,
    latent: int,
    norm: str,
    against: str | None,
    all_forms: bool,
    as_json: bool,
) -> None:
    """Count parameters and multiply-accumulates, and measure file size and latency.

    \b
    kdgan-compress profile --model runs/student --against runs/teacher
    kdgan-compress profile --family ede --channels 64,128,256 --image-channels 3
    kdgan-compress profile --all
    """
    from kdgan_compress.api.profile import Subject, profile_forms
    from kdgan_compress.api.profile import profile as run_profile
    from kdgan_compress.gans import Architecture, channels_from_width

    if all_forms:
        for name in ("family", "width", "channels", "image_channels", "image_size", "latent", "norm"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--all goes with a --model, or alone; leave out --{name.replace('_', '-')}.")
        if model is None and against is not None:
            raise click.UsageError("--against goes with a --model.")
        _print_forms(profile_forms(model, against), as_json)
        return
    if (model is None) == (family is None):
        raise click.UsageError("Give either --model or --family.")
    for name in ("width", "channels", "image_channels", "image_size", "latent", "norm"):
        if model is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --family; a --model has its own.")
    if family is not None and (width is None) == (channels is None):
        raise click.UsageError("--family goes with either --width or --channels.")
    subject: Subject | None = model
    if family is not None:
        subject = Architecture(
            family=family,
            channels=tuple(channels) if channels else channels_from_width(width or 0, image_size),
            image_channels=int(image_channels),
            image_size=image_size,
            latent_size=latent,
            norm="batch" if norm == "batch" else "instance",
        )
    assert subject is not None
    report = run_profile(subject, against)
    if as_json:
        print_json(report)
        return
    _print(report)


def _print(report: "ProfileReport") -> None:
    for row in report.models:
        click.echo(f"{row.name}  ({row.family} {row.channels}, {row.image_channels} image channels)")
        click.echo(f"  params        {row.num_params:,} ({human_count(row.num_params)})")
        click.echo(f"  conv MACs     {row.conv_macs:,} ({human_count(row.conv_macs)})")
        click.echo(f"  fvcore total  {row.fvcore_flops:,}")
        click.echo(f"  .onnx fp32    {row.size_bytes:,} bytes")
        click.echo(f"  latency       {row.latency_us.median:.0f} µs median, {row.latency_us.p10:.0f} µs p10")
    if report.ratios is not None:
        ratios = report.ratios
        macs = "–" if ratios.macs is None else f"{ratios.macs:.1f}"
        click.echo(
            f"{report.models[0].name} has {ratios.params:.1f}× fewer params, {macs}× fewer MACs, "
            f"{ratios.bytes:.1f}× fewer bytes and is {ratios.latency:.1f}× faster than {report.models[1].name}"
        )
    click.echo(f"ONNX Runtime, one thread, batch 1, on {report.machine}")


def _print_forms(report: "FormsReport", as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    name_width = max(len(row.name) for row in report.models)
    columns = f"{'form':17}  {'bytes':>10}  {'µs':>7}  identity  teacher  {'torch':7}"
    click.echo(f"{'':{name_width}}  {columns}  against fp32: AUC in points, verdicts")
    first = next(row for row in report.models if row.form == "fp32")
    for row in report.models:
        found = row.agreement
        against = ""
        if found is not None:
            against = "" if found.auc_diff is None else f"{100 * found.auc_diff:+.3f}  "
            against += percent(found.label_agreement)
        click.echo(
            f"{row.name:{name_width}}  {row.form:17}  {row.size_bytes:>10,}  {row.latency_us.median:>7.1f}  "
            f"{row.times_identity:>7.1f}×  {first.latency_us.median / row.latency_us.median:>6.1f}×  "
            f"{row.parity_max_rel:.1e}  {against}"
        )
    for channels, latency in report.identity_us.items():
        click.echo(f"identity graph, {channels} image channel{'s' if channels != '1' else ''}: {latency.median:.1f} µs")
    click.echo(
        f"teacher: how many times faster than {first.name} in fp32; torch: largest relative difference of scores"
    )
    click.echo(f"ONNX Runtime, one thread, batch 1, on {report.machine}")
