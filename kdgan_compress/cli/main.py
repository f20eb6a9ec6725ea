"""The entry point: the command table, and exit codes and messages of errors."""

import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType

import click

from kdgan_compress.cli.output import show_messages
from kdgan_compress.cli.streams import abandon, one_line, prepare_streams
from kdgan_compress.errors import Interrupted, KdganError

TRAIN_EXTRA = "kdgan-compress[train]"
TRAIN_MODULES = (
    *("fvcore", "jinja2", "matplotlib", "onnx", "onnx_ir", "onnxscript", "pydantic", "rich"),
    *("safetensors", "scipy", "sklearn", "torch", "torchvision", "yaml"),
)

OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory", re.IGNORECASE)
"""What torch's errors say for which it has no class of their own."""

ALLOCATION = re.compile(r"tried to allocate [\d.]+ \w+", re.IGNORECASE)

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
    """Run one command line; the exit codes are listed in docs/reliability.md."""
    prepare_streams()
    try:
        with _sigterm_as_exception(), show_messages():
            code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Interrupted as error:
        return _fail(error.message, 128 + error.signal)
    except (KeyboardInterrupt, click.Abort):
        return _fail("Interrupted; finished work is kept (continue a training with --resume).", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        abandon(sys.stdout)
        return 0
    except KdganError as error:
        return _fail(f"Error: {error}")
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_MODULES:
            raise
        needs = f"This command needs the training dependencies; found no module {error.name}"
        return _fail(f"Error: {needs}. Run pip install '{TRAIN_EXTRA}'.")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"Error: Reading or writing failed; {where}{error.strerror or error}. Free space or permissions.")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        wanted = ALLOCATION.search(str(error))
        found = "could not get it" if wanted is None else wanted[0]
        hint = "Use a smaller model, batch, fleet or image, or a machine with more memory"
        return _fail(f"Error: The command needs more memory than there is; it {found}. {hint}.")


def _invoke(arguments: list[str]) -> int:
    """Like ``click.Group.main``, which would hide some exceptions."""
    try:
        with cli.make_context("kdgan-compress", arguments) as context:
            cli.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    return 0


def _fail(message: str, code: int = 1) -> int:
    """Print an error as one line, as far as stderr takes it, and return the exit code."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, one_line(message) + "\n")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            abandon(stream)
    return code


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Let SIGTERM end the command by an exception, so that temporary files are removed."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted(number, f"Stopped by {signal.Signals(number).name}; files that were complete are kept.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
