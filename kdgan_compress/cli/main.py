"""The entry point: the commands, and how errors are reported (one line, exit code 1, 2 or 130)."""

import os
import sys

import click

from kdgan_compress.cli.bench import bench
from kdgan_compress.cli.demo import demo
from kdgan_compress.cli.distill import distill
from kdgan_compress.cli.evaluate import evaluate
from kdgan_compress.cli.export import export
from kdgan_compress.cli.pictures import pictures
from kdgan_compress.cli.profile import profile
from kdgan_compress.cli.recipes import recipes
from kdgan_compress.cli.score import score
from kdgan_compress.cli.train import train
from kdgan_compress.cli.trials import trials
from kdgan_compress.cli.verify import verify
from kdgan_compress.errors import KdganError

TRAIN_EXTRA = "kdgan-compress[train]"
TRAIN_MODULES = (
    *("fvcore", "matplotlib", "onnx", "onnx_ir", "onnxscript", "pydantic", "rich"),
    *("safetensors", "scipy", "sklearn", "torch", "torchvision", "yaml"),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
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


for command in (demo, train, distill, evaluate, profile, export, verify, score, pictures, trials, bench, recipes):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code: 0, 1 (user error), 2 (wrong usage) or 130 (interrupted)."""
    try:
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
            f"Error: This command needs the training extra; found no module {error.name}. "
            f"Run pip install '{TRAIN_EXTRA}'.",
            err=True,
        )
        return 1
