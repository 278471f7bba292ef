"""Editing in the picture: shift, scale and mirror whole tracks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from posecrafter.errors import PoseError
from posecrafter.pose.head import MIRROR
from posecrafter.pose.track import BODY, FACE, LEFT_HAND, RIGHT_HAND, PoseTrack

_BODY_MIRROR = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)
OTHER_SIDE = np.array(
    [
        *_BODY_MIRROR,
        *range(RIGHT_HAND.start, RIGHT_HAND.stop),
        *range(LEFT_HAND.start, LEFT_HAND.stop),
        *(MIRROR[5:] - 5 + FACE.start),
    ]
)
"""OTHER_SIDE[i]: the key point that point i becomes in a mirror."""
assert len(_BODY_MIRROR) == BODY.stop


def shift(track: PoseTrack, *, dx: float = 0.0, dy: float = 0.0) -> PoseTrack:
    """Move the person by dx of the canvas's width to the right and dy of its height down."""
    _finite(dx=dx, dy=dy)
    return replace(track, xy=track.xy + np.array([dx * track.width, dy * track.height], np.float32))


def scale(track: PoseTrack, *, factor: float, x: float = 0.5, y: float = 0.5) -> PoseTrack:
    """Make the person `factor` times as large about the point (x, y) of the canvas, in shares of its sides."""
    _finite(factor=factor, x=x, y=y)
    if factor <= 0:
        raise PoseError("edit-value", f"factor is {factor:g}; it must be above 0")
    about = np.array([x * track.width, y * track.height])
    xy = about + (track.xy.astype(np.float64) - about) * factor
    return replace(track, xy=xy.astype(np.float32))


def mirror(track: PoseTrack) -> PoseTrack:
    """Left becomes right, in the picture and on the person."""
    xy = track.xy[:, OTHER_SIDE].copy()
    xy[..., 0] = track.width - xy[..., 0]
    return replace(track, xy=xy, score=track.score[:, OTHER_SIDE])


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not np.isfinite(value):
            raise PoseError("edit-value", f"{name} is {value}; it must be a number")
