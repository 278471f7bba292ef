"""posecrafter poses setup, extract: key points out of a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posecrafter.cli.poses.options import AsJson, OutJson, check_json_name, report

if TYPE_CHECKING:
    from posecrafter.pose import PoseTrack

EstimatorName = Annotated[str, typer.Option("--estimator", help="mediapipe, or dwpose (needs two ONNX files).")]


def setup(estimator: EstimatorName = "mediapipe", as_json: AsJson = False) -> None:
    """Make the pose extractor's own environment (once; mediapipe's takes about 30 s and 430 MB)."""
    from posecrafter.cli.bars import bars
    from posecrafter.pose import setup_extractor
    from posecrafter.pose.estimators import environment_of

    environment = environment_of(estimator)
    with bars() as progress:
        folder = setup_extractor(progress=progress, environment=environment)
    report({"environment": str(folder)}, f"the pose extractor is ready: {folder}", as_json)


def extract(
    video: Annotated[Path, typer.Argument(help="Video of the person.")],
    out: OutJson,
    first: Annotated[int | None, typer.Option(help="First frame, from 0.")] = None,
    last: Annotated[int | None, typer.Option(help="Last frame, included.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Keep frames without a person, as empty ones.")
    ] = False,
    person: Annotated[
        str | None,
        typer.Option("--person", help="Of several people, whom to follow: largest, or a number from the left, from 0."),
    ] = None,
    estimator: EstimatorName = "mediapipe",
    detector: Annotated[Path | None, typer.Option("--detector", help="DWPose's person detector, .onnx.")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="DWPose's key point model, .onnx.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the key points of the person in every frame and write them as OpenPose JSON.

    Stopped, it keeps what it has in OUT.partial, and the same command goes on from there.
    """
    from posecrafter.cli.bars import bars
    from posecrafter.pose import extract_poses, write_poses
    from posecrafter.pose.estimators import PEOPLE, estimator_of
    from posecrafter.pose.extract import check_persons
    from posecrafter.pose.kept import keep
    from posecrafter.pose.openpose import read_origin, read_poses
    from posecrafter.pose.people import check_choice

    check_json_name(out)
    check_choice(person)
    chosen = estimator_of(estimator, detector, model)
    source = _origin(video, first, last) | chosen.origin()
    origin = source | {"person": person}
    if read_origin(out) == origin:
        track = read_poses(out)
        check_persons(track, str(video), first or 0, allow_missing)
        _say(out, track, as_json, before=True)
        return
    partial = out.with_name(f"{out.name}.partial")
    with keep(partial, source | {"script": chosen.script_hash(), "people": PEOPLE.script_hash()}) as kept:
        try:
            with bars() as progress:
                track = extract_poses(video, progress, first, last, allow_missing, person, chosen, kept)
            write_poses(out, track, origin)
            kept.finished = True
        except KeyboardInterrupt:
            if kept.begun:
                typer.echo(f"stopped; the same command goes on with what {partial} holds", err=True)
            raise
    _say(out, track, as_json, before=False)


def _origin(video: Path, first: int | None, last: int | None) -> dict[str, Any]:
    """What of which video, for the record in the pose file. Raises VideoError video-missing."""
    from posecrafter.errors import VideoError
    from posecrafter.files import sha256_of

    if not video.is_file():
        raise VideoError("video-missing", f"there is no video file {video}")
    return {"video": video.name, "sha256": sha256_of(video), "first": first, "last": last}


def _say(out: Path, track: PoseTrack, as_json: bool, before: bool) -> None:
    empty = int((~track.persons).sum())
    sizes = {"frames": len(track), "width": track.width, "height": track.height}
    note = f", {empty} without a person" if empty else ""
    note += "; extracted before, nothing to do" if before else ""
    plural = "" if len(track) == 1 else "s"
    line = f"{out}: poses of {len(track)} frame{plural}, {track.width}x{track.height}{note}"
    report({"poses": str(out), **sizes, "empty_frames": empty, "extracted_before": before}, line, as_json)
