"""The entry point: the command table, and exit codes and messages of errors."""

import os
import sys
from importlib import import_module

import click

from kdgan_compress.cli.output import show_messages
from kdgan_compress.errors import KdganError

TRAIN_EXTRA = "kdgan-compress[train]"
TRAIN_MODULES = (
    *("fvcore", "jinja2", "matplotlib", "onnx", "onnx_ir", "onnxscript", "pydantic", "rich"),
    *("safetensors", "scipy", "sklearn", "torch", "torchvision", "yaml"),
)


COMMANDS = (
    *("demo", "train", "distill", "evaluate", "profile", "export", "verify", "score", "calibrate"),
    *("import", "pictures", "trials", "sweep", "report", "search", "bench", "recipes"),
)
"""The command table: ``NAME`` is the function of that name in ``cli/NAME.py``."""

FUNCTIONS = {"import": "import_checkpoint"}
"""Functions of the commands whose names are keywords of Python."""


class CommandTable(click.Group):
    """A group that imports a command's module when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        name = FUNCTIONS.get(cmd_name, cmd_name)
        command: click.Command = getattr(import_module(f"kdgan_compress.cli.{name}"), name)
        return command


@click.group(cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kdgan-compress")
def cli() -> None:
    """Distil GAN anomaly detectors into students small enough for the device.

    \b
    A first look:      kdgan-compress demo
    Your own photos:   kdgan-compress train --data folder:PATH --out runs/teacher
                       kdgan-compress distill --teacher runs/teacher --width 2 --out runs/student
                       kdgan-compress export --model runs/student -o student.onnx
                       kdgan-compress score student.onnx PHOTOS
    """


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; exit code 0, 1 (an error the user can fix), 2 (wrong usage) or 130 (interrupted)."""
    try:
        with show_messages():
            return cli.main(arguments, prog_name="kdgan-compress", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; finished work is kept (continue a training with --resume).", err=True)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KdganError as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_MODULES:
            raise
        click.echo(
            f"Error: This command needs the training dependencies; found no module {error.name}. "
            f"Run pip install '{TRAIN_EXTRA}'.",
            err=True,
        )
        return 1
