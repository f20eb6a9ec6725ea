"""Options that several commands share, and how their values become changes to a recipe."""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from kdgan_compress.experiment.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])


class ListOrRange(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """Values separated by commas, or a range of whole numbers such as 0..9."""

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
            self.fail(f"{value!r} is not a range of whole numbers such as 0..9", param, ctx)
        if not all(values) or len(set(values)) < len(values):
            self.fail(f"{value!r} must name each value once", param, ctx)
        return values


class NumberList(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """Finite numbers of one kind, separated by commas."""

    name = "A,B,C"

    def __init__(self, kind: Callable[[str], float], what: str) -> None:
        self.kind = kind
        self.what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """With ``int``: ``"8,16,64"`` → ``[8, 16, 64]``."""
        if isinstance(value, list):
            return value
        try:
            numbers = [self.kind(number) for number in str(value).split(",")]
        except ValueError:
            numbers = [math.nan]
        if not all(map(math.isfinite, numbers)):
            self.fail(f"{value!r} is not a list of {self.what}", param, ctx)
        return numbers


WHOLE_NUMBERS = NumberList(int, "whole numbers such as 8,16,64")
NUMBERS = NumberList(float, "numbers such as 0.485,0.456,0.406")


class Setting(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """A recipe key by its path, and its value as YAML."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """``"objective.w_adv=0"`` → ``{"objective": {"w_adv": 0}}``."""
        from kdgan_compress.experiment.recipe_yaml import parse_yaml

        if isinstance(value, dict):
            return value
        path, equals, text = str(value).partition("=")
        if not equals or not all(path.split(".")):
            self.fail(f"{value!r} is not a recipe key and its value, such as objective.w_adv=0", param, ctx)
        try:
            changes: Any = parse_yaml(text)
        except ValueError:
            self.fail(f"{text!r} is not a YAML value", param, ctx)
        if changes is None:
            self.fail(f"{path} can't be set to nothing; leave it out", param, ctx)
        for key in reversed(path.split(".")):
            changes = {key: changes}
        return dict(changes)


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; progress on stderr.")
data_root_option = click.option("--data-root", metavar="DIR", help="Dataset root directory.")
data_option = click.option(
    "--data", metavar="SOURCE", help="sample, mnist, fashion-mnist, cifar10, coil100, folder:PATH, npz:PATH."
)
normal_option = click.option("--normal", metavar="CLASS", help="Normal class, a number or a name.")
normals_option = click.option(
    "--normal", type=ListOrRange(), metavar="CLASS", help="Normal class; 0..9 or a,b: one model per class."
)

channels_option = click.option("--channels", type=WHOLE_NUMBERS, help="Channels as numbers, such as 8,16,64.")
set_option = click.option(
    "--set", "settings", type=Setting(), multiple=True, help="Any recipe key, such as objective.w_adv=0."
)


def load_families(context: click.Context, parameter: click.Parameter, names: Any) -> Any:
    """Import the families of a user's own code that an option names, from the current folder or an installed package.

    Nothing else imports them: a recipe or model file that names one is refused.
    """
    own_code = [name for name in ([names] if isinstance(names, str) else names or []) if ":" in name]
    if own_code:
        from kdgan_compress.gans import load_family

        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        for name in own_code:
            load_family(name)
    return names


def _load_own_code(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> None:
    for name in names:
        if ":" not in name:
            raise click.BadParameter(f"{name!r} is not a module and its attribute, such as mygan:build")
    load_families(context, parameter, names)


own_code_option = click.option(
    "--family",
    multiple=True,
    metavar="MODULE:NAME",
    callback=_load_own_code,
    expose_value=False,
    help="The model's own code, such as mygan:build.",
)

PROTOCOL_OPTIONS = ("protocol", "novel", "trial", "outliers", "num_categories")
"""Parameters that ``protocol_options`` gives a command, named as in ``DataSettings``."""


def protocol_options(command: Command) -> Command:
    """Which images of a named data set train and test."""
    options = [
        click.option("--protocol", help="simo, miso-8020, miso-leaky, gpnd-5fold, coil100 or ocgan-p1."),
        click.option("--novel", metavar="CLASS", help="miso-8020, miso-leaky: the one class that is novel."),
        click.option(
            "--trial", type=int, hidden=True, help="Index of the random split, from 0 (gpnd-5fold: and fold)."
        ),
        click.option("--outliers", type=float, hidden=True, help="gpnd-5fold, coil100: fraction of the test set."),
        click.option("--num-categories", type=int, hidden=True, help="coil100: number of normal objects."),
    ]
    return _with(options, command)


class Tile(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """The side of a tile in pixels, or ``off``."""

    name = "tile"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int) or value == "off":
            return int(value) if isinstance(value, int) else "off"
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a side in pixels, such as 32, nor off", param, ctx)
        return int(value)


def tile_options(command: Command) -> Command:
    """How photos are scored."""
    options = [
        click.option("--tile", type=Tile(), metavar="SIDE|off", help="Cut photos into tiles of this side in pixels."),
        click.option("--photo-size", type=int, help="Working size: the longer side; by default from the photos."),
        click.option("--score", help="norm, gaussian or mixture.  [default: gaussian]"),
    ]
    return _with(options, command)


def tile_changes(tile: int | str | None, photo_size: int | None) -> dict[str, Any]:
    """Changes to a recipe's data section."""
    if tile is None and photo_size is None:
        return {}
    return {"tiles": {"enabled": tile != "off", "photo_size": photo_size}}


def training_options(command: Command) -> Command:
    """Options of both train and distill; hidden ones are rarely needed and work as ``--set`` does."""
    options = [
        click.option("--recipe", metavar="NAME|FILE", help="Settings to start from.  [default: default]"),
        set_option,
        click.option("--width", type=int, metavar="U", help="Channels u, 2u, 4u, …"),
        channels_option,
        click.option("--epochs", type=int, help="Passes over the training images, per stage."),
        click.option("--num-images", type=int, help="Training length in images instead of epochs."),
        click.option("--batch-size", type=int, help="Batch size."),
        click.option("--learning-rate", type=float, help="Adam's learning rate at the start of a stage."),
        click.option("--seed", type=ListOrRange(), help="Random seed; 0..4: one model per seed."),
        click.option("--threads", type=int, hidden=True, help="CPU threads."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: cpu]"),
        click.option(
            "--precision",
            type=click.Choice(["float32", "tf32", "bfloat16"]),
            hidden=True,
            help="Matmul precision on GPU.",
        ),
        click.option("--fleet", type=int, metavar="K", help="Models trained together; auto-tuned by default."),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            help="New run folder; for several models, its parent.",
        ),
        click.option(
            "--resume",
            type=click.Path(path_type=Path),
            metavar="RUN",
            help="Finish an interrupted run, or all in a folder.",
        ),
        click.option("--track-auc", is_flag=True, help="Measure AUC after every epoch, for logging only."),
        click.option("--raw", is_flag=True, help="Also measure the AUC of the weights without EMA."),
        data_root_option,
        json_option,
    ]
    return _with(options, command)


def _with(options: Sequence[Any], command: Command) -> Command:
    decorated: Command = functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)
    return decorated


def training_changes(width: int | None, channels: list[int] | None, **training: Any) -> tuple[Any, Any]:
    """Changes to a recipe's channels and training section; both may be empty.

    Raises:
        click.UsageError: Both width and channels, or both epochs and num_images.
    """
    if width is not None and channels is not None:
        raise click.UsageError("Give --width or --channels, not both.")
    if training.get("epochs") is not None and training.get("num_images") is not None:
        raise click.UsageError("Give --epochs or --num-images, not both.")
    shape = {"width": width, "channels": channels}
    return {k: v for k, v in shape.items() if v is not None}, {k: v for k, v in training.items() if v is not None}


def with_seeds(recipe: "Recipe", seeds: list[str] | None, *section: str) -> "list[Recipe]":
    """The recipe once for each seed in one of its sections; unchanged where there is none.

    Raises:
        click.UsageError: A seed is not a whole number.
    """
    if seeds is None:
        return [recipe]
    if not all(seed.isdecimal() for seed in seeds):
        raise click.UsageError(f"--seed must be whole numbers, such as 0 or 0..4; got {','.join(seeds)}.")
    changes: list[Any] = [{"seed": int(seed)} for seed in seeds]
    for key in reversed(section):
        changes = [{key: change} for change in changes]
    return [recipe.replace(change) for change in changes]


def reject_options_with_resume(context: click.Context) -> None:
    """Refuse settings together with ``--resume``, since the run's own recipe decides.

    Raises:
        click.UsageError: Names the first of them.
    """
    families = context.params["family"]
    allowed = {"resume", "as_json", "track_auc", "raw", "fleet"}
    if all(":" in name for name in ([families] if isinstance(families, str) else families or [])):
        allowed.add("family")  # the code that the run needs
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in allowed and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = parameter.opts[0] if isinstance(parameter, click.Option) else "--teacher"  # the only argument
            raise click.UsageError(f"--resume continues a run by its own recipe; leave out {option}.")
