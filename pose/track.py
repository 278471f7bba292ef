"""A track of key points: the only form in which poses travel through the project.

Layout of the K = 130 key points: 18 body points (OpenPose order), 21 of the person's left hand, 21 of the right hand,
68 face points (iBUG order), two pupils (the person's right, then left). A source without pupils leaves their score 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.framing import Framing

Floats = npt.NDArray[np.float32]

BODY = slice(0, 18)
LEFT_HAND = slice(18, 39)
RIGHT_HAND = slice(39, 60)
FACE = slice(60, 130)
KEY_POINTS = 130
VISIBLE = 0.3

# fmt: off
BODY_NAMES = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)
# fmt: on


@dataclass(frozen=True, eq=False)
class PoseTrack:
    """Key points of one person, frame by frame, in pixels of a canvas.

    xy: float32 [F, 130, 2], continuous pixel coordinates (x right, y down; pixel i covers i..i+1).
    score: float32 [F, 130], confidence; 0 = absent, and then xy is 0 too.
    fps: frames a second that they were seen at; None where nobody knows.
    Raises PoseError poses-shape (wrong shapes or canvas) and poses-not-finite (NaN or infinity).
    """

    xy: Floats
    score: Floats
    width: int
    height: int
    fps: float | None = None

    def __post_init__(self) -> None:
        xy = np.array(self.xy, dtype=np.float32)
        score = np.array(self.score, dtype=np.float32)
        if xy.ndim != 3 or xy.shape[1:] != (KEY_POINTS, 2) or score.shape != xy.shape[:2]:
            raise PoseError(
                "poses-shape",
                f"key points have shape {xy.shape} and scores {score.shape}; "
                f"pass [F, {KEY_POINTS}, 2] and [F, {KEY_POINTS}]",
            )
        if self.width < 1 or self.height < 1:
            raise PoseError(
                "poses-shape", f"canvas of {self.width}x{self.height} pixels; both sides must be at least 1"
            )
        wrong = ~(np.isfinite(xy).all(axis=2) & np.isfinite(score))
        if wrong.any():
            frame, point = np.argwhere(wrong)[0]
            raise PoseError(
                "poses-not-finite",
                f"frame {frame}, key point {point}: {xy[frame, point].tolist()} with score {score[frame, point]}; "
                "set the score of an unknown point to 0",
            )
        score = np.maximum(score, 0)
        xy[score == 0] = 0
        xy.setflags(write=False)
        score.setflags(write=False)
        object.__setattr__(self, "xy", xy)
        object.__setattr__(self, "score", score)

    def __len__(self) -> int:
        return int(self.xy.shape[0])

    def __getitem__(self, frames: int | slice | Sequence[int] | npt.NDArray[Any]) -> PoseTrack:
        """The chosen frames as a track; one index gives a track of one frame."""
        chosen = [frames] if isinstance(frames, int | np.integer) else frames
        return replace(self, xy=self.xy[chosen], score=self.score[chosen])

    @property
    def visible(self) -> npt.NDArray[np.bool_]:
        """bool [F, 130]: the key points whose score reaches VISIBLE."""
        return self.score >= np.float32(VISIBLE)

    @property
    def persons(self) -> npt.NDArray[np.bool_]:
        """bool [F]: the frames in which at least one key point is visible."""
        return np.asarray(self.visible.any(axis=1))

    def framed(self, framing: Framing) -> PoseTrack:
        """The same poses on the canvas that `framing` cuts out; points outside of it keep their place and score."""
        if (self.width, self.height) != (framing.source_width, framing.source_height):
            raise PoseError(
                "poses-canvas",
                f"poses are on a {self.width}x{self.height} canvas, the framing cuts from "
                f"{framing.source_width}x{framing.source_height}; make the framing for the poses' own canvas",
            )
        return replace(self, xy=framing.points(self.xy), width=framing.width, height=framing.height)

    @staticmethod
    def empty(frames: int, width: int, height: int) -> PoseTrack:
        """A track of `frames` frames without a person."""
        return PoseTrack(
            np.zeros((frames, KEY_POINTS, 2), np.float32), np.zeros((frames, KEY_POINTS), np.float32), width, height
        )

    @staticmethod
    def concatenate(tracks: Sequence[PoseTrack]) -> PoseTrack:
        """The tracks one after another, at the first one's rate; all must share one canvas (else PoseError
        poses-canvas)."""
        canvases = {(track.width, track.height) for track in tracks}
        if len(canvases) != 1:
            sizes = ", ".join(sorted(f"{width}x{height}" for width, height in canvases)) or "none"
            raise PoseError("poses-canvas", f"tracks have canvases {sizes}; bring them to one with PoseTrack.framed")
        xy, score = ([getattr(track, name) for track in tracks] for name in ("xy", "score"))
        return replace(tracks[0], xy=np.concatenate(xy), score=np.concatenate(score))
