"""Poses out of a video, by an estimator that runs in its own environment as a subprocess.

The video is decoded here, and its frames are sent as raw pixels: what the estimator sees is what training sees.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.pose.environment import extractor_python
from posecrafter.pose.openpose import parse_frames
from posecrafter.pose.track import PoseTrack
from posecrafter.progress import Progress, silent

SCRIPT = Path(__file__).with_name("extractors") / "blazepose.py"
STAGE = "poses"


def extract_poses(
    video_path: Path | str,
    progress: Progress | None = None,
    first: int | None = None,
    last: int | None = None,
    allow_missing: bool = False,
) -> PoseTrack:
    """Key points of the person in frames `first`..`last` (both included, from 0; default all) of a video.

    The canvas is the video's size. Frames without a visible person are refused by name, or, with allow_missing, kept
    with score 0. Raises VideoError (see read_video); PoseError no-person, extractor-missing, extractor-failed.
    """
    python = extractor_python()
    from posecrafter.video import read_video  # the video library is a fifth of the runtime's time to import

    frames = read_video(video_path, first, last).frames
    track = parse_frames(str(video_path), run_extractor(python, SCRIPT, frames, progress or silent))
    missing = np.flatnonzero(~track.persons)
    if len(missing) == len(track) or (len(missing) and not allow_missing):
        where = name_ranges([int(index) + (first or 0) for index in missing])
        cure = "" if len(missing) == len(track) else ", or keep them as empty frames with --allow-missing"
        raise PoseError(
            "no-person",
            f"{video_path}: no person is visible in frame{'s' if len(missing) > 1 else ''} {where} "
            f"({len(missing)} of {len(track)}); choose other frames with --first and --last{cure}",
        )
    return track


def run_extractor(python: Path, script: Path, frames: npt.NDArray[np.uint8], progress: Progress) -> list[Any]:
    """Send uint8 frames [F, H, W, 3] RGB to the script one by one; returns its F OpenPose frame objects.

    Raises PoseError extractor-failed with the script's last words if it stops early or answers with anything else.
    """
    count, height, width = frames.shape[:3]
    answers: list[Any] = []
    with tempfile.TemporaryFile() as log, _child([str(python), "-I", str(script)], log) as (send, receive):
        try:
            send.write(json.dumps({"frames": count, "width": width, "height": height}).encode() + b"\n")
            progress(STAGE, 0, count, "start")
            for index, frame in enumerate(frames):
                send.write(np.ascontiguousarray(frame).data)
                send.flush()
                answers.append(json.loads(receive.readline()))
                progress(STAGE, index + 1, count)
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise PoseError(
                "extractor-failed",
                f"the pose extractor stopped at frame {len(answers)} of {count} ({_last_words(log)}); "
                "if it is broken, delete its folder and run: posecrafter poses setup",
            ) from error
    return answers


@contextmanager
def _child(command: list[str], log: IO[bytes]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A subprocess with pipes to and from it, in its own session: Ctrl-C comes to us, and we end it."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child.stdin, child.stdout
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        # What was still buffered has no reader any more.
        with suppress(BrokenPipeError):
            child.stdin.close()


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def name_ranges(numbers: Sequence[int]) -> str:
    """Sorted frame numbers in words: [0, 1, 2, 7] -> "0-2, 7"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in ranges)
