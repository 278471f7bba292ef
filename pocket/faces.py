"""Heads: 68 face points and two pupils on a turning head, and the painting of skin, hair, eyes, nose and mouth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from posecrafter.pocket.motion import Pose
from posecrafter.pocket.paint import Canvas, Cloth, ellipse, ellipse_outline, fill, smooth, stroke
from posecrafter.pocket.people import Person

Floats = npt.NDArray[np.floating[Any]]

# The person's right half (left in the picture) of a face in head heights: x right, y down, z towards the viewer; the
# origin lies a little above the nose's tip. Mirrored below into iBUG's 68 points.
_JAW = [(-.36, -.08, -.24), (-.357, .02, -.2), (-.345, .12, -.15), (-.325, .21, -.1), (-.285, .3, -.03),
        (-.225, .37, .04), (-.15, .43, .1), (-.07, .465, .13), (0, .475, .15)]  # fmt: skip
_BROW = [
    (-0.275, -0.165, 0.12),
    (-0.225, -0.2, 0.17),
    (-0.165, -0.212, 0.21),
    (-0.105, -0.203, 0.23),
    (-0.055, -0.183, 0.24),
]
_BRIDGE = [(0, -0.1, 0.25), (0, -0.03, 0.29), (0, 0.04, 0.33), (0, 0.1, 0.36)]
_NOSTRILS = [(-0.072, 0.15, 0.25), (-0.036, 0.163, 0.29), (0, 0.168, 0.31)]
_EYE = [(-.218, -.08, .15), (-.182, -.108, .19), (-.13, -.108, .2), (-.092, -.072, .19), (-.13, -.055, .2),
        (-.182, -.055, .19)]  # fmt: skip
_LIPS = [(-0.13, 0.28, 0.18), (-0.085, 0.253, 0.24), (-0.035, 0.236, 0.27), (0, 0.243, 0.275)]
_LOWER = [(0, 0.35, 0.26), (-0.035, 0.346, 0.26), (-0.085, 0.325, 0.235)]
_INNER = [(-0.112, 0.28, 0.19), (-0.035, 0.274, 0.25), (0, 0.277, 0.255)]
_INNER_LOWER = [(0, 0.284, 0.255), (-0.035, 0.282, 0.25)]
SKULL_CENTRE, SKULL_RADII = np.array([0.0, -0.13, -0.1]), np.array([0.365, 0.42, 0.42])


def _mirror(points: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    return [(-x, y, z) for x, y, z in points]


def _template() -> Floats:
    """[70, 3] in iBUG order, then the two pupils (the person's right first)."""
    eye_left = _mirror([_EYE[3], _EYE[2], _EYE[1], _EYE[0], _EYE[5], _EYE[4]])
    lips = _LIPS + _mirror(_LIPS[2::-1]) + _mirror(_LOWER[:0:-1]) + _LOWER
    inner = _INNER + _mirror(_INNER[1::-1]) + _mirror(_INNER_LOWER[:0:-1]) + _INNER_LOWER
    nose = _BRIDGE + _NOSTRILS + _mirror(_NOSTRILS[1::-1])
    pupils = [(-0.156, -0.082, 0.2), (0.156, -0.082, 0.2)]
    points = _JAW + _mirror(_JAW[7::-1]) + _BROW + _mirror(_BROW[::-1]) + nose + _EYE + eye_left + lips + inner + pupils
    return np.array(points, dtype=np.float64)


TEMPLATE = _template()


@dataclass(frozen=True)
class Head:
    """A head in the picture: points [70, 2] and ears [2, 2] in pixels, and what turns 3-D offsets into pixels."""

    points: Floats
    ears: Floats
    centre: Floats
    rotation: Floats
    scale: float
    yaw: float

    def project(self, offsets: Floats) -> Floats:
        """[n, 3] in head heights -> [n, 2] pixels."""
        return self.centre + self.scale * (offsets @ self.rotation.T)[:, :2]


def place_head(person: Person, pose: Pose, centre: Floats, scale: float) -> Head:
    """Turn and put the head: centre (pixels) is the origin of the template, scale the head's height in pixels."""
    points = _express(_shape(TEMPLATE, person.face), pose)
    rotation = _rotation(pose.yaw, pose.pitch, pose.roll)
    ears = np.array([[-0.385, -0.02, -0.12], [0.385, -0.02, -0.12]])
    head = Head(np.empty((70, 2)), np.empty((2, 2)), centre, rotation, scale, pose.yaw)
    return Head(head.project(points), head.project(ears), centre, rotation, scale, pose.yaw)


def _shape(points: Floats, face: Floats) -> Floats:
    """The template with a person's proportions; face: 8 numbers in -1..1."""
    shaped = points.copy()
    shaped[:, 0] *= 1 + 0.06 * face[0]
    shaped[3:14, 0] *= 1 + 0.08 * face[1]
    shaped[6:11, 1] += 0.02 * face[2]
    for eye in (slice(36, 42), slice(42, 48)):
        middle = shaped[eye].mean(axis=0)
        shaped[eye] = middle + (shaped[eye] - middle) * (1 + 0.2 * face[3])
    shaped[17:27, 1] += 0.015 * face[4]
    shaped[31:36, 0] *= 1 + 0.25 * face[5]
    shaped[28:36, 1] += 0.02 * face[6]
    shaped[48:68, 0] *= 1 + 0.15 * face[7]
    return shaped


def _express(points: Floats, pose: Pose) -> Floats:
    """Speech, smile, blink, brows and gaze, as shifts of the points."""
    moved = points.copy()
    opening = 0.11 * min(max(pose.open, 0.0), 1.2)
    moved[55:60, 1] += opening
    moved[65:68, 1] += opening
    moved[4:13, 1] += opening * 0.7 * np.array([0.2, 0.5, 0.8, 1, 1, 1, 0.8, 0.5, 0.2])
    corners = [48, 60, 54, 64]
    moved[corners, 1] += 0.4 * opening - 0.025 * pose.smile
    moved[corners, 0] *= 1 + 0.14 * pose.smile - 1.2 * opening
    moved[17:27, 1] -= 0.02 * pose.brows
    shut = min(max(pose.blink, 0.0), 1.0)
    for upper, lower in (((37, 38), (41, 40)), ((43, 44), (47, 46))):
        for top, bottom in zip(upper, lower, strict=True):
            moved[top, 1] += shut * (moved[bottom, 1] - moved[top, 1] - 0.002)
    moved[68:, 0] += 0.025 * np.clip(pose.gaze_x, -1, 1)
    moved[68:, 1] += 0.012 * np.clip(pose.gaze_y, -1, 1) + 0.014 * shut
    return moved


def _rotation(yaw: float, pitch: float, roll: float) -> Floats:
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    tilt = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(tilt @ nod @ turn)


def paint_hair_behind(canvas: Canvas, person: Person, head: Head) -> None:
    """What hangs behind neck and shoulders."""
    if person.style not in ("long", "medium") or (person.hat is not None and person.style == "bald"):
        return
    low = 1.0 if person.style == "long" else 0.5
    outline = np.array(
        [[-0.3, -0.45, -0.2], [0.3, -0.45, -0.2], [0.44, -0.1, -0.2], [0.46, low, -0.25], [0, low + 0.08, -0.25]]
    )
    outline = np.concatenate([outline, [[-0.46, low, -0.25], [-0.44, -0.1, -0.2]]])
    dark = Cloth(tuple(0.8 * value for value in person.hair.colour), person.hair.texture, person.hair.strength)  # type: ignore[arg-type]
    fill(canvas, smooth(head.project(outline)), dark, rounding=0.15 * head.scale)


def paint_head(canvas: Canvas, person: Person, head: Head) -> None:
    """Ears, hair, face, features, in this order."""
    scale = head.scale
    for side, ear in enumerate(head.ears):
        if (head.yaw > 0.6 and side == 1) or (head.yaw < -0.6 and side == 0):
            continue
        ellipse(canvas, ear, (0.055 * scale, 0.1 * scale), person.skin, rounding=0.04 * scale)
    _hair(canvas, person, head)
    skin = smooth(np.concatenate([head.points[:17], head.project(_hairline(person))]), passes=2)
    fill(canvas, skin, person.skin, rounding=0.16 * scale)
    _beard(canvas, person, head)
    _eyes(canvas, person, head)
    _nose(canvas, person, head)
    _mouth(canvas, person, head)
    _front(canvas, person, head)


def _hairline(person: Person) -> Floats:
    """From the left temple over the forehead to the right one: [7, 3]."""
    height = -0.5 if person.style == "bald" else -0.3 - 0.1 * person.fringe
    left = [(0.345, -0.16, -0.1), (0.31, 0.6 * height - 0.08, 0.02), (0.2, height, 0.14), (0.05, height - 0.02, 0.2)]
    right = [(-0.1, height - 0.01, 0.18), (-0.26, 0.85 * height, 0.1), (-0.345, -0.16, -0.1)]
    return np.array([*left, *right])


def _hair(canvas: Canvas, person: Person, head: Head) -> None:
    scale = head.scale
    width = np.hypot(SKULL_RADII[0] * np.cos(head.yaw), SKULL_RADII[2] * np.sin(head.yaw))
    centre = head.project(SKULL_CENTRE[None])[0]
    roll = np.arctan2(head.rotation[1, 0], head.rotation[0, 0])
    if person.style == "bald":
        ellipse(canvas, centre, (width * scale, 0.42 * scale), person.skin, roll, rounding=0.16 * scale)
        return
    if person.style == "bun":
        bun = head.project(np.array([[0.0, -0.6, -0.2]]))[0]
        ellipse(canvas, bun, (0.17 * scale, 0.15 * scale), person.hair, roll, rounding=0.08 * scale)
    bulk = person.volume
    outline = ellipse_outline(centre, (width * bulk * scale, 0.42 * bulk * scale), roll, 40)
    if person.style == "curly":
        waves = 1 + 0.05 * np.sin(np.arange(40) * 2.4 + 9 * person.fringe)
        outline = centre + (outline - centre) * waves[:, None]
    fill(canvas, outline, person.hair, rounding=0.14 * scale)


def _front(canvas: Canvas, person: Person, head: Head) -> None:
    """Locks beside the face, glasses, a hat."""
    scale = head.scale
    if person.style in ("long", "medium"):
        low = 0.75 if person.style == "long" else 0.35
        for side in (-1, 1):
            lock = np.array([(0.28, -0.36, 0.05), (0.38, -0.2, 0), (0.43, 0.2, -0.1), (0.4, low, -0.1)])
            lock = np.concatenate([lock, [(0.31, low - 0.05, -0.05), (0.335, 0.1, -0.02), (0.3, -0.2, 0.08)]])
            fill(canvas, smooth(head.project(lock * (side, 1, 1))), person.hair, rounding=0.05 * scale)
    if person.glasses:
        for eye in (slice(36, 42), slice(42, 48)):
            middle = head.points[eye].mean(axis=0)
            ring = ellipse_outline(middle, (0.115 * scale, 0.085 * scale))
            stroke(canvas, np.concatenate([ring, ring[:1]]), 0.022 * scale, (25, 22, 24))
        stroke(canvas, head.points[[39, 27, 42]], 0.02 * scale, (25, 22, 24))
    if person.hat is not None:
        rim = [(-0.42, -0.27, 0.1), (-0.2, -0.3, 0.36), (0.2, -0.3, 0.36), (0.42, -0.27, 0.1)]
        crown = [(0.38, -0.5, -0.1), (0.2, -0.66, -0.1), (-0.2, -0.66, -0.1), (-0.38, -0.5, -0.1)]
        fill(canvas, smooth(head.project(np.array(rim + crown))), person.hat, rounding=0.12 * scale)
        stroke(canvas, head.project(np.array(rim)), 0.05 * scale, tuple(0.6 * v for v in person.hat.colour))  # type: ignore[arg-type]


def _beard(canvas: Canvas, person: Person, head: Head) -> None:
    if not person.beard:
        return
    points, scale = head.points, head.scale
    opacity = {"beard": 0.9, "moustache": 0.9, "stubble": 0.35}[person.beard]
    if person.beard != "moustache":
        inner = 0.55 * points[[13, 35, 31, 3]] + 0.45 * points[[54, 54, 48, 48]]
        outline = np.concatenate([points[2:15], inner])
        fill(canvas, smooth(outline), person.hair, opacity=opacity, soft=0.015 * scale, rounding=0.1 * scale)
    upper = np.concatenate(
        [points[[48, 49, 50, 51, 52, 53, 54]], 0.6 * points[[35, 33, 31]] + 0.4 * points[[53, 51, 49]]]
    )
    fill(canvas, smooth(upper), person.hair, opacity=opacity, soft=0.01 * scale)


def _eyes(canvas: Canvas, person: Person, head: Head) -> None:
    points, scale = head.points, head.scale
    dark = tuple(0.62 * value for value in person.skin.colour)
    brow = tuple(0.5 * a + 0.5 * b * 0.5 for a, b in zip(person.hair.colour, (60, 45, 40), strict=True))
    for eye, pupil in ((slice(36, 42), 68), (slice(42, 48), 69)):
        outline = points[eye]
        middle = outline.mean(axis=0)
        ellipse(canvas, middle, (0.1 * scale, 0.06 * scale), Cloth(dark), opacity=0.4, soft=0.025 * scale)  # type: ignore[arg-type]
        height = np.linalg.norm(outline[[1, 2]].mean(axis=0) - outline[[4, 5]].mean(axis=0))
        if height > 0.012 * scale:
            rounded = smooth(outline, passes=1)
            fill(canvas, rounded, Cloth((232, 228, 224)))
            before = canvas.pixels.copy() if scale > 40 else None
            radius = 0.034 * scale
            ellipse(canvas, points[pupil], (radius, radius), Cloth(person.eyes))
            ellipse(canvas, points[pupil], (0.5 * radius, 0.5 * radius), Cloth((12, 10, 10)))
            glint = points[pupil] + radius * 0.4 * np.array(canvas.light)
            ellipse(canvas, glint, (0.25 * radius, 0.25 * radius), Cloth((250, 250, 250)))
            if before is not None:
                _keep_inside(canvas, before, rounded)
        stroke(canvas, outline[[0, 1, 2, 3]], 0.018 * scale, (40, 26, 24), 0.9)
        stroke(canvas, outline[[0, 5, 4, 3]], 0.01 * scale, dark, 0.6)  # type: ignore[arg-type]
    for line in (points[17:22], points[22:27]):
        stroke(canvas, smooth(line, closed=False, passes=1), 0.035 * scale, brow, 0.85)  # type: ignore[arg-type]


def _keep_inside(canvas: Canvas, before: npt.NDArray[np.float32], outline: Floats) -> None:
    """Undo what was painted outside of the outline (the iris under the lids)."""
    inside = Canvas(np.zeros((canvas.size, canvas.size, 3), np.float32), canvas.light, 0)
    low, high = outline.min(axis=0).astype(int) - 12, outline.max(axis=0).astype(int) + 12
    rows, columns = slice(max(0, low[1]), max(0, high[1])), slice(max(0, low[0]), max(0, high[0]))
    fill(inside, outline, Cloth((1, 1, 1)))
    share = inside.pixels[rows, columns]
    canvas.pixels[rows, columns] = before[rows, columns] * (1 - share) + canvas.pixels[rows, columns] * share


def _nose(canvas: Canvas, person: Person, head: Head) -> None:
    points, scale = head.points, head.scale
    dark = tuple(0.7 * value for value in person.skin.colour)
    bright = tuple(min(255.0, 1.12 * value + 6) for value in person.skin.colour)
    side = -1 if canvas.light[0] > 0 else 1
    edge = points[31] if side < 0 else points[35]
    shadow = np.stack([points[27], points[28] + (side * 0.02 * scale, 0), edge, points[33], points[30]])
    fill(canvas, shadow, Cloth(dark), opacity=0.45, soft=0.012 * scale)  # type: ignore[arg-type]
    stroke(canvas, points[28:31], 0.03 * scale, bright, 0.35)  # type: ignore[arg-type]
    stroke(canvas, smooth(points[31:36], closed=False, passes=1), 0.018 * scale, dark, 0.8)  # type: ignore[arg-type]
    for nostril in (points[32], points[34]):
        ellipse(canvas, nostril, (0.018 * scale, 0.01 * scale), Cloth((60, 30, 28)), opacity=0.8)


def _mouth(canvas: Canvas, person: Person, head: Head) -> None:
    points, scale = head.points, head.scale
    fill(canvas, smooth(points[48:60], passes=1), Cloth(person.lips), rounding=0.02 * scale, opacity=0.9)
    inner = points[60:68]
    if np.linalg.norm(inner[2] - inner[6]) > 0.02 * scale:
        fill(canvas, smooth(inner, passes=1), Cloth((58, 18, 22)))
        teeth = np.concatenate([inner[1:4], 0.6 * inner[3:0:-1] + 0.4 * inner[5:8]])
        fill(canvas, teeth, Cloth((226, 222, 214)), opacity=0.9)
    else:
        line = np.concatenate([inner[:5]])
        stroke(canvas, line, 0.012 * scale, (80, 36, 36), 0.9)
