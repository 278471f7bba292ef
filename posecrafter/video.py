"""Video files in and out, through PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import VideoError
from posecrafter.files import atomic_write


@dataclass(frozen=True)
class Video:
    """Decoded frames, uint8 [F, H, W, 3] RGB, and their rate in frames a second."""

    frames: NDArray[np.uint8]
    fps: float

    def __len__(self) -> int:
        return len(self.frames)


def read_video(path: Path | str, first: int | None = None, last: int | None = None) -> Video:
    """Decode a video file whole, or its frames `first`..`last` (both included, counted from 0).

    Raises: VideoError "video-missing", "video-unreadable", "video-empty", "video-truncated", "video-size-changes",
    "video-range".
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError("video-missing", f"there is no video file {path}")
    if path.stat().st_size == 0:
        raise VideoError("video-empty", f"{path} has 0 bytes; copy or download it again")
    frames, fps, expected = _decode(path)
    if not frames:
        raise VideoError("video-empty", f"{path} holds no video frame")
    if expected is not None and len(frames) < expected:
        raise VideoError(
            "video-truncated",
            f"{path} announces {expected} frames and only {len(frames)} can be decoded; copy or download it again",
        )
    start, stop = 0 if first is None else first, len(frames) - 1 if last is None else last
    if not 0 <= start <= stop < len(frames):
        raise VideoError("video-range", f"frames {start}..{stop} were asked for; {path} has 0..{len(frames) - 1}")
    return Video(np.stack(frames[start : stop + 1]), fps)


def _decode(path: Path) -> tuple[list[NDArray[np.uint8]], float, int | None]:
    frames: list[NDArray[np.uint8]] = []
    expected: int | None = None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("video-empty", f"{path} has no video stream")
            stream = container.streams.video[0]
            expected = stream.frames or None
            fps = float(stream.average_rate or 25)
            for frame in container.decode(stream):
                image = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
                if frames and image.shape != frames[0].shape:
                    (h0, w0), (h, w) = frames[0].shape[:2], image.shape[:2]
                    raise VideoError(
                        "video-size-changes",
                        f"{path}: frame {len(frames)} is {w}x{h} and frame 0 is {w0}x{h0}; re-encode it at one size",
                    )
                frames.append(image)
    except av.FFmpegError as error:
        if frames:
            raise VideoError(
                "video-truncated", f"{path} breaks off after {len(frames)} frames; copy or download it again"
            ) from error
        raise VideoError("video-unreadable", f"{path} cannot be decoded as a video: {error.strerror}") from error
    return frames, fps, expected


def write_video(path: Path | str, frames: Iterable[NDArray[np.uint8]], fps: float) -> None:
    """Encode uint8 [H, W, 3] RGB frames (even sizes) as H.264 MP4, nearly lossless (crf 12), atomically.

    Raises: VideoError "video-odd-size"; PoseCrafterError "disk-full".
    """
    with atomic_write(path) as temporary, av.open(str(temporary), mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "preset": "medium"}
        for index, frame in enumerate(frames):
            if index == 0:
                stream.height, stream.width = frame.shape[:2]
                if stream.height % 2 or stream.width % 2:
                    raise VideoError("video-odd-size", f"H.264 needs even sizes; got {stream.width}x{stream.height}")
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
