"""Options that several commands share, and how their values become changes to a recipe."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from kdgan_compress.errors import KdganError

if TYPE_CHECKING:
    from kdgan_compress.experiment.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])


class Several(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    """Values with commas between them, or a range of whole numbers such as 0..9."""

    name = "N|A..B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """``"0..2"`` → ``["0", "1", "2"]``, ``"5"`` → ``["5"]``, ``"bag,sneaker"`` → ``["bag", "sneaker"]``."""
        if isinstance(value, list):
            return value
        first, dots, last = str(value).partition("..")
        if not dots:
            values = [part.strip() for part in str(value).split(",")]
        elif first.isdecimal() and last.isdecimal() and int(first) <= int(last):
            values = [str(number) for number in range(int(first), int(last) + 1)]
        else:
            self.fail(f"{value!r} is no range of whole numbers such as 0..9", param, ctx)
        if not all(values) or len(set(values)) < len(values):
            self.fail(f"{value!r} must name each value once", param, ctx)
        return values


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; progress on stderr.")
data_root_option = click.option("--data-root", metavar="DIR", help="Where named sets are, or are downloaded to.")
data_option = click.option(
    "--data", metavar="SOURCE", help="sample, mnist, fashion-mnist, cifar10, coil100, folder:PATH or npz:PATH."
)
normal_option = click.option("--normal", metavar="CLASS", help="The normal class, a number or a name.")
normals_option = click.option(
    "--normal",
    type=Several(),
    metavar="CLASS",
    help="The normal class, a number or a name; 0..9 or a,b for a model each.",
)


PROTOCOL_OPTIONS = ("protocol", "novel", "trial", "outliers", "num_categories")
"""Parameters that ``protocol_options`` gives a command, named as in ``DataSettings``."""


def protocol_options(command: Command) -> Command:
    """Which images of a named set train and test."""
    options = [
        click.option("--protocol", help="simo, miso-8020, gpnd-5fold, coil100 or ocgan-p1.  [default: simo]"),
        click.option("--novel", metavar="CLASS", help="miso-8020: the one class that is novel."),
        click.option("--trial", type=int, help="Number of the draw, from 0; gpnd-5fold: also of the fold."),
        click.option("--outliers", type=float, help="gpnd-5fold, coil100: fraction of the test set, such as 0.5."),
        click.option("--num-categories", type=int, help="coil100: how many objects are normal."),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


class ChannelPlan(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    """Channel numbers with commas between them."""

    name = "A,B,C"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """``"8,16,64"`` → ``[8, 16, 64]``."""
        if isinstance(value, list):
            return value
        try:
            return [int(number) for number in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is not whole numbers with commas between them, such as 8,16,64", param, ctx)


channels_option = click.option("--channels", type=ChannelPlan(), help="Channel plan by its numbers, such as 8,16,64.")


class Setting(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    """A recipe's key by its path, and its value as YAML."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """``"objective.w_adv=0"`` → ``{"objective": {"w_adv": 0}}``."""
        import yaml

        if isinstance(value, dict):
            return value
        path, equals, text = str(value).partition("=")
        if not equals or not all(path.split(".")):
            self.fail(f"{value!r} is not a recipe's key and its value, such as objective.w_adv=0", param, ctx)
        try:
            changes: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            self.fail(f"{text!r} is no YAML value", param, ctx)
        if changes is None:
            self.fail(f"{path} can't be set to nothing; leave it out", param, ctx)
        for key in reversed(path.split(".")):
            changes = {key: changes}
        return dict(changes)


set_option = click.option(
    "--set", "settings", type=Setting(), multiple=True, help="Any key of the recipe, such as objective.w_adv=0."
)


def _at_least_one(_context: click.Context, _parameter: click.Parameter, fleet: int | None) -> int | None:
    if fleet is not None and fleet < 1:
        raise KdganError("A fleet must have at least 1 model", f"got {fleet}", "Give --fleet 1 or more")
    return fleet


def training_options(command: Command) -> Command:
    """Options of both train and distill."""
    options = [
        click.option("--recipe", metavar="NAME|FILE", help="Settings to start from.  [default: default]"),
        set_option,
        click.option("--width", type=int, metavar="U", help="Channel plan u, 2u, 4u, …"),
        channels_option,
        click.option("--epochs", type=int, help="Passes over the training images, per stage."),
        click.option("--num-images", type=int, help="The same by images; rounded to whole epochs."),
        click.option("--batch-size", type=int, help="Images a step, from 1 up."),
        click.option("--learning-rate", type=float, help="Adam's rate at the start of a stage."),
        click.option("--seed", type=Several(), help="Of weights and order of images; 0..4 for five models."),
        click.option("--threads", type=int, help="CPU threads; chosen by the model's width if not given."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to compute.  [default: cpu]"),
        click.option(
            "--precision",
            type=click.Choice(["float32", "tf32", "bfloat16"]),
            help="Of a GPU's matrix products.  [default: float32]",
        ),
        click.option(
            "--fleet",
            type=int,
            callback=_at_least_one,
            metavar="K",
            help="Models trained as one; measured and chosen if not given.",
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            help="The run folder; of several models the folder of their run folders.  [default: runs/<name>]",
        ),
        click.option(
            "--resume",
            type=click.Path(path_type=Path),
            metavar="RUN",
            help="Continue an interrupted run, or all in a folder, by their own recipes; no other setting but --fleet.",
        ),
        click.option("--track-auc", is_flag=True, help="Measure AUC after every epoch; it chooses nothing."),
        data_root_option,
        json_option,
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def training_changes(width: int | None, channels: list[int] | None, **training: Any) -> tuple[Any, Any]:
    """A recipe's changes for the plan and the training section; both may be empty.

    Raises:
        click.UsageError: Both width and channels, or both epochs and num_images.
    """
    if width is not None and channels is not None:
        raise click.UsageError("Give --width or --channels, not both.")
    if training.get("epochs") is not None and training.get("num_images") is not None:
        raise click.UsageError("Give --epochs or --num-images, not both.")
    plan = {"width": width, "channels": channels}
    return {k: v for k, v in plan.items() if v is not None}, {k: v for k, v in training.items() if v is not None}


def with_seeds(recipe: "Recipe", seeds: list[str] | None, *section: str) -> "list[Recipe]":
    """The recipe once for each seed in one of its sections; as it is where there is none.

    Raises:
        click.UsageError: A seed is no whole number.
    """
    if seeds is None:
        return [recipe]
    if not all(seed.isdecimal() for seed in seeds):
        raise click.UsageError(f"--seed must be whole numbers, such as 0 or 0..4; got {','.join(seeds)}.")
    changes: list[Any] = [{"seed": int(seed)} for seed in seeds]
    for key in reversed(section):
        changes = [{key: change} for change in changes]
    return [recipe.replace(change) for change in changes]


def forbid_beside_resume(context: click.Context) -> None:
    """Refuse settings beside ``--resume``, since the run's own recipe decides.

    Raises:
        click.UsageError: Naming the first of them.
    """
    allowed = {"resume", "as_json", "track_auc", "fleet"}
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in allowed and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = (
                parameter.opts[0] if isinstance(parameter, click.Option) else "--teacher"
            )  # the one argument there is
            raise click.UsageError(f"--resume continues a run by its own recipe; leave out {option}.")
