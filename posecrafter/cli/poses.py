"""posecrafter poses: set the pose extractor up, extract poses from a video, draw them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posecrafter.errors import RequestError

if TYPE_CHECKING:
    from posecrafter.pose import PoseTrack
    from posecrafter.pose.preview import Images

app = typer.Typer(name="poses", help="Extract poses from a video, and draw them.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@app.command()
def setup(as_json: AsJson = False) -> None:
    """Make the pose extractor's own environment (once, about 30 s and 430 MB)."""
    from posecrafter.cli.bars import bars
    from posecrafter.pose import setup_extractor

    with bars() as progress:
        folder = setup_extractor(progress=progress)
    typer.echo(json.dumps({"environment": str(folder)}) if as_json else f"the pose extractor is ready: {folder}")


@app.command()
def extract(
    video: Annotated[Path, typer.Argument(help="Video of one person.")],
    out: Annotated[Path, typer.Option(help="OpenPose JSON to write.")],
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

    if out.suffix != ".json" or out.is_dir():
        raise RequestError("out-suffix", f"cannot write poses to {out}; --out must be a file that ends in .json")
    with bars() as progress:
        track = extract_poses(video, progress, first, last, allow_missing)
    write_poses(out, track)
    empty = int((~track.persons).sum())
    if as_json:
        sizes = {"frames": len(track), "width": track.width, "height": track.height}
        typer.echo(json.dumps({"poses": str(out), **sizes, "empty_frames": empty}))
    else:
        note = f", {empty} without a person" if empty else ""
        typer.echo(f"{out}: poses of {len(track)} frames, {track.width}x{track.height}{note}")


@app.command()
def draw(
    poses: Annotated[Path, typer.Argument(help="OpenPose JSON, or a folder of OpenPose frames.")],
    out: Annotated[Path, typer.Option(help="What to write: a video (.mp4) or a sheet of up to 16 frames (.png).")],
    size: Annotated[str | None, typer.Option(help="Size to draw at, as WIDTHxHEIGHT; default the canvas.")] = None,
    over: Annotated[Path | None, typer.Option(help="Video to draw over: the one the poses come from.")] = None,
    first: Annotated[int, typer.Option(help="With --over: its frame that belongs to the first pose.")] = 0,
    style: Annotated[str, typer.Option(help="v1.1 (body, hands, face), v1.0 (body) or v1.1-small (thin).")] = "v1.1",
    canvas: Annotated[str | None, typer.Option(help="Canvas of a pose file that names none, as WIDTHxHEIGHT.")] = None,
    fps: Annotated[float | None, typer.Option(min=1, help="Frames a second; default 25, or those of --over.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw poses as the control images that the network sees."""
    from posecrafter.pose import draw_poses, read_poses

    if out.suffix not in (".mp4", ".png"):
        raise RequestError("out-suffix", f"cannot draw to {out}; --out must end in .mp4 (video) or .png (sheet)")
    width, height = parse_size("--size", size) if size else (None, None)
    track = read_poses(poses, parse_size("--canvas", canvas) if canvas else None)
    images = draw_poses(track, height, width, style)
    rate = fps or 25.0
    if over is not None:
        images, over_fps = _over(over, first, track, images)
        rate = fps or over_fps
    _write(out, images, rate)
    result = {"drawing": str(out), "frames": len(track), "width": images.shape[2], "height": images.shape[1]}
    typer.echo(json.dumps(result) if as_json else f"{out}: {len(track)} poses at {images.shape[2]}x{images.shape[1]}")


def parse_size(option: str, text: str) -> tuple[int, int]:
    """ "512x320" -> (512, 320). Raises RequestError size-syntax."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise RequestError("size-syntax", f"{option} {text} is not a size; write WIDTHxHEIGHT, for example 512x512")
    return int(width), int(height)


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
