"""posecrafter poses setup, extract: key points out of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posecrafter.cli.poses.options import AsJson, OutJson, check_json_name, report


def setup(as_json: AsJson = False) -> None:
    """Make the pose extractor's own environment (once, about 30 s and 430 MB)."""
    from posecrafter.cli.bars import bars
    from posecrafter.pose import setup_extractor

    with bars() as progress:
        folder = setup_extractor(progress=progress)
    report({"environment": str(folder)}, f"the pose extractor is ready: {folder}", as_json)


def extract(
    video: Annotated[Path, typer.Argument(help="Video of one person.")],
    out: OutJson,
    first: Annotated[int | None, typer.Option(help="First frame, from 0.")] = None,
    last: Annotated[int | None, typer.Option(help="Last frame, included.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Keep frames without a person, as empty ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the key points of the person in every frame and write them as OpenPose JSON."""
    from posecrafter.cli.bars import bars
    from posecrafter.pose import extract_poses, write_poses

    check_json_name(out)
    with bars() as progress:
        track = extract_poses(video, progress, first, last, allow_missing)
    write_poses(out, track)
    empty = int((~track.persons).sum())
    sizes = {"frames": len(track), "width": track.width, "height": track.height}
    note = f", {empty} without a person" if empty else ""
    line = f"{out}: poses of {len(track)} frames, {track.width}x{track.height}{note}"
    report({"poses": str(out), **sizes, "empty_frames": empty}, line, as_json)
