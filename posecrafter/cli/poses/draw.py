"""posecrafter poses draw: pose maps as a video or a sheet, on black or over the frames they come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posecrafter.cli.poses.options import AsJson, Canvas, Poses, read, report
from posecrafter.cli.size import parse_size
from posecrafter.errors import RequestError

if TYPE_CHECKING:
    from posecrafter.pose import PoseTrack
    from posecrafter.pose.preview import Images


def draw(
    poses: Poses,
    out: Annotated[Path, typer.Option(help="What to write: a video (.mp4) or a sheet of up to 16 frames (.png).")],
    size: Annotated[str | None, typer.Option(help="Size to draw at, as WIDTHxHEIGHT; default the canvas.")] = None,
    over: Annotated[Path | None, typer.Option(help="Video to draw over: the one the poses come from.")] = None,
    first: Annotated[int, typer.Option(help="With --over: its frame that belongs to the first pose.")] = 0,
    style: Annotated[str, typer.Option(help="v1.1 (body, hands, face), v1.0 (body) or v1.1-small (thin).")] = "v1.1",
    canvas: Canvas = None,
    fps: Annotated[float | None, typer.Option(min=1, help="Frames a second; default 25, or those of --over.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw poses as the control images that the network sees."""
    from posecrafter.pose import draw_poses

    if out.suffix not in (".mp4", ".png"):
        raise RequestError("out-suffix", f"cannot draw to {out}; --out must end in .mp4 (video) or .png (sheet)")
    width, height = parse_size("--size", size) if size else (None, None)
    track = read(poses, canvas)
    images = draw_poses(track, height, width, style)
    rate = fps or 25.0
    if over is not None:
        images, over_fps = _over(over, first, track, images)
        rate = fps or over_fps
    _write(out, images, rate)
    result = {"drawing": str(out), "frames": len(track), "width": images.shape[2], "height": images.shape[1]}
    report(result, f"{out}: {len(track)} poses at {images.shape[2]}x{images.shape[1]}", as_json)


def _over(video_path: Path, first: int, track: PoseTrack, images: Images) -> tuple[Images, float]:
    """The pose images blended over their frames, and the video's frames a second."""
    from posecrafter.pose.preview import draw_over
    from posecrafter.video import read_video

    video = read_video(video_path, first, first + len(track) - 1)
    return draw_over(video.frames, images), video.fps


def _write(out: Path, images: Images, fps: float) -> None:
    from posecrafter.files import atomic_write
    from posecrafter.pose.preview import contact_sheet, png_bytes
    from posecrafter.video import write_video

    if out.suffix == ".mp4":
        write_video(out, images, fps)
    else:
        with atomic_write(out) as temporary:
            temporary.write_bytes(png_bytes(contact_sheet(images)))
