"""Video files in and out, through PyAV (FFmpeg)."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Protocol, Self

import av
import numpy as np
from numpy.typing import NDArray

from posecrafter.errors import VideoError
from posecrafter.files import atomic_write

LAST_FRAME = 0.2
"""How much of a video its last frame may last, where frames come as they like."""


@dataclass(frozen=True)
class Video:
    """Decoded frames, uint8 [F, H, W, 3] RGB, and their rate in frames a second."""

    frames: NDArray[np.uint8]
    fps: float

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Clip:
    """Frames `first`..`last` (both included) of a video that decodes whole, read one at a time."""

    path: Path
    first: int
    last: int
    width: int
    height: int
    fps: float

    def __len__(self) -> int:
        return self.last - self.first + 1

    def frames(self, start: int = 0) -> Generator[NDArray[np.uint8], None, None]:
        """The clip's frames from its frame `start` on: uint8 [H, W, 3] RGB. One is in memory at a time."""
        with closing(_pictures(self.path)) as pictures:
            for picture in islice(pictures, self.first + start, self.last + 1):
                yield _rgb(picture)


def open_clip(path: Path | str, first: int | None = None, last: int | None = None) -> Clip:
    """A clip to read frame by frame, for videos of any length. Decodes all of it once, to know that it can be read.

    Raises: what read_video raises.
    """
    path = Path(path)
    _check_file(path)
    count, size = 0, (0, 0)
    for picture in _pictures(path):
        count, size = count + 1, _shown_size(picture)
    start, stop = _range(path, count, first, last)
    return Clip(path, start, stop, *size, _rate(path))


def read_video(path: Path | str, first: int | None = None, last: int | None = None) -> Video:
    """Decode a video file whole, or its frames `first`..`last` (both included, counted from 0).

    Raises: VideoError "video-missing", "video-unreadable", "video-empty", "video-truncated", "video-size-changes",
    "video-range".
    """
    path = Path(path)
    _check_file(path)
    wanted = range(first or 0, sys.maxsize if last is None else last + 1)
    frames, count = [], 0
    for picture in _pictures(path):
        if count in wanted:  # the others of a long video would not fit into memory
            frames.append(_rgb(picture))
        count += 1
    _range(path, count, first, last)
    return Video(np.stack(frames), _rate(path))


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise VideoError("video-missing", f"there is no video file {path}")
    if path.stat().st_size == 0:
        raise VideoError("video-empty", f"{path} has 0 bytes; copy or download it again")


def _range(path: Path, count: int, first: int | None, last: int | None) -> tuple[int, int]:
    start, stop = 0 if first is None else first, count - 1 if last is None else last
    if not 0 <= start <= stop < count:
        raise VideoError("video-range", f"frames {start}..{stop} were asked for; {path} has 0..{count - 1}")
    return start, stop


def _turns(picture: av.VideoFrame) -> int:
    """Quarter turns counter-clockwise until the picture stands upright: a phone held upright films lying pictures."""
    return round(picture.rotation / 90) % 4


def _shown_size(picture: av.VideoFrame) -> tuple[int, int]:
    return (picture.height, picture.width) if _turns(picture) % 2 else (picture.width, picture.height)


def _rgb(picture: av.VideoFrame) -> NDArray[np.uint8]:
    """The picture as players show it: uint8 [H, W, 3]."""
    stored = np.asarray(picture.to_ndarray(format="rgb24"), dtype=np.uint8)
    return np.ascontiguousarray(np.rot90(stored, _turns(picture)))


def _rate(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or 25)


def _pictures(path: Path) -> Generator[av.VideoFrame, None, None]:
    """Every frame in order, all of one size; a video that has lost frames is refused at its end."""
    count, size, last = 0, (0, 0), 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("video-empty", f"{path} has no video stream")
            stream = container.streams.video[0]
            expected, ends, rate = stream.frames or 0, _told_end(stream), stream.average_rate or 25
            for picture in container.decode(stream):
                if count and (picture.width, picture.height) != size:
                    raise VideoError(
                        "video-size-changes",
                        f"{path}: frame {count} is {picture.width}x{picture.height} and frame 0 is "
                        f"{size[0]}x{size[1]}; re-encode it at one size",
                    )
                count, size, last = count + 1, (picture.width, picture.height), picture.time or 0.0
                yield picture
    except av.FFmpegError as error:
        if count:
            raise VideoError(
                "video-truncated", f"{path} breaks off after {count} frames; copy or download it again"
            ) from error
        raise VideoError("video-unreadable", f"{path} cannot be decoded as a video: {error.strerror}") from error
    if not count:
        raise VideoError("video-empty", f"{path} holds no video frame")
    if count < expected:
        raise VideoError(
            "video-truncated",
            f"{path} announces {expected} frames and only {count} can be decoded; copy or download it again",
        )
    if ends - last > max(LAST_FRAME * ends, 2 / rate):
        raise VideoError(
            "video-truncated",
            f"{path} announces {ends:.1f} seconds and its last frame begins at {last:.1f}; copy or download it again",
        )


def _told_end(stream: av.VideoStream) -> float:
    """Seconds at which the last frame ends, as Matroska and WebM tell it, which count no frames; 0 where untold."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return 0.0 if match is None else 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])


def write_video(path: Path | str, frames: Iterable[NDArray[np.uint8]], fps: float) -> None:
    """Encode uint8 [H, W, 3] RGB frames (even sizes) as H.264 MP4, nearly lossless (crf 12), atomically.

    Raises: VideoError "video-odd-size"; PoseCrafterError "disk-full".
    """
    with atomic_write(path) as temporary, VideoEncoder(str(temporary), fps) as encoder:
        for frame in frames:
            encoder.write(frame)


class Sink(Protocol):
    """Takes a video's bytes in order."""

    def write(self, part: bytes, /) -> int: ...


class VideoEncoder:
    """H.264 MP4 frame by frame, nearly lossless (crf 12). Closing it writes the end.

    to: a file's path; or a sink, which gets a fragmented MP4 that can be played while it grows, each frame as soon as
    the next one is there, encoded by the caller's thread alone: x264's own would take cores from what makes the frames.
    """

    def __init__(self, to: str | Sink, fps: float) -> None:
        flags = {} if isinstance(to, str) else {"movflags": "empty_moov+default_base_moof+frag_every_frame"}
        self._container = av.open(to, mode="w", format="mp4", options=flags)
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self._stream.pix_fmt = "yuv420p"
        tune = {"tune": "zerolatency", "threads": "1"} if flags else {}
        self._stream.options = {"crf": "12", "preset": "medium", **tune}
        self._written = 0

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Encode one frame, uint8 [H, W, 3] RGB. Raises: VideoError "video-odd-size"."""
        if not self._written:
            self._stream.height, self._stream.width = frame.shape[:2]
            if self._stream.height % 2 or self._stream.width % 2:
                raise VideoError(
                    "video-odd-size", f"H.264 needs even sizes; got {self._stream.width}x{self._stream.height}"
                )
        self._written += 1
        for packet in self._stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
            self._container.mux(packet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._written:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()
