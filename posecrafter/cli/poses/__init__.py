"""posecrafter poses: everything between a video and the poses that drive a person. One command a file."""

from __future__ import annotations

import typer

from posecrafter.cli.poses.compare import compare_command
from posecrafter.cli.poses.draw import draw
from posecrafter.cli.poses.edit import edit_command, operations_command
from posecrafter.cli.poses.extract import extract, setup
from posecrafter.cli.poses.retarget import retarget_command
from posecrafter.cli.poses.smooth import smooth_command

__all__ = ["app"]

app = typer.Typer(
    name="poses",
    help="Extract poses, repair them, transfer them to another body, edit and draw them.",
    no_args_is_help=True,
)
app.command("setup")(setup)
app.command("extract")(extract)
app.command("smooth")(smooth_command)
app.command("retarget")(retarget_command)
app.command("edit")(edit_command)
app.command("operations")(operations_command)
app.command("draw")(draw)
app.command("compare")(compare_command)
