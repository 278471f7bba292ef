"""posecrafter poses compare: how far two pose files are apart, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posecrafter.cli.poses.options import AsJson, Canvas, read, report


def compare_command(
    a: Annotated[Path, typer.Argument(help="Poses.")],
    b: Annotated[Path, typer.Argument(help="As many poses of the same motion.")],
    canvas: Canvas = None,
    as_json: AsJson = False,
) -> None:
    """Mean distance of the key points that both show, by part and by frame, as a share of the image."""
    from posecrafter.pose.compare import compare_tracks

    found = compare_tracks(read(a, canvas), read(b, canvas))
    frames = [round(value, 6) if value == value else None for value in found.frames.tolist()]
    values = {
        "mean": found.mean,
        "largest": found.largest,
        "parts": found.parts,
        "worst_frames": list(found.worst),
        "only_a": found.only_a,
        "only_b": found.only_b,
        "frames": frames,
    }
    parts = ", ".join(f"{name.replace('_', ' ')} {value:.2%}" for name, value in found.parts.items())
    worst = ", ".join(f"{frame} ({found.frames[frame]:.2%})" for frame in found.worst)
    line = (
        f"{found.mean:.2%} of the image apart on average, one point at most {found.largest:.2%}; {parts}; "
        f"furthest in frames {worst}; points of one alone: {found.only_a} of A, {found.only_b} of B"
    )
    report(values, line, as_json)
