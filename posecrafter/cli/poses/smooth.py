"""posecrafter poses smooth: repair poses and take the jitter out of them, and say what was changed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from posecrafter.cli.poses.options import AsJson, Canvas, OutJson, Poses, check_json_name, read, report

if TYPE_CHECKING:
    from posecrafter.pose.repair import Report


def smooth_command(
    poses: Poses,
    out: OutJson,
    kind: Annotated[str, typer.Option("--filter", help="one-euro, savgol, or none (repair only).")] = "one-euro",
    strength: Annotated[float, typer.Option("--strength", help="1 for an estimator's jitter; more is smoother.")] = 1.0,
    gap: Annotated[int, typer.Option("--gap", help="Longest gap to fill, in frames; 0 fills none.")] = 12,
    canvas: Canvas = None,
    as_json: AsJson = False,
) -> None:
    """Put exchanged sides right, drop impossible points, fill gaps and smooth; nothing reaches over a cut."""
    from posecrafter.pose import write_poses
    from posecrafter.pose.repair import repair

    check_json_name(out)
    track, done = repair(read(poses, canvas), gap, None if kind == "none" else kind, strength)  # type: ignore[arg-type]
    write_poses(out, track)
    report({"poses": str(out), **asdict(done)}, f"{out}: {_words(done)}", as_json)


def _words(done: Report) -> str:
    from posecrafter.pose.extract import name_ranges

    swaps = [f"{part} exchanged in frame {name_ranges(frames)}" for part, frames in done.swapped.items()]
    lines = [
        f"{done.frames} poses",
        f"cuts before frame {name_ranges(done.cuts)}" if done.cuts else "no cut",
        *(swaps or ["no sides exchanged"]),
        f"{done.dropped} impossible points dropped",
        f"{done.filled} missing points filled" + (f", {done.left} in longer gaps left" if done.left else ""),
        f"points moved by {done.moved[0]:.2f} px on average, at most {done.moved[1]:.1f}",
    ]
    return "; ".join(lines)
