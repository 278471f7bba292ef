"""Key points to control images: the drawing that ControlNet-openpose was trained on, pixel for pixel.

Style "v1.1" (the default): body, hands, face. Style "v1.0": the body alone, with blended limbs. Black RGB canvas, no
anti-aliasing, fixed pixel sizes whatever the canvas, so draw at the size at which the network works.

Those pixels are meant for 512: at 128 the face is one white blob and an open mouth looks like a closed one. Style
"v1.1-small" is ours, v1.1 with strokes a quarter as wide, for small bases that are trained on it from nothing.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from posecrafter.errors import PoseError
from posecrafter.framing import Framing
from posecrafter.pose.track import BODY, FACE, KEY_POINTS, LEFT_HAND, RIGHT_HAND, VISIBLE, PoseTrack

Image = npt.NDArray[np.uint8]
Pixel = tuple[int, int]
Colour = tuple[int, int, int]
Point = tuple[float, float] | None


@dataclass(frozen=True)
class Pen:
    """Stroke sizes in pixels: half-width of a limb, width of a finger, radii of joints and of face points."""

    limb: int
    finger: int
    joint: int
    face: int


WIDE = Pen(limb=4, finger=2, joint=4, face=3)
NARROW = Pen(limb=1, finger=1, joint=1, face=0)
STYLES = {"v1.1": WIDE, "v1.0": WIDE, "v1.1-small": NARROW}
# fmt: off
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)
COLOURS: tuple[Colour, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)
# fmt: on
FINGERS = tuple(
    (0 if joint == 0 else first + joint - 1, first + joint) for first in (1, 5, 9, 13, 17) for joint in range(4)
)
FINGER_COLOURS = tuple(
    (round(255 * red), round(255 * green), round(255 * blue))
    for red, green, blue in (colorsys.hsv_to_rgb(edge / 20, 1, 1) for edge in range(20))
)
HAND_COLOUR: Colour = (0, 0, 255)
FACE_COLOUR: Colour = (255, 255, 255)
# cv2 keeps coordinates in fixed point; farther points could overflow there and cannot be meant.
FARTHEST = 16_000.0


def draw_poses(track: PoseTrack, height: int | None = None, width: int | None = None, style: str = "v1.1") -> Image:
    """The control images of a track: uint8 RGB [F, H, W, 3].

    Without height and width, the track's own canvas. With another size, the poses are fitted to it as frames are
    (Framing.center). Raises PoseError pose-style for an unknown style.
    """
    height, width = height or track.height, width or track.width
    if (width, height) != (track.width, track.height):
        track = track.framed(Framing.center(track.width, track.height, width, height))
    images = np.zeros((len(track), height, width, 3), np.uint8)
    for index in range(len(track)):
        images[index] = draw_frame(track.xy[index], track.score[index], height, width, style)
    return images


def draw_frame(
    xy: npt.NDArray[np.floating[Any]],
    score: npt.NDArray[np.floating[Any]],
    height: int,
    width: int,
    style: str = "v1.1",
) -> Image:
    """One control image, uint8 RGB [height, width, 3], of xy [130, 2] in its pixels and score [130].

    Points below the score VISIBLE, not finite or absurdly far away are left out; others may lie outside of the canvas.
    Raises PoseError pose-style for an unknown style and poses-shape for other shapes.
    """
    if style not in STYLES:
        raise PoseError("pose-style", f"unknown pose style {style!r}; choose one of {', '.join(STYLES)}")
    if xy.shape != (KEY_POINTS, 2) or score.shape != (KEY_POINTS,):
        raise PoseError(
            "poses-shape", f"a frame needs xy [{KEY_POINTS}, 2] and score [{KEY_POINTS}], got {xy.shape}, {score.shape}"
        )
    pen = STYLES[style]
    drawn = (score >= np.float32(VISIBLE)) & (np.abs(xy) < FARTHEST).all(axis=1)
    points = [(float(x), float(y)) if seen else None for (x, y), seen in zip(xy, drawn, strict=True)]
    canvas = np.zeros((height, width, 3), np.uint8)
    if style == "v1.0":
        return _body_v10(canvas, points[BODY], pen)
    canvas = _body_v11(canvas, points[BODY], pen)
    for hand in (LEFT_HAND, RIGHT_HAND):
        _hand(canvas, points[hand], pen)
    for point in points[FACE]:
        _circle(canvas, point, pen.face, FACE_COLOUR)
    return canvas


def _body_v11(canvas: Image, points: Sequence[Point], pen: Pen) -> Image:
    """Opaque limbs, the canvas dimmed to 60 %, joints at full colour."""
    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        _limb(canvas, points[start], points[end], colour, pen)
    canvas = (canvas * 0.6).astype(np.uint8)
    for point, colour in zip(points, COLOURS, strict=True):
        _circle(canvas, point, pen.joint, colour)
    return canvas


def _body_v10(canvas: Image, points: Sequence[Point], pen: Pen) -> Image:
    """Joints at full colour, then every limb blended over what is there: 40 % canvas, 60 % limb."""
    for point, colour in zip(points, COLOURS, strict=True):
        _circle(canvas, point, pen.joint, colour)
    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        with_limb = canvas.copy()
        _limb(with_limb, points[start], points[end], colour, pen)
        canvas = np.asarray(cv2.addWeighted(canvas, 0.4, with_limb, 0.6, 0), np.uint8)
    return canvas


def _hand(canvas: Image, points: Sequence[Point], pen: Pen) -> None:
    for (start, end), colour in zip(FINGERS, FINGER_COLOURS, strict=True):
        first, second = points[start], points[end]
        if first is not None and second is not None:
            cv2.line(canvas, _pixel(first), _pixel(second), colour, pen.finger)
    for point in points:
        _circle(canvas, point, pen.joint, HAND_COLOUR)


def _limb(canvas: Image, start: Point, end: Point, colour: Colour, pen: Pen) -> None:
    """A filled ellipse from start to end; its centre, axes and angle are truncated to integers, as in training."""
    if start is None or end is None:
        return
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    along = (start[0] - end[0], start[1] - end[1])
    axes = (int(math.hypot(*along) / 2), pen.limb)
    degrees = int(math.degrees(math.atan2(along[1], along[0])))
    outline = cv2.ellipse2Poly(_pixel(middle), axes, degrees, 0, 360, 1)
    cv2.fillConvexPoly(canvas, np.asarray(outline), colour)


def _circle(canvas: Image, point: Point, radius: int, colour: Colour) -> None:
    if point is not None:
        cv2.circle(canvas, _pixel(point), radius, colour, thickness=-1)


def _pixel(point: tuple[float, float]) -> Pixel:
    return int(point[0]), int(point[1])
