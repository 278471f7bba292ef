"""posecrafter poses edit, operations: change poses by small operations, given one by one or as a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from posecrafter.cli.poses.options import AsJson, Canvas, OutJson, Poses, check_json_name, read, report
from posecrafter.errors import RequestError


def edit_command(
    poses: Poses,
    out: OutJson,
    do: Annotated[
        list[str] | None,
        typer.Option("--do", help='An operation: --do "blink side=right first=10". Repeat it for more, in order.'),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="A text with an operation a line.")] = None,
    canvas: Canvas = None,
    as_json: AsJson = False,
) -> None:
    """Edit poses: blink, tilt, turn, wave, cut, stretch, fade, tween, ... See: posecrafter poses operations."""
    from posecrafter.pose import write_poses
    from posecrafter.pose.recipe import edit, parse_step, read_recipe

    check_json_name(out)
    if not do and recipe is None:
        raise RequestError("edit-nothing", 'nothing to do; give --recipe FILE or --do "blink side=right first=10"')
    steps = read_recipe(recipe) if recipe else []
    steps += [parse_step(text) for text in do or []]
    track = edit(read(poses, canvas), steps)
    write_poses(out, track)
    done = [step.operation for step in steps]
    values = {"poses": str(out), "frames": len(track), "width": track.width, "height": track.height}
    report({**values, "operations": done}, f"{out}: {len(track)} poses after {', '.join(done)}", as_json)


def operations_command(as_json: AsJson = False) -> None:
    """List what `edit` can do: each operation, its values with their defaults, and what it does."""
    from posecrafter.pose.recipe import OPERATIONS, parameters

    table = {}
    for name, operation in OPERATIONS.items():
        takes = {
            key: None if parameter.default is parameter.empty else parameter.default
            for key, parameter in parameters(name).items()
        }
        about = " ".join((operation.__doc__ or "").split("\n\n")[0].split()).split(" Raises ")[0]
        table[name] = {"about": about, "values": takes}
    if as_json:
        typer.echo(json.dumps(table))
        return
    for name, entry in table.items():
        values = " ".join(f"{key}={'...' if value is None else value}" for key, value in entry["values"].items())  # type: ignore[attr-defined]
        typer.echo(f"{name} {values}\n    {entry['about']}")
