"""The command line: `posecrafter ...`. Each command's file imports what it needs when it runs, not before."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from posecrafter import __version__
from posecrafter.cli.bench import bench_command
from posecrafter.cli.compile import compile_command
from posecrafter.cli.demo import demo_command
from posecrafter.cli.export import export_command
from posecrafter.cli.finetune import finetune_command
from posecrafter.cli.generate import generate_command
from posecrafter.cli.inspect import inspect_command
from posecrafter.cli.plan import plan_command
from posecrafter.cli.poses import app as poses_app
from posecrafter.cli.serve import serve_command
from posecrafter.cores import limited_cores
from posecrafter.errors import PoseCrafterError

app = typer.Typer(
    name="posecrafter",
    help="Personalised, pose-driven video from one clip: finetune, export, generate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"posecrafter {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of no command."""


app.add_typer(poses_app, name="poses", help="Extract, repair, transfer, edit and draw key points.")
app.command("finetune")(finetune_command)
app.command("export")(export_command)
app.command("compile")(compile_command)
app.command("plan")(plan_command)
app.command("generate")(generate_command)
app.command("serve")(serve_command)
app.command("inspect")(inspect_command)
app.command("demo")(demo_command)
app.command("bench")(bench_command)


def main() -> None:
    """Run the command line. Exit status: 0 done, 2 refused (one line on stderr), 130 interrupted."""
    # Of PyTorch's threads, which it counts by cores: a container's limit is not among what it looks at.
    if (cores := limited_cores()) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    # Names of files may hold what the terminal's encoding cannot say.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except PoseCrafterError as error:
        print(f"error[{error.code}]: {error.message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before the command itself has begun; from then on typer sees to it
        sys.exit(130)
