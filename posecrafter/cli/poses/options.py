"""What the pose commands share: options, reading poses, naming outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posecrafter.cli.size import parse_size
from posecrafter.errors import RequestError

if TYPE_CHECKING:
    from posecrafter.pose import PoseTrack

Poses = Annotated[Path, typer.Argument(help="OpenPose JSON, or a folder of OpenPose frames.")]
OutJson = Annotated[Path, typer.Option("--out", help="OpenPose JSON to write.")]
Canvas = Annotated[str | None, typer.Option("--canvas", help="Canvas of a pose file that names none, as WIDTHxHEIGHT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def read(path: Path, canvas: str | None) -> PoseTrack:
    """Read poses, with --canvas where it is given. Raises RequestError size-syntax, PoseError (see read_poses)."""
    from posecrafter.pose import read_poses

    return read_poses(path, parse_size("--canvas", canvas) if canvas else None)


def check_json_name(out: Path) -> None:
    """Raises RequestError out-suffix before any work starts."""
    if out.suffix != ".json" or out.is_dir():
        raise RequestError("out-suffix", f"cannot write poses to {out}; --out must be a file that ends in .json")


def report(values: dict[str, Any], line: str, as_json: bool) -> None:
    """One JSON object, or one line for people."""
    typer.echo(json.dumps(values) if as_json else line)
