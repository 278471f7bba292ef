"""Five-finger hands: 21 points from a few numbers, and their painting."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from posecrafter.pocket.paint import Canvas, Cloth, fill, limb, smooth
from posecrafter.pocket.people import Person

Floats = npt.NDArray[np.floating[Any]]

# A person's right hand seen from the back, fingers up, in hand lengths: where each finger starts, its direction
# (radians from straight, thumb side negative) and the lengths of its three parts.
_ROOTS = np.array([(-0.17, 0.13), (-0.17, 0.5), (-0.04, 0.53), (0.08, 0.5), (0.18, 0.43)])
_DIRECTIONS = np.array([-0.75, -0.12, -0.02, 0.08, 0.2])
_PARTS = np.array([(0.21, 0.17, 0.13), (0.23, 0.14, 0.1), (0.25, 0.16, 0.1), (0.23, 0.15, 0.1), (0.18, 0.11, 0.09)])
_WIDTHS = (0.058, 0.052, 0.054, 0.05, 0.043)


def hand_points(
    wrist: Floats, angle: float, length: float, left: bool, curl: float, spread: float, palm: float
) -> Floats:
    """[21, 2] in the unit of `wrist` and `length`: wrist, then thumb to little finger, root to tip.

    angle: where the hand points, radians (0 right, pi/2 down). palm: how far it is turned about its own length.
    """
    points = np.zeros((21, 3))
    curl = float(np.clip(curl, 0, 1))
    for finger in range(5):
        way = _DIRECTIONS[finger] * (0.6 + 0.8 * spread)
        place = np.array([_ROOTS[finger][0], _ROOTS[finger][1], 0.0])
        points[1 + 4 * finger] = place
        bent = 0.0
        for part in range(3):
            bent += curl * (0.5 if finger == 0 else 1.25)
            reach = _PARTS[finger][part]
            place = place + reach * np.array([np.sin(way) * np.cos(bent), np.cos(way) * np.cos(bent), -np.sin(bent)])
            points[2 + 4 * finger + part] = place
    if left:
        points[:, 0] *= -1
    cosine, sine = np.cos(palm), np.sin(palm)
    flat = np.stack([points[:, 0] * cosine + points[:, 2] * sine, points[:, 1]], axis=1) * length
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    return np.asarray(wrist + flat[:, :1] * across + flat[:, 1:] * along)


def paint_hand(canvas: Canvas, person: Person, points: Floats, length: float) -> None:
    """Palm, then the fingers with a darker edge; points [21, 2] and length in pixels."""
    shade = tuple(0.68 * value for value in person.skin.colour)
    dark = Cloth(shade)  # type: ignore[arg-type]
    across = points[17] - points[1]
    wrist_side = 0.5 * across * 0.85
    palm = np.stack(
        [points[0] - wrist_side, points[1], points[5], points[9], points[13], points[17], points[0] + wrist_side]
    )
    fill(canvas, smooth(palm, passes=1), person.skin, rounding=0.1 * length)
    for finger in (4, 3, 2, 1, 0):
        joints = points[1 + 4 * finger : 5 + 4 * finger]
        wide = _WIDTHS[finger] * length
        for start, end, first, last in zip(joints, joints[1:], (1.0, 0.95, 0.9), (0.95, 0.9, 0.75), strict=False):
            fill(canvas, limb(start, end, wide * first + 0.02 * length, wide * last + 0.02 * length), dark, opacity=0.7)
        for start, end, first, last in zip(joints, joints[1:], (1.0, 0.95, 0.9), (0.95, 0.9, 0.75), strict=False):
            fill(canvas, limb(start, end, wide * first, wide * last), person.skin)
